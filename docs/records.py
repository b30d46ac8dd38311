"""Pages of the site that are made from records: which method when, self-checks, errors, the gallery, notebooks."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from layerwise import errors
from layerwise.evaluation import checks
from layerwise.evaluation.intervals import mean_of, wilson
from layerwise.experiments import experiment

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
TRIED, IMAGES = RESULTS / "comparison/strengths.json", 1000
DEMO = RESULTS / "demo/test.json"


def table(header: list[str], body: list[list[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def read(path: Path) -> dict[str, Any]:
    """A record, empty where there is none yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def method_of(recipe: str) -> tuple[str, float]:
    """The method of a recipe and the passes of its batch."""
    settings, _ = experiment.read(recipe)
    return type(settings.method).__name__, settings.method.passes.total


def measured(name: str) -> list[str]:
    """What the records say of a method, a sentence for each number."""
    said = []
    for row, entry in read(TRIED).items():
        if "chosen" in entry and method_of(f"{row}-fashion-mnist")[0] == name:
            said.append(
                f"{row}: {_share(_best(entry))} of 1,000 validation images of Fashion-MNIST under PGD-20 "
                f"([which method when](../which-method.md))."
            )
    for row, entry in read(DEMO).items():
        if method_of(f"{row}-few-digits")[0] == name:
            said.append(
                f"100 labelled digits: {_mean(entry['pgd-20'])} under PGD-20 ([which method when](../which-method.md))."
            )
    return said


def _best(entry: dict[str, Any]) -> float:
    return max(float(each["pgd-20"]) for each in entry["trials"])


def _share(value: float) -> str:
    low, high = wilson(round(IMAGES * value), IMAGES)
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _mean(values: list[float]) -> str:
    mean = mean_of([100 * value for value in values])
    return f"{mean.value:.1f} % ± {mean.half_width:.1f}"


def which_page() -> str:
    """Which method when: what the records say, cheapest first."""
    text = (
        "# Which method when\n\nMade from records, so that it changes with them. *Passes*: forward, backward "
        "to the activations, backward to the weights; "
        "standard training has 3.\n\n"
    )
    rows = []
    for row, entry in read(DEMO).items():
        _, passes = method_of(f"{row}-few-digits")
        rows.append((passes, [f"`{row}-few-digits`", f"{passes:g}", _mean(entry["clean"]), _mean(entry["pgd-20"])]))
    if rows:
        text += (
            "## Few labels: 100 digits\n\n540 test images, linf 0.1, mean of five seeds and 95 % interval "
            "over them; every method at the strength that was "
            "best on validation images. Records: `results/demo/strengths.json`, `results/demo/test.json`.\n\n"
        )
        text += table(
            ["recipe", "passes", "clean", "under PGD-20"], [cells for _, cells in sorted(rows, key=lambda row: row[0])]
        )
    tried = []
    for row, entry in read(TRIED).items():
        if "chosen" in entry:
            passes = method_of(f"{row}-fashion-mnist")[1]
            best = max(entry["trials"], key=lambda each: float(each["pgd-20"]))
            cells = [
                f"`{row}`",
                f"{passes:g}",
                f"`{entry['setting']}` {_value(best['value'])}",
                f"{100 * best['clean']:.1f} %",
                _share(best["pgd-20"]),
            ]
            tried.append((passes, -best["pgd-20"], cells))
    text += (
        "\n## Fashion-MNIST: a short training of every method\n\nlinf 0.1, 200 batches, one seed, the best of "
        "four strengths, 1,000 *validation* images with their 95 % "
        "interval: enough to see what does not work, not enough to order what does. Record: "
        "`results/comparison/strengths.json`.\n\n"
    )
    text += table(["recipe", "passes", "strength", "clean", "under PGD-20"], [cells for *_, cells in sorted(tried)])
    return text + (
        "\n## How to choose\n\n1. Fix the threat model: norm and radius.\n2. Take what you can pay for: the "
        "column *passes*, times your standard training, over 3.\n"
        "3. Tune each candidate alike, on validation images: `layerwise tune RECIPE`.\n4. Train several seeds "
        "of the two best, and let `layerwise report` say "
        "whether they differ.\n\nNext: [every method](methods/index.md), [tuning](../tune.md), [the papers' "
        "own tables](../reproduction.md).\n"
    )


