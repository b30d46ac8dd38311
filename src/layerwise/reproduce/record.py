"""Records of tables: ours beside the paper's, as JSON; differences, intervals and verdicts are computed from its numbers alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

from layerwise.errors import CheckpointError, ConfigError
from layerwise.evaluation.intervals import Estimate, mean_of
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.record import unpack
from layerwise.reading import read_record
from layerwise.reproduce.bench import Outcome
from layerwise.reproduce.claims import HOLDS, OPEN, Cells, verdict
from layerwise.reproduce.definitions import PERCENT
from layerwise.reproduce.papers import Printed, to_json

FORMAT, VERSION = "layerwise-reproduction", 1

SEED_NOISE = {PERCENT: 0.5, "epochs": 0.0, "a batch": 0.0}
"""Half width that one seed alone gets, in the column's unit: runs of one recipe differed by so much (points of accuracy); counts
are exact."""

RELATIVE_NOISE = 0.05
"""The same for other units, as a share of the number."""

PRINTED = " (printed)"
"""After a row's name in a claim: the paper's number."""


@final
@dataclass(frozen=True, kw_only=True)
class ColumnRecord:
    """A column: its name, its unit and what was run for it."""

    name: str
    unit: str
    what: str


@final
@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """A cell.

    Args:
        paper: digits as printed; None if there are none.
        ours: an outcome for each seed.
        failures: sentences about seeds that gave nothing.
    """

    paper: str | None = None
    ours: tuple[Outcome, ...] = ()
    failures: tuple[str, ...] = ()

    def measured(self, unit: str) -> Estimate | None:
        """The mean over seeds with its interval; None without an outcome.

        The parts add as squares: the images' (the mean of the seeds' intervals, since all are evaluated on the same images), and the
        seeds' (Student's t; for one seed `SEED_NOISE`, or `RELATIVE_NOISE`).
        """
        if not self.ours:
            return None
        values = [outcome.value for outcome in self.ours]
        mean = mean_of(values)
        noise = SEED_NOISE.get(unit, RELATIVE_NOISE * abs(mean.value)) if mean.half_width is None else mean.half_width
        below, above = (
            math.hypot(noise, sum(abs(getattr(o, side) - o.value) for o in self.ours) / len(self.ours))
            for side in ("low", "high")
        )
        least = 0.0 if mean.value >= 0 else -math.inf  # but for alignment, no measure is negative
        return Estimate(mean.value, max(least, mean.value - below), mean.value + above)


@final
@dataclass(frozen=True, kw_only=True)
class RowRecord:
    """A row: its runs, one a seed, and its cells by column.

    Args:
        name: the paper's name of it.
        runs: names of the run folders.
        cells: by column.
        at: place on the horizontal axis, of an item that is drawn.
        series: curve that it belongs to.
    """

    name: str
    runs: tuple[str, ...]
    cells: dict[str, CellRecord]
    at: float | None
    series: str


@final
@dataclass(frozen=True, kw_only=True)
class ClaimRecord:
    """A claim, its predicate, and what came out.

    Args:
        id: a short name.
        says: the sentence.
        predicate: see `layerwise.reproduce.claims`.
        in_paper: verdict on the paper's own numbers.
        verdict: on ours.
        would_be: on ours without intervals.
    """

    id: str
    says: str
    predicate: dict[str, Any]
    in_paper: str = OPEN
    verdict: str = OPEN
    would_be: str = OPEN


@final
@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture beside the record: its file, what it shows in words, and what a diagnostic found, by row."""

    file: str
    alt: str
    data: dict[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True, kw_only=True)
