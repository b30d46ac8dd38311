"""A table of runs: one row a recipe, the mean over its seeds, intervals everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from layerwise.errors import CheckpointError
from layerwise.evaluation import Count, Estimate, Evaluation, mean_of
from layerwise.evaluation.record import escape
from layerwise.report.document import Table, shorten, table
from layerwise.report.history import read_history
from layerwise.report.pairs import Difference, difference, kept, signed
from layerwise.training.run import METRICS

SEED = re.compile(r"-seed\d+$")

WORST = "worst case"
"""The column of images that stay correct under every attack of the threat model."""


@dataclass(frozen=True)
class Standing:
    """One recipe.

    Args:
        name: of the runs without `-seedN`.
        seeds: how many runs.
        images: evaluated in each.
        cells: {attack: accuracy}.
        worst: accuracy where an image counts only if it stays correct under every attack of the threat model.
        train_seconds: mean training time, None where it was not recorded.
        findings: what the self-checks of any seed found.
        against: {attack: accuracy minus the baseline's}, "worst case" among them; empty of the baseline, and where a record does
            not say which images stay correct.
    """

    name: str
    seeds: int
    images: int
    cells: dict[str, Estimate]
    worst: Estimate
    train_seconds: float | None
    findings: tuple[str, ...]
    against: dict[str, Difference]


@dataclass(frozen=True)
class Comparison:
    """Runs evaluated on the same images in the same threat model.

    Args:
        data: name of the data set.
        threat: what against, as a sentence.
        rows: in the order in which they were given.
        baseline: the row that the others are compared with.
    """

    data: str
    threat: str
    rows: tuple[Standing, ...]
    baseline: str

    def table(self) -> Table:
        """The table; the best of a column is marked only where its interval overlaps no other's."""
        attacks = list(dict.fromkeys(a for row in self.rows for a in row.cells))
        columns = [[row.cells.get(attack) for row in self.rows] for attack in attacks]
        if len(attacks) > 2:
            attacks.append(WORST)
            columns.append([row.worst for row in self.rows])
        rows = []
        for index, row in enumerate(self.rows):
            cells = [ranged(column[index]) for column in columns]
            seconds = "" if row.train_seconds is None else f"{row.train_seconds:.1f}"
            rows.append((row.name, str(row.seeds), *cells, seconds))
        images = self.rows[0].images if self.rows else 0
        return Table(
            ("run", "seeds", *(shorten(attack, 40) for attack in attacks), "train s"),
            tuple(rows),
            f"Accuracy in % on {images} images of {self.data}, {self.threat}; [95 % intervals] over seeds (Student's t), "
            "or over images where there is one seed (Wilson).",
            frozenset(
                (i, 2 + j) for j, column in enumerate(columns) for i in range(len(rows)) if _stands_out(column, i)
            ),
        )

    def differences(self) -> Table | None:
        """How far every other row is from the baseline; None where there is nothing to compare."""
        shown = [row for row in self.rows if row.against]
        if not shown:
            return None
        attacks = list(dict.fromkeys(attack for row in shown for attack in row.against))
        found = [[row.against.get(attack) for attack in attacks] for row in shown]
        rows = []
        for row, each in zip(shown, found, strict=True):
            worst = row.against.get(WORST)
            said = (
                "" if worst is None else f"{worst.verdict} (p {'< 0.001' if worst.p < 0.001 else f'= {worst.p:.2g}'})"
            )
            rows.append((row.name, *("" if d is None else signed(d.points) for d in each), said))
        tests = " or ".join(dict.fromkeys(d.over for each in found for d in each if d is not None))
        return Table(
            ("run", *(shorten(attack, 40) for attack in attacks), "verdict on the worst case"),
            tuple(rows),
            f"Accuracy minus that of {self.baseline}, in points, with [95 % intervals]; tested on {tests}. "
            "Bold where it is decided, amber where it is lower.",
            frozenset(
                (i, 1 + j)
                for i, each in enumerate(found)
                for j, d in enumerate(each)
                if d is not None and d.verdict != "undecided"
            ),
        )

    def to_markdown(self) -> str:
        """Findings, the table, and the differences."""
        warnings = [f"> **Warning** {escape(row.name)}: {escape(f)}\n" for row in self.rows for f in row.findings]
        shown = self.table()
        tables = [shown, *([differences] if (differences := self.differences()) else [])]
        return "\n".join([*warnings, *(f"{escape(each.caption)}\n\n{table(each)}\n" for each in tables)])


def _stands_out(column: Sequence[Estimate | None], index: int) -> bool:
    cell, others = column[index], [c for i, c in enumerate(column) if i != index and c is not None]
    return cell is not None and bool(others) and cell.low > max(other.high for other in others)


def ranged(estimate: Estimate | None, unit: str = "") -> str:
    """A share in percent with its interval.

    >>> ranged(Estimate(0.99, 0.95, 1.0), " %")
    '99.0 % [95.0, 100.0]'
    """
    if estimate is None:
        return ""
    return f"{100 * estimate.value:.1f}{unit} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def grouped(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """{name: run folders}: those beside each other whose names differ in `-seedN` only belong together; each counts once."""
    groups: dict[Path, list[Path]] = {}
    for path, folder in {Path(folder).resolve(): Path(folder) for folder in folders}.items():
        groups.setdefault(path.with_name(SEED.sub("", path.name)), []).append(folder)
    names = [path.name for path in groups]
    shown = [path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}" for path in groups]
    # Names have to differ: they are what tells the rows apart.
    unique = [name if shown.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(shown)]
    return dict(zip(unique, groups.values(), strict=True))


def compare(folders: Sequence[Path], *, record: str = "evaluation") -> Comparison:
    """Read the evaluations of finished runs.

    Args:
        folders: run folders; those beside each other whose names differ in `-seedN` only make one row.
        record: name of the record in each folder, without `.json`.

    Raises:
        CheckpointError: a folder holds no such record, or the runs were evaluated on different images or in different threat models.
    """
    groups = grouped(folders)
    return compared(groups, {f: Evaluation.read(f, record) for members in groups.values() for f in members})


def compared(
    groups: Mapping[str, Sequence[Path]], read: Mapping[Path, Evaluation], *, baseline: str | None = None
) -> Comparison:
    """The table of runs that are read already, against one of the groups, by default the first; see `compare`."""
    (one, first), *others = read.items()
    for folder, evaluation in others:
        if _circumstances(evaluation) != _circumstances(first):
            raise CheckpointError(
                f"{folder} was evaluated in {_told(evaluation)}, {one} in {_told(first)}: evaluate them alike, with the "
                "same settings and one --record NAME, and report that record"
            )
    base = next(iter(groups)) if baseline is None else baseline
    against = [read[folder] for folder in groups[base]]
    rows = tuple(
        _row(name, [read[f] for f in members], members, () if name == base else against)
        for name, members in groups.items()
    )
    return Comparison(first.data.name, str(first.threat), rows, base)


def _circumstances(evaluation: Evaluation) -> tuple[object, ...]:
    """What has to be equal in one table: threat model and images."""
    data = evaluation.data
    return evaluation.threat, data.name, data.size, data.seed, data.fingerprint, evaluation.worst.total


def _told(evaluation: Evaluation) -> str:
    data = evaluation.data
    chosen = f"{evaluation.worst.total} of {data.size} images of {data.name}"
    return f"{evaluation.threat} on {chosen} (seed {data.seed}, the first ones' digest {data.fingerprint})"


def _row(name: str, evaluations: Sequence[Evaluation], folders: Iterable[Path], base: Sequence[Evaluation]) -> Standing:
    attacks = [r.attack for r in evaluations[0].results]
    for evaluation in evaluations:
        if [r.attack for r in evaluation.results] != attacks:
            raise CheckpointError(f"the seeds of {name} were evaluated under different attacks; evaluate them alike")
    histories = (read_history(folder / METRICS) for folder in folders)
    seconds = [s for history in histories if (s := history.seconds) is not None]
    return Standing(
        name=name,
        seeds=len(evaluations),
        images=evaluations[0].worst.total,
        cells={attack: cell([e[attack].count for e in evaluations]) for attack in attacks},
        worst=cell([e.worst for e in evaluations]),
        train_seconds=sum(seconds) / len(seconds) if seconds else None,
        findings=tuple(dict.fromkeys(str(finding) for e in evaluations for finding in e.findings)),
        against=_against(evaluations, base) if base else {},
    )


def _against(own: Sequence[Evaluation], base: Sequence[Evaluation]) -> dict[str, Difference]:
    """The differences under every attack that both were evaluated under, and in the worst case where all are the same."""
    theirs = [result.attack for result in base[0].results]
    attacks: dict[str, str | None] = {r.attack: r.attack for r in own[0].results if r.attack in theirs}
    if list(attacks) == theirs and len(theirs) == len(own[0].results):
        attacks[WORST] = None
    found = {
        name: difference([kept(e, attack) for e in own], [kept(e, attack) for e in base])
        for name, attack in attacks.items()
    }
    return {name: each for name, each in found.items() if each is not None}


def cell(counts: Sequence[Count]) -> Estimate:
    """The mean over seeds, or one seed's share."""
    mean = mean_of([count.accuracy for count in counts])
    if mean.half_width is None:
        return Estimate(mean.value, *counts[0].interval)
    # Student's interval of a share near an end would leave [0, 1].
    return Estimate(mean.value, max(0.0, mean.value - mean.half_width), min(1.0, mean.value + mean.half_width))
