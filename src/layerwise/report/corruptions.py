"""Errors under common corruptions, and flips within sequences, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from layerwise.errors import LayerwiseError
from layerwise.evaluation import mean_of
from layerwise.evaluation.corruptions import (
    EXTRA,
    STANDARD,
    CorruptionErrors,
    CorruptionScores,
    FlipProbabilities,
    FlipRates,
    Percent,
)
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.style import COLOURS, canvas, describe, legend_below, styled
from layerwise.report.document import Block, Table, Text
from layerwise.report.figures import labels, picture
from layerwise.report.runs import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

M = TypeVar("M", CorruptionErrors, FlipProbabilities)
S = TypeVar("S", CorruptionScores, FlipRates)


def corruptions(entries: Sequence[Group]) -> Iterator[Block]:
    """Bars, and mCE, relative mCE and mFR where there is a base model to compare with."""
    measured = [entry for entry in entries if entry.first.evaluation.found(CorruptionErrors)]
    if measured:
        images = {e.images for entry in measured for run in entry.runs for e in run.evaluation.found(CorruptionErrors)}
        caption = f"Mean over severities 1 to 5 on {' or '.join(map(str, sorted(images)))} images; shorter is better."
        yield picture(lambda: _bars(measured), title="Errors under corruptions", caption=caption)
    base = base_of(entries)
    yield from _scores(entries, base)
    yield from _rates(entries, base)


def base_of(entries: Sequence[Group]) -> Group:
    """Whose errors count as 100 %: the first recipe of standard training, else the first."""
    return next((entry for entry in entries if entry.first.method == "Standard"), entries[0])


def _errors(entry: Group) -> dict[str, list[float]]:
    """{corruption: each seed's error in %}; "clean" is none."""
    found: dict[str, list[float]] = {}
    for run in entry.runs:
        for errors in run.evaluation.found(CorruptionErrors)[:1]:
            found.setdefault("clean", []).append(100 * (1 - errors.clean.accuracy))
            for name in errors.counts:
                found.setdefault(name, []).append(100 * errors.error(name))
    return found


def _bars(entries: Sequence[Group]) -> Figure:
    errors = [_errors(entry) for entry in entries]
    names = list(dict.fromkeys(name for each in errors for name in each))
    thick = 0.8 / len(entries)
    with styled():
        figure, (axes,) = canvas(height=1.2 + 0.1 * len(names) * max(2, len(entries)))
        said = []
        shown = zip(entries, errors, labels(e.name for e in entries), strict=True)
        for index, (entry, each, label) in enumerate(shown):
            values = {name: mean_of(found).value for name, found in each.items()}
            at = [names.index(name) + (index - (len(entries) - 1) / 2) * thick for name in values]
            colour = COLOURS[index % len(COLOURS)]
            axes.barh(at, list(values.values()), height=0.9 * thick, color=colour, label=label)
            worst = max(values, key=values.__getitem__)
            said.append(f"{entry.name}: {values['clean']:.1f} % clean, at most {values[worst]:.1f} % ({worst})")
        axes.set_yticks(range(len(names)), [_spaced(name) for name in labels(names)])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set(xlabel="error (%)", title="Errors under corruptions")
        axes.grid(False, axis="y")
        if len(entries) > 1:
            legend_below(figure, axes)
    return describe(figure, f"Errors under corruptions. {'; '.join(said)}.")


def _scores(entries: Sequence[Group], base: Group) -> Iterator[Block]:
    found, problems = _against(entries, base, CorruptionErrors, CorruptionScores)
    yield from (Text(f"No mCE: {problem}") for problem in problems)
    if not found:
        return
    relative = ", ".join(sorted({scores.relative for group in found.values() for scores in group}))
    rows = [
        (name, _base(group[0], base), *(_mean(values) for values in zip(*map(_means, group), strict=True)))
        for name, group in found.items()
    ]
    yield Table(
        ("run", "base", "mCE", f"relative mCE ({relative})", "mCE of the extra ones", "relative"),
        tuple(rows),
        f"Corruption errors in % of the base model's, means of the {len(STANDARD)} standard and {len(EXTRA)} extra corruptions where all "
        "were measured; lower is better. Intervals take the base model's errors as they are.",
    ).without_empty_columns()
    kinds = dict.fromkeys(kind for group in found.values() for kind in group[0].ce)
    ce = [(_spaced(kind), *(_mean(s.ce.get(kind) for s in group) for group in found.values())) for kind in kinds]
    yield Table(("corruption", *found), tuple(ce), "CE of each corruption, in % of the base model's errors.")


def _means(scores: CorruptionScores) -> tuple[Percent | None, ...]:
    return scores.mce, scores.relative_mce, scores.extra_mce, scores.extra_relative_mce


def _rates(entries: Sequence[Group], base: Group) -> Iterator[Block]:
    measured = {e.name: [s for run in e.runs for s in run.evaluation.found(FlipProbabilities)[:1]] for e in entries}
    measured = {name: group for name, group in measured.items() if group}
    if not measured:
        return
    found, problems = _against(entries, base, FlipProbabilities, FlipRates)
    yield from (Text(f"No mFR: {problem}") for problem in problems)
    first = next(iter(measured.values()))[0]
    rows = []
    if found:
        against = sorted({_base(group[0], base) for group in found.values()})
        mean = [_mean(rates.mfr for rates in found.get(name, [])) for name in measured]
        rows += [(f"mFR, % of {', '.join(against)}", *mean)] if any(mean) else []
    for kind in dict.fromkeys(kind for group in measured.values() for kind in group[0].flips):
        flips = (_mean(f.probability(kind) if kind in f.flips else None for f in group) for group in measured.values())
        rows.append((_spaced(kind), *flips))
    yield Table(
        ("sequence", *measured),
        tuple(rows),
        f"Flip probability in %, by the rule '{first.rule}', over {first.images} sequences of each kind; lower is better.",
    )


def _base(scores: CorruptionScores | FlipRates, base: Group) -> str:
    """What to call the base model: the page's name for it where it is on the page."""
    on_page = {
        measured.model.fingerprint
        for measured in base.first.measurements
        if isinstance(measured, CorruptionErrors | FlipProbabilities)
    }
    return base.name if scores.base.fingerprint in on_page else scores.base.name


def _spaced(kind: str) -> str:
    return kind.replace("_", " ")


def _against(
    entries: Sequence[Group], base: Group, measured: type[M], scored: type[S]
) -> tuple[dict[str, list[S]], list[str]]:
    """Each recipe's scores, one a seed: those in the records, where a base was named then, else against the page's base model."""
    found: dict[str, list[S]] = {}
    problems: list[str] = []
    reference = base.first.evaluation.found(measured)
    for entry in entries:
        for run in entry.runs:
            kept, own = run.evaluation.found(scored), run.evaluation.found(measured)
            try:
                if not kept and own and reference and len(entries) > 1:
                    score: Measurement | None = own[0].against(reference[0])
                    kept = [score] if isinstance(score, scored) else []
            except LayerwiseError as error:
                problems.append(f"{error} (base model: {base.name}).")
            found.setdefault(entry.name, []).extend(kept[:1])
    return {name: scores for name, scores in found.items() if scores}, list(dict.fromkeys(problems))


def _mean(values: Any) -> str:
    """The mean over seeds; one seed has its own interval over images."""
    found: list[Percent] = [value for value in values if value is not None]
    if len(found) < 2:
        return str(found[0]).replace("+-", "±") if found else ""
    mean = mean_of([value.value for value in found])
    return f"{mean.value:.1f} ± {mean.half_width:.1f}"
