"""Tables about how the runs came about: perturbations by layer, cost, settings, provenance."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from layerwise.core.checks import format_radius
from layerwise.core.cost import duration
from layerwise.report.document import Block, Folded, Table, Text, shorten
from layerwise.report.history import Line, number
from layerwise.report.runs import Group, RunRead, Trained, Waiting, evaluated_in_python
from layerwise.trees import dump_yaml


def perturbations(entries: Sequence[Group]) -> Iterator[Block]:
    """Sizes of the perturbations at each site, at the training's beginning and end."""
    for entry in entries:
        rows = tuple((site, *_sizes(lines)) for site, lines in entry.first.history.sites().items())
        if rows:
            yield Table(
                (
                    "site",
                    "RMS first",
                    "RMS last",
                    "largest entry",
                    "relative first",
                    "relative last",
                    "least surviving",
                ),
                rows,
                f"{entry.name}: RMS and largest entry in units of the activation, l2 size relative to the activation's, and the share of "
                "the perturbation's effect that survives rounding (below 90 % is too little).",
            )


def _sizes(lines: Sequence[Line]) -> Iterator[str]:
    first, last = lines[0], lines[-1]
    survival = [s for line in lines if math.isfinite(s := number(line.get("survival")))]
    largest = [m for line in lines if math.isfinite(m := number(line.get("max")))]
    yield _short(number(first.get("rms")))
    yield _short(number(last.get("rms")))
    yield _short(max(largest, default=math.nan))
    yield _percent(number(first.get("relative")))
    yield _percent(number(last.get("relative")))
    yield _percent(min(survival, default=math.nan))


def cost(entries: Sequence[Group]) -> Iterator[Block]:
    """Passes, seconds, images a second, memory."""
    rows = []
    for entry in entries:
        runs, seconds = entry.runs, entry.row.train_seconds
        rates = [rate for run in runs if (rate := run.history.images_per_second) is not None]
        attacking = [sum(r.seconds for r in run.evaluation.results) for run in runs]
        rows.append(
            (
                entry.name,
                entry.first.method,
                entry.first.history.passes,
                "" if seconds is None else duration(seconds),
                f"{sum(rates) / len(rates):,.0f}" if rates else "",
                duration(sum(attacking) / len(attacking)),
                _device(entry.first),
            )
        )
    header = ("run", "method", "passes a batch", "training", "images/s", "attacks", "device")
    caption = (
        "Means over the seeds. Passes are forward, to the activations and to the weights; standard training has 3."
    )
    yield Table(header, tuple(rows), caption).without_empty_columns()
    if run := next((entry.first for entry in entries if not entry.first.own), None):
        yield Text("Training records no memory; an estimate comes from:", f"layerwise train {_again(run)} --dry-run")


def _device(run: RunRead) -> str:
    gpus = run.versions.get("gpus")
    names = ", ".join(map(str, gpus)) if isinstance(gpus, list) else ""
    return names or str(run.versions.get("device", ""))


def settings(entries: Sequence[Group | Waiting]) -> Iterator[Block]:
    """What differs between the recipes, and every setting of each."""
    known = [entry for entry in entries if entry.first.config]
    leaves = [dict(_leaves(entry.first.config)) for entry in known]
    names = dict.fromkeys(name for each in leaves for name in each)
    differing = [name for name in names if len({each.get(name) for each in leaves}) > 1]
    if differing:
        rows = tuple((name, *(shorten(each.get(name, ""), 60) for each in leaves)) for name in differing)
        caption = "Settings that differ; blank where a run has no such setting."
        yield Table(("setting", *(entry.name for entry in known)), rows, caption, numbers=False)
    for entry in known:
        yield Folded(f"Every setting of {entry.name}", tuple(dump_yaml(entry.first.config).rstrip().splitlines()))


