"""Records as markdown: a page an item, and the index of a folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from layerwise.errors import ConfigError
from layerwise.files import write_text
from layerwise.reproduce import definitions
from layerwise.reproduce.claims import OPEN
from layerwise.reproduce.definitions import PERCENT
from layerwise.reproduce.papers import Printed
from layerwise.reproduce.record import CellRecord, ClaimRecord, Record, failures, findings

INDEX = "index.md"


def record_file(output: Path, scale: str, item: str) -> Path:
    """OUTPUT/SCALE/PAPER/ITEM.json."""
    return output / scale / f"{item}.json"


def write(record: Record, output: Path) -> Path:
    """Write an item's record, and its page beside it."""
    file = record_file(output, record.scale, record.item)
    write_text(file, record.to_json())
    write_text(file.with_suffix(".md"), to_markdown(record))
    return file


def render(files: Iterable[Path]) -> list[Record]:
    """Read records, compute what follows from their numbers, and write them with their pages anew.

    Raises:
        ConfigError: a file is not there.
        CheckpointError: a file is damaged.
    """
    found = []
    for file in files:
        if not file.is_file():
            raise ConfigError(f"there is no file {file}; give a record such as results/full/deep-defense/table-1.json")
        record = _with_claims_of_today(Record.from_json(file.read_text(encoding="utf-8"), source=str(file)))
        write_text(file, record.to_json())
        write_text(file.with_suffix(".md"), to_markdown(record))
        found.append(record)
    return found


def _with_claims_of_today(record: Record) -> Record:
    """A record with the claims that its item has now, which may be more than when it was measured."""
    item = definitions.items().get(record.item)
    if item is None:
        return record
    claims = tuple(ClaimRecord(id=c.id, says=c.says, predicate=c.predicate) for c in item.claims)
    return replace(record, claims=claims).with_verdicts()


def to_markdown(record: Record) -> str:
    """The page of an item: ours with the interval, the paper's number below it, verdicts, failures, and what it was made with."""
    units = {column.name: column.unit for column in record.columns}
    lines = [f"# {record.item}: {record.title}", "", f"{record.paper}. Scale *{record.scale}*: {record.scale_title}."]
    if not record.complete:
        lines += ["", "> Not finished: type the same command again, and it goes on."]
    lines += [f"\n{note}" for note in record.notes]
    for picture in record.pictures:
        lines += ["", f"![{cell_text(picture.alt)}]({picture.file})"]
    if record.columns:
        heads = [f"{c.name}" + (f", {c.unit}" if c.unit else "") for c in record.columns]
        lines += ["", _line(["", *heads]), "|---|" + "---:|" * len(heads)]
        for row in record.rows:
            lines.append(_line([row.name, *(shown(row.cells.get(c.name), units[c.name]) for c in record.columns)]))
        lines += [
            "",
            "Ours with its 95 % interval (images and seeds); in brackets the paper's number and our difference to it.",
        ]
        lines += ["", cell_text(written(record))]
    if record.claims:
        lines += ["", "| claim | in the paper's numbers | in ours | without intervals |", "|---|---|---|---|"]
        for claim in record.claims:
            lines.append(_line([claim.says, printed_of(claim), f"**{claim.verdict}**", points_of(claim)]))
    for head, told in (("Self-checks warn:", findings(record)), ("Not available:", failures(record))):
        if told:
            lines += ["", head, "", *(f"- {cell_text(text)}" for text in told)]
    seeds = ", ".join(map(str, record.seeds))
    made = "; ".join(f"{name} {version}" for name, version in record.versions.items())
    lines += ["", f"Seeds {seeds}; measures took {record.seconds:.0f} s on {record.hardware}; {made}."]
    return "\n".join(lines) + "\n"


def printed_of(claim: ClaimRecord) -> str:
    """The verdict on the paper's numbers, in words."""
    return "not printed" if claim.in_paper == OPEN else claim.in_paper


def points_of(claim: ClaimRecord) -> str:
    """The verdict without intervals, in words."""
    return "a number is missing" if claim.would_be == OPEN else claim.would_be


def written(record: Record) -> str:
    """What was run for each column."""
    return "Columns: " + "; ".join(f"{c.name}: {c.what}" for c in record.columns if c.what) + "."


def shown(cell: CellRecord | None, unit: str) -> str:
    """A cell: ours with its interval, and in brackets the paper's number and our difference to it."""
    if cell is None:
        return ""
    found = cell.measured(unit)
    ours = (
        "not available"
        if found is None
        else f"{_number(found.value, unit)} ({_number(found.low, unit)} to {_number(found.high, unit)})"
    )
    if found is None and not cell.failures:
        ours = ""
    if cell.paper is None:
        return ours
    difference = "" if found is None else f", {found.value - Printed.read(cell.paper).value:+.3g}"
    return f"{ours} [{cell.paper}{difference}]".strip()


def _number(value: float, unit: str) -> str:
    return f"{value:.2f}" if unit == PERCENT else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell_text(cell) if "**" not in cell else cell for cell in cells) + " |"


def cell_text(text: str) -> str:
    """Text that stays inside its cell: no bars, no line breaks, no markup.

    >>> cell_text("a|b_c")
    'a\\\\|b\\\\_c'
    """
    for character in "\\|*_<>`":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