def _value(value: Any) -> str:
    return ", ".join(f"{k} {v:g}" for k, v in value.items()) if isinstance(value, dict) else f"{value:g}"


def checks_page() -> str:
    """Every self-check: name, threshold, what it looks at, what to do."""
    text = (
        "# Every self-check\n\nA check compares the lower end of a 98 % interval of a share of the images "
        "with its threshold. One that speaks up means: do not believe "
        "the robust accuracies of this evaluation before you know the cause.\n"
    )
    found = [each for _, each in inspect.getmembers(checks) if isinstance(each, checks.Check)]
    for each in sorted(found, key=lambda check: check.name):
        meaning, _, remedy = each.meaning.rpartition("; ")
        text += f"\n## {each.name}\n\n- **Threshold**: {100 * each.threshold:g} % of the images.\n- **Looks "
        f"at**: images of which this holds: {each.looks_at}.\n"
        text += f"- **Means**: {meaning or each.meaning}.\n- **What to do**: {remedy}.\n"
    return (
        text + "\nHow often they are right: [evaluation](../evaluation.md). Seen at work: [judging "
        "honestly](../tutorials/honest-evaluation.md).\n"
    )


def errors_page() -> str:
    """Every kind of error, and what it means."""
    text = (
        "# Errors and what they mean\n\nEvery error that you can mend is a `LayerwiseError`. Its message says "
        "what is wrong, where, what was found, and what to type instead. "
        "The command line prints it in one sentence and ends with code 2; Ctrl-C ends with 130.\n"
    )
    for name, cls in inspect.getmembers(errors, inspect.isclass):
        if cls.__module__ == errors.__name__:
            text += f"\n## {name}\n\n{(inspect.getdoc(cls) or '').partition('>>>')[0].strip()}\n"
            text += f"\n{MEND[name]}\n" if name in MEND else ""
    return text + "\nNext: [troubleshooting](../troubleshooting.md).\n"


MEND = {
    "SiteError": "Look at what there is: `layerwise sites NETWORK`, or `print(lw.Sites(model, ..., example=batch))`.",
    "DataError": "Look at the file or batch that the message names. Pixels are in [0, 1]; `lw.Normalized` "
    "normalises inside the network.",
    "ConfigError": "The message has the closest names. `layerwise train RECIPE --help` lists every setting "
    "with its range.",
    "CheckpointError": "The message says which folder and what to type to go on, or to begin anew.",
    "CaptureError": "Train without capture: `--training.capture false`. It costs time only.",
}


def notebooks() -> Iterator[tuple[str, str]]:
    """(name, text) of each tutorial's notebook, without outputs."""
    import jupytext

    for page in sorted((ROOT / "docs/tutorials").glob("*.md")):
        if page.stem != "index":
            notebook = jupytext.reads(page.read_text(encoding="utf-8"), fmt="md")
            notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
            for number, cell in enumerate(notebook.cells):
                cell["id"] = f"{page.stem}-{number}"  # drawn at random otherwise
            yield f"notebooks/{page.stem}.ipynb", jupytext.writes(notebook, fmt="ipynb")


def write_reports(folder: Path) -> None:
    """The gallery's reports, from the run folders in `results/demo/runs`, which hold no weights."""
    from layerwise.report import report

    runs = sorted((RESULTS / "demo/runs").glob("*-seed*"))
    fragile = [run for run in runs if run.name.startswith("fgsm-far")]
    order = sorted(set(runs) - set(fragile), key=lambda run: (not run.name.startswith("fgsm"), run.name))
    for name, chosen in (("demo", order), ("fragile", fragile)):
        # As they are typed in the project's folder: the page names them.
        found = [run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run for run in chosen]
        made, path = report(found).to_html(), folder / f"{name}.html"
        if not path.exists() or path.read_text(encoding="utf-8") != made:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made, encoding="utf-8")


def pages() -> dict[str, str]:
    """{path: text} of all of them."""
    made = {"which-method.md": which_page(), "checks.md": checks_page(), "errors.md": errors_page()}
    return made | dict(notebooks())
