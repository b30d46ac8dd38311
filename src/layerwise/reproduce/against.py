"""Every row beside the controls of its table, on the same images: differences with intervals, and the verdict in words."""

from __future__ import annotations

from collections.abc import Iterator

from layerwise.report.document import Block, Table, Text
from layerwise.report.pairs import Difference, difference
from layerwise.reproduce.definitions import PERCENT
from layerwise.reproduce.record import Record, RowRecord

WORDS = {"better": "Above", "worse": "Below", "undecided": "Not told apart"}


def compared(record: Record) -> Iterator[Block]:
    """A sentence for each control and column, and a table of all differences; nothing without a control, or where nothing is decided."""
    if not record.decides or not record.controls:
        return
    yield from map(Text, _highest(record))
    rows = {row.name: row for row in record.rows}
    total = 0
    for control in (rows[name] for name in record.controls if name in rows):
        found = {
            column.name: {
                name: gap
                for name, row in rows.items()
                if row is not control and (gap := _gap(row, control, column.name))
            }
            for column in record.columns
        }
        found = {column: gaps for column, gaps in found.items() if gaps}
        total += sum(map(len, found.values()))
        for column, gaps in found.items():
            yield Text(_sentence(control.name, column, gaps))
        names = [name for name in rows if any(name in gaps for gaps in found.values())]
        if names:
            body = tuple((name, *(str(gaps.get(name, "")) for gaps in found.values())) for name in names)
            over = next(iter(next(iter(found.values())).values())).over
            yield Table(("", *found), body, f"Accuracy minus that of {control.name}, with its 95 % interval: {over}.")
    if total:
        yield Text(
            f"{total} differences, each judged by itself: of systems that are equal, one in twenty is told apart by chance."
        )


def _highest(record: Record) -> Iterator[str]:
    """`Highest AutoAttack: A (63.0 %), B (62.5 %), C (61.0 %).`, of every column of accuracies."""
    for column in (column for column in record.columns if column.unit == PERCENT):
        found = {row.name: row.cells[column.name].measured(PERCENT) for row in record.rows if column.name in row.cells}
        best = sorted(((n.value, name) for name, n in found.items() if n is not None), reverse=True)[:3]
        if best:
            yield f"Highest {column.name}: {'; '.join(f'{name} ({value:.1f} %)' for value, name in best)}."


def _gap(row: RowRecord, control: RowRecord, column: str) -> Difference | None:
    own, base = (each.cells[column].ours if column in each.cells else () for each in (row, control))
    return difference([o.outcomes for o in own], [o.outcomes for o in base]) if own and base else None


def _sentence(control: str, column: str, gaps: dict[str, Difference]) -> str:
    """`PGD-50-10 beside PGD-10. Above: 2 (A; B). Below: 0. Not told apart: 1 (C).`"""
    parts = []
    for verdict, words in WORDS.items():
        names = [name for name, gap in sorted(gaps.items(), key=lambda g: -g[1].points.value) if gap.verdict == verdict]
        parts.append(f"{words}: {len(names)}" + (f" ({'; '.join(names)})" if names else ""))
    return ". ".join([f"{column} beside {control}", *parts]) + "."
