"""Claims: what a paper says of its numbers, as a predicate over cells that is computed, never written down.

A predicate is a mapping with one of these forms; a cell is `ROW / COLUMN`, or a row where `in: COLUMN` stands beside it:

    {order: [A, B, C]}                   A above B above C
    {greater: [A, B], by: 2, times: 3}   A above 3 B + 2 (by and times may be left out); {less: [A, B]} likewise
    {at_least: [A, 50]}, {at_most: [A, 5]}
    {near: [A, B], within: 1.5}          at most so far apart
    {gain: [[A, B], [C, D]]}             A - B above C - D
    {best: A, in: COLUMN}                A above every other row there, {least: A, in: COLUMN} below; rows: [...] limits the rows
    {all: [...]}, {any: [...]}           of predicates

`in: [COLUMN, COLUMN]` asks for every one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, final

from layerwise.errors import ConfigError, did_you_mean
from layerwise.evaluation.intervals import Estimate

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decidable at this scale"

Truth = bool | None
"""None is open: the intervals overlap, or a cell is missing."""


@final
@dataclass(frozen=True)
class Cells:
    """The cells that a predicate is asked of.

    Args:
        rows: their names, in order.
        read: gives the cell of a row and a column; None if it is missing.
        runs: the runs of each row, where they are known.
    """

    rows: tuple[str, ...]
    read: Callable[[str, str], Estimate | None]
    runs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def points(self) -> Cells:
        """The same without intervals."""

        def read(row: str, column: str) -> Estimate | None:
            found = self.read(row, column)
            return None if found is None else Estimate.exactly(found.value)

        return Cells(self.rows, read, self.runs)

    def one_system(self, row: str, other: str) -> bool:
        """Whether two rows are the same runs, as scales make of networks that differ in size only."""
        return row != other and bool(self.runs.get(row)) and self.runs.get(row) == self.runs.get(other)


def verdict(predicate: Mapping[str, Any], cells: Cells) -> str:
    """Whether a claim holds, by intervals.

    >>> numbers = {"a": Estimate(3, 2.5, 3.5), "b": Estimate(1, 0, 2), "c": Estimate(2.9, 2, 4)}
    >>> cells = Cells(("a", "b", "c"), lambda row, column: numbers.get(row))
    >>> verdict({"greater": ["a", "b"], "in": "x"}, cells), verdict({"greater": ["b", "a"], "in": "x"}, cells)
    ('holds', 'does not hold')
    >>> verdict({"greater": ["a", "c"], "in": "x"}, cells), verdict({"greater": ["a", "c"], "in": "x"}, cells.points())
    ('not decidable at this scale', 'holds')
    """
    return {True: HOLDS, False: FAILS, None: OPEN}[truth(predicate, cells)]


def truth(predicate: Mapping[str, Any], cells: Cells) -> Truth:
    """See `verdict`.

    Raises:
        ConfigError: it is no predicate.
    """
    columns = predicate.get("in", "")
    if isinstance(columns, list):
        return _all([truth({**predicate, "in": column}, cells) for column in columns])
    form, value = _form(predicate)
    options = {"by": float(predicate.get("by", 0)), "times": float(predicate.get("times", 1))}

    def place(name: Any) -> tuple[str, str]:
        row, _, column = (name, "", columns) if columns else str(name).rpartition(" / ")
        return str(row), column

    def cell(name: Any) -> Estimate | None:
        return Estimate.exactly(float(name)) if isinstance(name, int | float) else cells.read(*place(name))

    def above(a: Any, b: Any, **options: float) -> Truth:
        first, second = cell(a), cell(b)
        # Another attack on the same runs gives another number, and may be compared.
        if first == second and cells.one_system(place(a)[0], place(b)[0]):
            return None
        return _above(first, second, **options)

    if form in ("all", "any"):
        found = [truth(part, cells) for part in value]
        return _all(found) if form == "all" else _not(_all([_not(t) for t in found]))
    if form in ("best", "least"):
        others = [row for row in predicate.get("rows", cells.rows) if row != value]
        pairs = [(value, other) if form == "best" else (other, value) for other in others]
        return _all([above(a, b) for a, b in pairs])
    if form == "gain":
        first, second = (_minus(cell(a), cell(b)) for a, b in value)
        return _above(first, second)
    if form == "near":
        (a, b), within = value, float(predicate["within"])
        return _all([above(a, b, by=-within), above(b, a, by=-within)])
    if form in ("less", "at_most"):
        return above(value[1], value[0], **options)
    return _all([above(a, b, **options) for a, b in pairwise(value)])


FORMS = ("order", "greater", "less", "at_least", "at_most", "near", "gain", "best", "least", "all", "any")


def _form(predicate: Mapping[str, Any]) -> tuple[str, Any]:
    found = [key for key in predicate if key in FORMS]
    if len(found) != 1:
        unknown = next((key for key in predicate if key not in FORMS), "")
        raise ConfigError(f"{dict(predicate)} is no predicate of a claim; {did_you_mean(unknown, FORMS)}")
    return found[0], predicate[found[0]]


def _above(a: Estimate | None, b: Estimate | None, *, by: float = 0.0, times: float = 1.0) -> Truth:
    """Whether a > times b + by: the difference of independent numbers, its interval by the root of the sum of squares."""
    if a is None or b is None:
        return None
    gap = a.value - times * b.value - by
    below = math.hypot(a.value - a.low, times * (b.high - b.value))
    above = math.hypot(a.high - a.value, times * (b.value - b.low))
    if gap - below > 0:
        return True
    return False if gap + above < 0 or (gap == 0 and below == above == 0) else None


def _minus(a: Estimate | None, b: Estimate | None) -> Estimate | None:
    """The difference of independent numbers."""
    if a is None or b is None:
        return None
    gap = a.value - b.value
    below, above = math.hypot(a.value - a.low, b.high - b.value), math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(gap, gap - below, gap + above)


def _all(found: Sequence[Truth]) -> Truth:
    if any(t is False for t in found):
        return False
    return None if not found or any(t is None for t in found) else True  # of nothing, nothing is said


def _not(found: Truth) -> Truth:
    return None if found is None else not found