def provenance(entries: Sequence[Group], record: str) -> Iterator[Block]:
    """What the figures were measured on and with, and how to repeat them."""
    rows = []
    for entry in entries:
        for run in entry.runs:
            e = run.evaluation
            rows.append(
                (
                    str(run.folder),
                    e.model.name,
                    f"{e.model.parameters:,}",
                    e.model.fingerprint,
                    f"{e.worst.total:,} of {e.data.size:,} of {e.data.name}",
                    e.data.fingerprint,
                    f"{e.data.seed} / {_seed(run)}",
                    f"{e.batch_size} / {e.eot}",
                    e.device,
                )
            )
    header = ("folder", "network", "parameters", "weights' digest", "images", "their digest", "seed: attacks / training",
              "batch / averaged passes", "device")  # fmt: skip
    yield Table(header, tuple(rows), "What was evaluated.", numbers=False)
    attacks = tuple(
        (entry.name, shorten(r.attack), ", ".join(f"{k} {_setting(v)}" for k, v in r.settings.items() if k != "name"),
         f"{r.seconds:.1f}", f"{r.count.correct} / {r.count.total}", _interval(r.count.interval))
        for entry in entries for r in entry.first.evaluation.results
    )  # fmt: skip
    yield Table(
        ("run", "attack", "settings", "seconds", "correct", "95 % interval"), attacks, "Every attack, of the first seed.", numbers=False
    )  # fmt: skip
    told: dict[str, list[str]] = {}
    for entry in entries:
        told.setdefault(_made_with(entry.first), []).append(entry.name)
    yield from (Text(f"{', '.join(names)}: {text}") for text, names in told.items())
    for entry in entries:
        if entry.first.own:
            yield Text(f"{entry.name} was trained in Python, by layerwise.fit, of what has no name.")
        else:
            again = f"{_again(entry.first)} --name {shlex.quote(entry.first.folder.name + '-again')}"
            yield Text(f"Train {entry.name} again:", f"layerwise train {again}")
        yield from evaluated_again(f"Evaluate {entry.name} again:", [entry.first], record)
    for entry in entries:
        for run in entry.runs:
            yield from (Text(f"{run.folder}: {problem}") for problem in run.problems)


def evaluated_again(text: str, runs: Sequence[RunRead], record: str, more: Sequence[str] = ()) -> Iterator[Text]:
    """What repeats evaluations, whatever the first was asked for with, and more measures: they take the records' place.

    One command, and a call in Python for each run of a network that no command can make again.
    """
    e = runs[0].evaluation
    attacks, examples = [result.attack for result in e.results], e.worst.total
    measures = [*(m.measure for m in e.measures), *more]
    if folders := " ".join(shlex.quote(str(run.folder)) for run in runs if not run.own):
        parts = [f"layerwise evaluate {folders} --record {shlex.quote(record)}"]
        parts += [f"--threat.norm {e.threat.norm} --threat.eps {format_radius(e.threat.eps)}"]
        parts += [f"--evaluation.attacks {shlex.quote('[' + ', '.join(attacks) + ']')}"]
        parts += [f"--num-examples {examples} --seed {e.data.seed}"]
        parts += [f"--evaluation.eot {e.eot}"] if e.eot > 1 else []
        # A comma separates the items of a list, unless the item is in quotes.
        listed = ", ".join(json.dumps(each) if "," in each else each for each in measures)
        parts += [f"--evaluation.measures {shlex.quote('[' + listed + ']')}"] if measures else []
        yield Text(text, " ".join(parts))
    options = [f"threat=layerwise.{e.threat!r}", f"attacks={attacks}", f"num_examples={examples}"]
    options += [f"seed={e.data.seed}", *([f"eot={e.eot}"] if e.eot > 1 else [])]
    options += [f"measures={measures}"] if measures else []
    for run in runs:
        if run.own:
            yield Text(text, evaluated_in_python(run.folder, record, *options))


def _made_with(run: RunRead) -> str:
    packages = run.versions.get("packages")
    trained = (
        ", ".join(f"{k} {v}" for k, v in packages.items()) if isinstance(packages, dict) else "what was not recorded"
    )
    machine = [str(run.versions[k]) for k in ("platform", "processor") if k in run.versions]
    evaluated = ", ".join(f"{k} {v}" for k, v in run.evaluation.versions.items())
    return f"{'; '.join([f'trained with {trained}', *machine])}; evaluated with {evaluated}."


def _leaves(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Every setting with its dotted name."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{at}.{key}" if at else str(key))
    else:
        yield at, "null" if value is None else str(value)


def _seed(run: RunRead) -> str:
    training = run.config.get("training")
    return str(training.get("seed", "")) if isinstance(training, dict) else ""


def _again(run: Trained) -> str:
    return shlex.quote(str(run.folder / "config.yaml"))


def _setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _interval(bounds: tuple[float, float]) -> str:
    return f"{100 * bounds[0]:.2f} to {100 * bounds[1]:.2f} %"


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else ""


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %" if math.isfinite(value) else ""