class Record:
    """What came of a table or figure.

    Args:
        item: its id.
        title: what it shows.
        paper: authors, year and title.
        scale: its name.
        scale_title: what that is.
        decides: whether claims can be decided at it.
        seeds: of each row.
        columns: in order.
        rows: in order.
        claims: in order.
        pictures: of a figure.
        axis: label of the horizontal axis, of a table that is drawn.
        controls: rows that the others are compared with, image by image.
        notes: what a reader has to know.
        failures: sentences about what could not be drawn.
        hardware: what computed.
        versions: of packages.
        complete: False while there is more to do.
    """

    item: str
    title: str
    paper: str
    scale: str
    scale_title: str
    decides: bool
    seeds: tuple[int, ...]
    columns: tuple[ColumnRecord, ...]
    rows: tuple[RowRecord, ...]
    claims: tuple[ClaimRecord, ...]
    pictures: tuple[Picture, ...]
    axis: str
    notes: tuple[str, ...]
    failures: tuple[str, ...]
    hardware: str
    versions: dict[str, str]
    complete: bool
    controls: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Time that the measures took."""
        return sum(outcome.seconds for row in self.rows for cell in row.cells.values() for outcome in cell.ours)

    def cells(self) -> Cells:
        """Our numbers, for claims; `ROW (printed)` is the paper's."""
        units = {column.name: column.unit for column in self.columns}
        rows = {row.name: row for row in self.rows}

        def read(name: str, column: str) -> Estimate | None:
            if name.endswith(PRINTED):
                return self.printed().read(name.removesuffix(PRINTED), column)
            if name not in rows:
                return self._drawn(name, column)
            cell = rows[name].cells.get(column)
            return None if cell is None else cell.measured(units[column])

        return Cells(tuple(rows), read, {row.name: row.runs for row in self.rows})

    def _drawn(self, name: str, field: str) -> Estimate | None:
        """A number of what a picture shows, where there is no table: of the toys."""
        for picture in self.pictures:
            if "kind" in (shown := picture.data.get(name, {})):
                return Estimate.exactly(getattr(Measurement.from_dict(shown, source=self.item), field))
        return None

    def printed(self) -> Cells:
        """The paper's numbers, for claims; a printed deviation is taken as the half width."""
        rows = {row.name: row for row in self.rows}

        def read(name: str, column: str) -> Estimate | None:
            name = name.removesuffix(PRINTED)
            cell = rows[name].cells.get(column) if name in rows else None
            if cell is None or cell.paper is None:
                return None
            found = Printed.read(cell.paper)
            half = found.deviation or 0.0
            return Estimate(found.value, found.value - half, found.value + half)

        known = tuple(n for n, row in rows.items() if any(cell.paper is not None for cell in row.cells.values()))
        return Cells(known, read)

    def with_verdicts(self) -> Record:
        """The same with its verdicts computed from its numbers."""
        ours, theirs = self.cells(), self.printed().points()

        def with_verdicts(claim: ClaimRecord) -> ClaimRecord:
            return ClaimRecord(
                id=claim.id,
                says=claim.says,
                predicate=claim.predicate,
                in_paper=verdict(claim.predicate, theirs),
                verdict=verdict(claim.predicate, ours) if self.decides else OPEN,
                would_be=verdict(claim.predicate, ours.points()),
            )

        return Record(**{**self.__dict__, "claims": tuple(map(with_verdicts, self.claims))})

    def to_json(self) -> str:
        """The record as JSON text, with each cell's mean, interval and difference for those who read it without us."""
        body = asdict(self)
        units = {column.name: column.unit for column in self.columns}
        for row, plain in zip(self.rows, body["rows"], strict=True):
            for name, cell in row.cells.items():
                plain["cells"][name]["summary"] = summary(cell, units[name])
                for outcome in plain["cells"][name]["ours"]:
                    if not outcome["kept"]:
                        del outcome["kept"]  # most items do without
        return to_json({"format": FORMAT, "version": VERSION, **body})

    @classmethod
    def from_json(cls, text: str, *, source: str) -> Record:
        """Read what `to_json` wrote; verdicts and summaries are computed anew.

        Raises:
            CheckpointError: it is damaged, or something else.
        """
        body = unpack(text, format=FORMAT, version=VERSION, what="the record of a reproduction", source=source)
        try:
            for row in body["rows"]:
                for cell in row["cells"].values():
                    cell.pop("summary", None)
        except (TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{source} is corrupt: it has no rows of cells ({error})") from error
        found: Record = read_record(cls, body, source=source)
        try:
            return found.with_verdicts()
        except ConfigError as error:
            raise CheckpointError(f"{source} is corrupt: {error}") from error

    @property
    def held(self) -> tuple[int, int]:
        """How many claims hold, and how many are decided."""
        decided = [claim for claim in self.claims if claim.verdict != OPEN]
        return sum(claim.verdict == HOLDS for claim in decided), len(decided)


def summary(cell: CellRecord, unit: str) -> dict[str, float] | None:
    """Mean, interval, and the difference to the paper's number."""
    found = cell.measured(unit)
    if found is None:
        return None
    values: Mapping[str, float] = {"value": found.value, "low": found.low, "high": found.high}
    paper = {} if cell.paper is None else {"difference": found.value - Printed.read(cell.paper).value}
    return {key: round(value, 6) for key, value in {**values, **paper}.items()}


def nothing_ran(record: Record) -> bool:
    """Whether there is not one number and not one picture, though there should be."""
    return not record.pictures and not any(cell.ours for row in record.rows for cell in row.cells.values())


def failures(record: Record) -> Sequence[str]:
    """Every sentence about what could not be done, once, with the places it concerns."""
    return _grouped(record, lambda cell: cell.failures, record.failures)


def findings(record: Record) -> Sequence[str]:
    """The self-checks of the evaluations that spoke up, likewise; what each found is in the record."""
    return _grouped(record, lambda cell: [f.partition(":")[0] for o in cell.ours for f in o.findings], ())


def _grouped(record: Record, texts: Callable[[CellRecord], Iterable[str]], others: Iterable[str]) -> Sequence[str]:
    where: dict[str, list[str]] = {text: [] for text in others}
    for row in record.rows:
        for column, cell in row.cells.items():
            for text in dict.fromkeys(texts(cell)):
                where.setdefault(text, []).append(f"{row.name} / {column}")
    return [f"{text} ({_some(places)})" if places else text for text, places in where.items()]


def _some(places: Sequence[str]) -> str:
    return "; ".join(places[:3]) + (f"; and {len(places) - 3} more" if len(places) > 3 else "")
