"""What the papers print: every number with its digits, every figure with its axes, as data that comes with the package."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, final

from layerwise.errors import CheckpointError, ConfigError, did_you_mean
from layerwise.evaluation.record import unpack
from layerwise.reading import read_record

PAPERS = ("slat", "lad", "anp", "lat", "deep-defense", "fastat", "comparison")
"""The five papers, the benchmark of fast adversarial training, and the library's own comparison."""

BESIDE = ("fastat", "comparison")
"""Those that are no paper of a layer-wise method: `all` leaves them out."""

_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)(?: \+- (\d+(?:\.\d+)?))?")


@final
@dataclass(frozen=True)
class Printed:
    """A number as it is printed.

    Args:
        text: the digits, `"47.06 +- 0.03"`.
        value: the number.
        deviation: what follows +-; None if nothing does.

    >>> Printed.read("47.06 +- 0.03")
    Printed(text='47.06 +- 0.03', value=47.06, deviation=0.03)
    """

    text: str
    value: float
    deviation: float | None

    @classmethod
    def read(cls, text: str) -> Printed:
        """Read the digits.

        Raises:
            ConfigError: they are no number.
        """
        found = _NUMBER.fullmatch(text)
        if found is None:
            raise ConfigError(f"{text!r} is no printed number; write digits such as 47.06, 1.11e-1 or 47.06 +- 0.03")
        return cls(text, float(found[1]), None if found[2] is None else float(found[2]))


@final
@dataclass(frozen=True)
class PaperRow:
    """A row of a table.

    Args:
        row: its name; where a table prints settings as columns, they are rows here.
        dataset: what was trained and evaluated on.
        network: as the paper calls it.
        cells: {column: digits as printed}.
    """

    row: str
    dataset: str
    network: str
    cells: dict[str, str]


@final
@dataclass(frozen=True)
class PaperTable:
    """A table.

    Args:
        id: such as `table-1`.
        title: what it shows.
        units: of its numbers.
        notes: what a reader has to know about them.
        lost: why there are no numbers; None where there are.
        rows: empty where they are lost.
    """

    id: str
    title: str
    units: str
    notes: tuple[str, ...]
    lost: str | None
    rows: tuple[PaperRow, ...]

    def cell(self, row: str, column: str) -> Printed | None:
        """What is printed there, if anything."""
        digits = next((r.cells.get(column) for r in self.rows if r.row == row), None)
        return None if digits is None else Printed.read(digits)


@final
@dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """A figure.

    Args:
        id: such as `figure-2`.
        title: what it shows.
        x: quantity and unit of the horizontal axis.
        y: of the vertical one.
        series: its curves or panels.
        drawn_by: the diagnostic of `layerwise.evaluation.measures` that draws it, or what else does; None for a schematic.
        note: what a reader has to know.
    """

    id: str
    title: str
    x: str
    y: str
    series: tuple[str, ...]
    drawn_by: str | None
    note: str | None = None


@final
@dataclass(frozen=True)
class InText:
    """A number that stands in the text only.

    Args:
        where: section.
        what: what it is.
        values: {name: digits}.
        claims: `ITEM/CLAIM` that it decides.
    """

    where: str
    what: str
    values: dict[str, str]
    claims: tuple[str, ...]


@final
@dataclass(frozen=True)
class Paper:
    """A paper.

    Args:
        paper: its short name, which begins every id.
        name: what its method is called.
        title: authors, year and title.
        tables: in order.
        figures: in order.
        in_text: numbers of the running text.
    """

    paper: str
    name: str
    title: str
    tables: tuple[PaperTable, ...]
    figures: tuple[PaperFigure, ...]
    in_text: tuple[InText, ...]

    def table(self, id: str) -> PaperTable | None:
        """The table of an id, if the paper has it."""
        return next((t for t in self.tables if t.id == id), None)

    def figure(self, id: str) -> PaperFigure | None:
        """The figure of an id, if the paper has it."""
        return next((f for f in self.figures if f.id == id), None)


@cache
def paper(name: str) -> Paper:
    """What a paper prints.

    >>> paper("slat").table("table-1").cell("SLAT", "AutoAttack").text
    '44.62 +- 0.11'

    Raises:
        ConfigError: there is no such paper.
        CheckpointError: its file is damaged: two equal rows, digits that are no number.
    """
    if name not in PAPERS:
        raise ConfigError(f"there is no paper {name!r}; {did_you_mean(name, PAPERS)}")
    file = resources.files("layerwise") / "reproduce" / "papers" / f"{name}.json"
    return read_paper(file.read_text(encoding="utf-8"), source=f"papers/{name}.json")


def read_paper(text: str, *, source: str) -> Paper:
    """A paper from JSON; see `paper`."""
    body: Any = unpack(text, format="layerwise-paper", version=1, what="what a paper prints", source=source)
    for figure in body.get("figures", []):
        figure.setdefault("note", None)
    found: Paper = read_record(Paper, body, source=source)
    for part in (found.tables, found.figures):
        _check_unique(source, [p.id for p in part])
    for table in found.tables:
        _check_unique(f"{source}, {table.id}", [r.row for r in table.rows])
        if (table.lost is None) != bool(table.rows):
            raise CheckpointError(f"{source} is corrupt: {table.id} has to say why it is empty, or to have rows")
        for row in table.rows:
            for column, digits in row.cells.items():
                try:
                    Printed.read(digits)
                except ConfigError as error:
                    raise CheckpointError(f"{source} is corrupt: {table.id}, {row.row}, {column}: {error}") from None
    return found


def _check_unique(source: str, names: list[str]) -> None:
    if double := [n for n in names if names.count(n) > 1]:
        raise CheckpointError(f"{source} is corrupt: {double[0]!r} is there twice")


def to_json(body: dict[str, Any]) -> str:
    """JSON text, one line a list of numbers, without numbers that JSON does not know.

    >>> print(to_json({"a": [1, 2.5], "b": {"c": "[1"}}), end="")
    {
     "a": [1,2.5],
     "b": {
      "c": "[1"
     }
    }
    """
    text = json.dumps(body, indent=1, allow_nan=False, ensure_ascii=False)
    # A line break stands in no string.
    return re.sub(r"\[\n[\s\d.eE+,-]*\]", lambda found: "".join(found[0].split()), text) + "\n"
