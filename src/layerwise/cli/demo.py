"""`layerwise demo`: standard training, FGSM and SLAT side by side on 100 labelled digits, and one network that only looks robust."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layerwise.cli.arguments import Command, add_quiet, add_runs
from layerwise.errors import LayerwiseError

BASELINE, OURS = "fgsm-few-digits", "slat-few-digits"
RECIPES = (BASELINE, OURS, "standard-few-digits")
FRAGILE = "fgsm-far-digits"


def demo(runs: Path, *, seeds: int = 3, progress: bool = True) -> str:
    """Train three recipes with several seeds and a fourth once, evaluate them on the 540 held-out images, and write two reports.

    Args:
        runs: folder of the run folders; finished runs there are kept.
        seeds: of each recipe.
        progress: show progress.

    Returns:
        The tables, what was seen and how sure that is, and where the reports are.

    Raises:
        LayerwiseError: an earlier demo there was another version's.
    """
    from layerwise.report import report

    folders = {recipe: _trained(recipe, runs, seeds, progress) for recipe in RECIPES}
    first = report([folder for each in folders.values() for folder in each])
    second = report(_trained(FRAGILE, runs, 1, progress))
    pages = [made.write(runs / "demo" / name) for made, name in ((first, "report"), (second, "report-fragile"))]
    lines = [
        "Act one: 100 labelled digits. FGSM and SLAT cost the same; each has the strength that was best on validation images.\n",
        first.comparison.to_markdown(),
        "Act two: FGSM at three times the radius, which looks robust to its own attack.\n",
        second.comparison.to_markdown(),
        *_said(folders[BASELINE], folders[OURS], second.comparison.rows[0].findings),
        *(f"report: {page.resolve()}" for page in pages),
    ]
    return "\n".join(lines)


def _trained(recipe: str, runs: Path, seeds: int, progress: bool) -> list[Path]:
    from layerwise.experiments.experiment import read, train_seeds

    _, tree = read(recipe)
    try:
        return train_seeds(tree, folder=runs / "demo" / recipe, seeds=seeds, resume=True, progress=progress)
    except LayerwiseError as error:
        raise type(error)(f"{error}; or begin anew: layerwise demo --runs ANOTHER") from None


def _said(baseline: Sequence[Path], ours: Sequence[Path], findings: Sequence[str]) -> list[str]:
    """Three sentences: what was seen, how sure that is, what to type next."""
    from layerwise.evaluation import Evaluation
    from layerwise.evaluation.intervals import mean_of

    def worst(folder: Path) -> float:
        return 100 * Evaluation.read(folder).worst.accuracy

    # The same seed starts both from the same weights, and the images are the same: pairs.
    apart = [worst(own) - worst(base) for own, base in zip(ours, baseline, strict=True)]
    mean = mean_of(apart)
    above = sum(each > 0 for each in apart)
    decided = mean.half_width is not None and abs(mean.value) > mean.half_width
    sure = "" if mean.half_width is None else f" +- {mean.half_width:.1f} (95 %, Student's t over pairs)"
    caught = (
        f"{len(findings)} self-checks spoke up, {findings[0].partition(':')[0]} first"
        if findings
        else "no self-check spoke up"
    )
    return [
        f"Seen: SLAT is {mean.value:+.1f} points from FGSM under attack at the same price, above it in {above} of {len(apart)} seeds; "
        f"of the network that was trained at too large a radius, {caught}.",
        f"How sure: the difference is {mean.value:+.1f}{sure}, so it is {'decided' if decided else 'not decided'} by these seeds; "
        "PGD-20 is an upper bound, AutoAttack is the figure to report.",
        f"Next: layerwise evaluate {ours[0]} --suite standard, or with pictures of your own "
        "in PICTURES/train/CLASS and PICTURES/test/CLASS: "
        "layerwise train slat-digits --data image-folder --data.root PICTURES",
    ]


def add_arguments(parser: Any) -> None:
    """The command's arguments."""
    add_runs(parser)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each method (default: 3)")
    add_quiet(parser)


def run(arguments: Any, settings: list[str]) -> None:
    """Show it."""
    from layerwise.cli.console import say, tell_messages

    tell_messages(quiet=arguments.quiet)
    say(demo(arguments.runs, seeds=arguments.seeds, progress=not arguments.quiet))


COMMAND = Command(
    summary="train standard, FGSM and SLAT on 100 digits, compare them, and catch a network that only looks robust",
    add_arguments=add_arguments,
    run=run,
)
