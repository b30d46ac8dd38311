"""Errors under common corruptions, and flips within sequences, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

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
    """Whose errors count as 100 %: the baseline that was named, else the first recipe of standard training, else the first."""
    named = (entry for entry in entries if entry.named)
    return next(named, next((entry for entry in entries if entry.first.method == "Standard"), entries[0]))


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
    """Mean accuracies first: a ratio of two small errors says little, and one to errors on fewer than ten images nothing."""
    measured = [entry for entry in entries if entry.first.evaluation.found(CorruptionErrors)]
    found, problems = _against(entries, base, CorruptionErrors, CorruptionScores)
    yield from (Text(f"No mCE: {problem}") for problem in problems)
    few = [name for errors in base.first.evaluation.found(CorruptionErrors)[:1] for name in _few(errors)]
    rows = []
    for entry in measured:
        scores = found.get(entry.name, [])
        means = [_ratio(entry is base, group) for group in zip(*map(_means, scores), strict=True)]
        means = [""] * 4 if few or not means else means
        rows.append((entry.name, _mean_accuracy(entry), _base(scores[0], base) if scores and not few else "", *means))
    relative = ", ".join(sorted({s.relative for scores in found.values() for s in scores})) or "differences"
    if rows:
        yield Table(
            ("run", "mean accuracy", "base", "mCE", f"relative mCE ({relative})", "mCE of the extra ones", "relative"),
            tuple(rows),
            "Mean accuracy under corruptions in %, higher is better; beside it corruption errors in % of the base's (mCE; lower is "
            f"better), means of the {len(STANDARD)} standard and the {len(EXTRA)} extra corruptions where all were measured. "
            "Intervals of ratios take the base's errors as they are.",
            sorts=True,
        ).without_empty_columns()
    if few and found:
        yield Text(
            f"No ratio to {base.name} where it erred on fewer than {FEWEST} images, since chance decides that: under "
            f"{', '.join(map(_spaced, few))}; so no mean over all of them either."
        )
    kinds = dict.fromkeys(kind for group in found.values() for kind in group[0].ce if kind not in few)
    if kinds and found:
        ce = [
            (
                _spaced(kind),
                *(_ratio(name == base.name, [s.ce.get(kind) for s in group]) for name, group in found.items()),
            )
            for kind in kinds
        ]
        yield Table(("corruption", *found), tuple(ce), "CE of each corruption, in % of the base's errors.")


FEWEST = 10
"""Images that the base errs on from which on others' errors are counted in percent of its."""


def _means(scores: CorruptionScores) -> tuple[Percent | None, ...]:
    return scores.mce, scores.relative_mce, scores.extra_mce, scores.extra_relative_mce


def _few(base: CorruptionErrors | FlipProbabilities) -> list[str]:
    """The corruptions or sequences under which the base erred, or flipped, on too few images to divide by.

    The same images are wrong at every severity: (sum of times)^2 / sum of times^2 is how many images that is worth.
    """
    sums = base.sums
    found = zip(base.counted, sums.firsts, range(len(sums.firsts)), strict=True)
    return [n for n, first, i in found if first**2 < FEWEST * sums.products[i][i] or first < FEWEST if n != "clean"]


def _ratio(itself: bool, values: Sequence[Percent | None]) -> str:
    """A mean ratio, the base's own without an interval."""
    return f"{values[0].value:.0f}" if itself and values and values[0] is not None else _mean(values)


def _mean_accuracy(entry: Group) -> str:
    """The mean accuracy over the standard corruptions, or over those that were measured where some are missing."""
    found = []
    for run in entry.runs:
        for errors in run.evaluation.found(CorruptionErrors)[:1]:
            names = (
                [n for n in errors.counts if n in STANDARD]
                if set(STANDARD) <= set(errors.counts)
                else list(errors.counts)
            )
            weights = dict.fromkeys(names, 100 / (len(names) * 5 * errors.images))
            wrong = errors.sums.percent(weights, errors.counted, errors.images)
            found.append(Percent(100 - wrong.value, wrong.half_width))
    return _mean(found, most=100.0)


def _rates(entries: Sequence[Group], base: Group) -> Iterator[Block]:
    measured = {e.name: [s for run in e.runs for s in run.evaluation.found(FlipProbabilities)[:1]] for e in entries}
    measured = {name: group for name, group in measured.items() if group}
    if not measured:
        return
    found, problems = _against(entries, base, FlipProbabilities, FlipRates)
    yield from (Text(f"No mFR: {problem}") for problem in problems)
    first, rows = next(iter(measured.values()))[0], []
    base_flips = base.first.evaluation.found(FlipProbabilities)[:1]
    if few := [name for each in base_flips for name in _few(each)]:
        yield Text(f"No mFR: {base.name} flipped on fewer than {FEWEST} images under {', '.join(map(_spaced, few))}.")
    elif found:
        against = sorted({_base(group[0], base) for group in found.values()})
        mean = [_ratio(name == base.name, [rates.mfr for rates in found.get(name, [])]) for name in measured]
        rows += [(f"mFR, % of {', '.join(against)}", *mean)] if any(mean) else []
    for kind in dict.fromkeys(kind for group in measured.values() for kind in group[0].flips):
        each = (_mean(f.probability(kind) if kind in f.flips else None for f in group) for group in measured.values())
        rows.append((_spaced(kind), *each))
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


def _mean(values: Iterable[Percent | None], *, most: float = math.inf) -> str:
    """The mean over seeds; one seed has its own interval over images."""
    found = [value for value in values if value is not None]
    if not found:
        return ""
    mean = mean_of([value.value for value in found])
    arm = found[0].half_width if mean.half_width is None else mean.half_width
    if arm is None:
        return f"{mean.value:.1f}"
    return f"{mean.value:.1f} [{max(0.0, mean.value - arm):.1f}, {min(most, mean.value + arm):.1f}]"
