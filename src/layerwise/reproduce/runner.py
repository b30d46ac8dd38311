"""Run the tables: train what is missing, measure every cell, write the record after every row."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from layerwise.errors import ConfigError, LayerwiseError
from layerwise.experiments import experiment
from layerwise.reproduce.bench import Bench, Outcome, attempt
from layerwise.reproduce.definitions import Column, Item, Row
from layerwise.reproduce.index import write_index
from layerwise.reproduce.measures import measured
from layerwise.reproduce.papers import paper
from layerwise.reproduce.record import CellRecord, ClaimRecord, ColumnRecord, Picture, Record, RowRecord
from layerwise.reproduce.render import record_file, write
from layerwise.reproduce.scales import Scale
from layerwise.reproduce.systems import resolve
from layerwise.training.run import versions

logger = logging.getLogger("layerwise")

PLACE = "reproduce"
"""Folder of the runs, below that of all runs."""

AND = " and "
"""Between the machines of a record whose rows are from several."""

TOLD = 3
"""So many ways in which a column was measured stand below a table; its rows may differ in radius."""


def reproduce(
    chosen: Sequence[Item],
    scale: Scale,
    *,
    output: Path,
    runs: Path,
    rows: Sequence[str] = (),
    progress: bool = False,
) -> Iterator[Record]:
    """Run items one after the other; each record is given when it is complete.

    What was trained or measured before is reused, what was interrupted goes on, what fails is told in the record and stops nothing.

    Args:
        chosen: tables and figures.
        scale: how much is done.
        output: folder of the results.
        runs: folder of the run folders.
        rows: patterns such as `LeNet*`: only the rows that match one are run, the others stay as an earlier record has them; empty is all.
        progress: show progress where a person watches.

    Raises:
        ConfigError: no row of an item matches a pattern.
    """
    for item in chosen:
        _matching(item, rows)
    for number, item in enumerate(chosen, start=1):
        logger.info("%s (%s of %s): %s", item.id, number, len(chosen), item.title)
        record = run_item(item, scale, output=output, place=runs / PLACE / scale.name, rows=rows, progress=progress)
        write_index(output / scale.name)
        yield record


def cells_of(chosen: Sequence[Item], scale: Scale, rows: Sequence[str] = ()) -> dict[str, list[tuple[Item, Row, int]]]:
    """{system: what is measured of it, as (item, row, seed)}: what can be done side by side; rows of no system are left out."""
    found: dict[str, list[tuple[Item, Row, int]]] = {}
    for item in chosen:
        names = _matching(item, rows)
        for row in item.rows:
            for seed in range(scale.seeds or item.seeds):
                # What does not exist is told when the record is made.
                with suppress(LayerwiseError):
                    if row.name in names:
                        found.setdefault(resolve(row.system, scale, seed=seed).name, []).append((item, row, seed))
    return found


def prepare(cells: Sequence[tuple[Item, Row, int]], scale: Scale, *, runs: Path, progress: bool = False) -> None:
    """Train a system and measure its cells; all of it is kept in its run folder, from which `reproduce` makes the records."""
    for item, row, seed in cells:
        _row(item, row, [Bench(item=item, scale=scale, place=runs / PLACE / scale.name, seed=seed, progress=progress)])


def run_item(
    item: Item, scale: Scale, *, output: Path, place: Path, rows: Sequence[str] = (), progress: bool = False
) -> Record:
    """Run one item; its record is written after every row."""
    seeds = tuple(range(scale.seeds or item.seeds))
    benches = [Bench(item=item, scale=scale, place=place, seed=seed, progress=progress) for seed in seeds]
    chosen = _matching(item, rows)
    earlier = _earlier(item, scale, output, seeds) if rows else None
    done = {row.name: row for row in earlier.rows if row.runs and row.name not in chosen} if earlier else {}
    # What is kept may be from elsewhere.
    others = earlier.hardware.split(AND) if earlier and done else []
    for row in item.rows:
        if row.name in chosen:
            done[row.name] = _row(item, row, benches)
            write(_record(item, scale, seeds, _ordered(item, done), (), (), others), output)
    found = _ordered(item, done)
    found += _printed_only(item, set(done))
    pictures, failures = _pictures(item, benches[0], found, output)
    record = _record(item, scale, seeds, found, pictures, failures, others, complete=True)
    write(record, output)
    return record


def _matching(item: Item, patterns: Sequence[str]) -> set[str]:
    """Names of the rows that match any pattern; all without one."""
    names = [row.name for row in item.rows]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"{item.id} has no row {pattern!r}; its rows are {', '.join(names)}, and * stands for any text"
            )
    return {name for name in names if not patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns)}


def _earlier(item: Item, scale: Scale, output: Path, seeds: tuple[int, ...]) -> Record | None:
    """The record that is there, if it has the same seeds and columns."""
    file = record_file(output, scale.name, item.id)
    if not file.is_file():
        return None
    found = Record.from_json(file.read_text(encoding="utf-8"), source=str(file))
    alike = found.seeds == seeds and [c.name for c in found.columns] == [c.name for c in item.columns]
    return found if alike else None


def _ordered(item: Item, done: Mapping[str, RowRecord]) -> list[RowRecord]:
    return [done[row.name] for row in item.rows if row.name in done]


def _row(item: Item, row: Row, benches: Sequence[Bench]) -> RowRecord:
    names: list[str] = []
    found: dict[str, tuple[list[Any], list[str]]] = {column.name: ([], []) for column in item.columns}
    for bench in benches:
        logger.info("%s: %s, seed %s", item.id, row.name, bench.seed)
        subject = attempt(bench.subject, row.system)
        if not isinstance(subject, str):
            names.append(subject.folder.name)
        for column in item.columns:
            outcomes, failures = found[column.name]
            outcome: Any = subject
            if not isinstance(subject, str):
                outcome = attempt(measured, bench, row, column.measure, column.options)
            (failures if isinstance(outcome, str) else outcomes).append(outcome)
    cells = {name: _cell(item, row, name, *parts) for name, parts in found.items()}
    return RowRecord(name=row.name, runs=tuple(names), cells=cells, at=row.at, series=row.series)


def _cell(item: Item, row: Row, column: str, outcomes: list[Outcome], failures: list[str]) -> CellRecord:
    printed = item.printed.cell(row.name, column) if item.printed else None
    return CellRecord(
        paper=None if printed is None else printed.text,
        ours=tuple(outcomes),
        failures=tuple(dict.fromkeys(failures)),
    )


def _printed_only(item: Item, ours: set[str]) -> list[RowRecord]:
    """The rows of the paper that nothing of ours stands beside."""
    rows = [] if item.printed is None else [row for row in item.printed.rows if row.row not in ours]
    names = [column.name for column in item.columns]
    return [
        RowRecord(
            name=row.row,
            runs=(),
            cells={name: CellRecord(paper=row.cells[name]) for name in names if name in row.cells},
            at=None,
            series="",
        )
        for row in rows
    ]


def _pictures(
    item: Item, bench: Bench, rows: Sequence[RowRecord], output: Path
) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    if not (item.draw or item.axis):
        return (), ()
    from layerwise.reproduce.figures import draw, draw_sweep

    folder = output / bench.scale.name / item.paper
    if item.axis:
        picture = attempt(draw_sweep, item, rows, folder)
        return ((), (picture,)) if isinstance(picture, str) else ((picture,), ())
    found = attempt(draw, item, bench, folder)
    return ((), (found,)) if isinstance(found, str) else (tuple(found[0]), tuple(found[1]))


def _record(
    item: Item,
    scale: Scale,
    seeds: tuple[int, ...],
    rows: Sequence[RowRecord],
    pictures: tuple[Picture, ...],
    failures: tuple[str, ...],
    others: Sequence[str],
    *,
    complete: bool = False,
) -> Record:
    printed, figure = item.printed, item.figure
    notes = [item.note, *(printed.notes if printed else ()), (figure.note or "") if figure else ""]
    units = "" if printed is None else f"Units: {printed.units}."
    lost = "" if printed is None or printed.lost is None else f"No paper column: {printed.lost}."
    known = versions()
    # Jobs may have been sent elsewhere.
    devices = [
        o.device for row in rows for cell in row.cells.values() for o in cell.ours if o.device not in ("", "cpu")
    ]
    record = Record(
        item=item.id,
        title=item.title,
        paper=paper(item.paper).title,
        scale=scale.name,
        scale_title=scale.title,
        decides=scale.decides,
        seeds=seeds,
        columns=tuple(_column(column, rows) for column in item.columns),
        rows=tuple(rows),
        claims=tuple(ClaimRecord(id=c.id, says=c.says, predicate=c.predicate) for c in item.claims),
        pictures=pictures,
        axis=item.axis,
        controls=tuple(item.options.get("controls", ())),
        notes=tuple(dict.fromkeys(note for note in (*notes, units, lost) if note)),
        failures=failures,
        hardware=AND.join(dict.fromkeys((*others, *devices, _hardware(known)))),
        versions={
            "layerwise": known["packages"]["layerwise"],
            "torch": known["packages"]["torch"],
            "python": known["python"],
        },
        complete=complete,
    )
    return record.with_verdicts()


def _column(column: Column, rows: Sequence[RowRecord]) -> ColumnRecord:
    cells = [row.cells[column.name] for row in rows if column.name in row.cells]
    told = dict.fromkeys(o.what + (f", {o.images} images" if o.images else "") for cell in cells for o in cell.ours)
    what = " or ".join([*told][:TOLD]) + (" or others" if len(told) > TOLD else "")
    return ColumnRecord(name=column.name, unit=column.unit, what=what)


def _hardware(known: dict[str, Any]) -> str:
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{known['processor']}, {known['threads']} threads, {experiment.best_device()}"
