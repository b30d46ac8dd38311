"""Records as pages: what a record says, written once, becomes markdown beside it and a part of one HTML file."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from layerwise.errors import ConfigError
from layerwise.files import write_text
from layerwise.report import document
from layerwise.report.document import Block, Plot, Section, Table, Text, clean
from layerwise.report.figures import uri
from layerwise.report.page import html
from layerwise.reproduce import definitions
from layerwise.reproduce.against import compared
from layerwise.reproduce.claims import OPEN
from layerwise.reproduce.definitions import PERCENT
from layerwise.reproduce.papers import Printed
from layerwise.reproduce.record import CellRecord, ClaimRecord, Picture, Record, failures, findings

INDEX = "index.md"

FOOTER = "Made from the records beside it; every verdict is computed from their numbers."


def record_file(output: Path, scale: str, item: str) -> Path:
    """OUTPUT/SCALE/PAPER/ITEM.json."""
    return output / scale / f"{item}.json"


def write(record: Record, output: Path) -> Path:
    """Write an item's record, and its page beside it."""
    file = record_file(output, record.scale, record.item)
    _write(record, file)
    return file


def _write(record: Record, file: Path) -> None:
    write_text(file, record.to_json())
    write_text(file.with_suffix(".md"), to_markdown(record))


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
        _write(record, file)
        found.append(record)
    return found


def _with_claims_of_today(record: Record) -> Record:
    """A record with the claims and controls that its item has now, which may be more than when it was measured."""
    item = definitions.items().get(record.item)
    if item is None:
        return record
    claims = tuple(ClaimRecord(id=c.id, says=c.says, predicate=c.predicate) for c in item.claims)
    return replace(record, claims=claims, controls=tuple(item.options.get("controls", ()))).with_verdicts()


def to_markdown(record: Record, *, within: str = "") -> str:
    """The page of an item: ours with the interval, the paper's number beside it, verdicts, failures, and what it was made with.

    Args:
        record: the item's.
        within: where its pictures lie, seen from a page that holds several; there its heading is one of the second order.
    """
    text = document.to_markdown([Section(f"{record.item}: {record.title}", tuple(_blocks(record, within)))])
    return text if within else text[1:]


def to_html(records: Sequence[Record], folder: Path) -> str:
    """The page of every record, its pictures inside it."""
    scale = f": {records[0].scale_title}" if records else ""
    sections = [
        Section(f"{r.item}: {r.title}", clean(tuple(_blocks(r, r.item.partition("/")[0], folder)))) for r in records
    ]
    return html(f"Reproduction at the scale {folder.name}{scale}", (), sections, footer=FOOTER)


def _blocks(record: Record, within: str, folder: Path | None = None) -> Iterator[Block]:
    """What the page says; with the folder of the records pictures are in it themselves."""
    yield Text(f"{record.paper}. Scale {record.scale}: {record.scale_title}.")
    if not record.complete:
        yield Text("Not finished: type the same command again, and it goes on.")
    yield from map(Text, record.notes)
    for picture in record.pictures:
        yield _plot(picture, within, folder)
    if record.columns:
        yield _numbers(record)
    yield from compared(record)
    if record.claims:
        rows = tuple((c.says, _printed(c), c.verdict, _points(c)) for c in record.claims)
        header = ("claim", "in the paper's numbers", "in ours", "without intervals")
        marked = frozenset((i, 2) for i in range(len(rows)))
        yield Table(header, rows, "What the paper says, and whether it holds.", marked=marked, numbers=False)
    for head, told in (("Self-checks warn: ", findings(record)), ("Not available: ", failures(record))):
        yield from (Text(head + text) for text in told)
    seeds = ", ".join(map(str, record.seeds))
    made = "; ".join(f"{name} {version}" for name, version in record.versions.items())
    yield Text(f"Seeds {seeds}; measures took {record.seconds:.0f} s on {record.hardware}; {made}.")


def _plot(picture: Picture, within: str, folder: Path | None) -> Plot:
    file = f"{within}/{picture.file}" if within else picture.file
    if folder is None:
        return Plot("", picture.alt, "", (0, 0), file)
    data = (folder / file).read_bytes()
    width, height = struct.unpack(">II", data[16:24])  # of a PNG
    return Plot(uri("image/png", data), picture.alt, "", (width, height))


def _numbers(record: Record) -> Table:
    units = {column.name: column.unit for column in record.columns}
    header = ("", *(f"{c.name}, {c.unit}" if c.unit else c.name for c in record.columns))
    rows = tuple((r.name, *(_shown(r.cells.get(name), units[name]) for name in units)) for r in record.rows)
    told = "; ".join(f"{c.name}: {c.what}" for c in record.columns if c.what)
    what = "Ours with its 95 % interval (images and seeds); in brackets the paper's number and our difference to it."
    return Table(header, rows, f"{what} Columns: {told}.")


def _printed(claim: ClaimRecord) -> str:
    """The verdict on the paper's numbers, in words."""
    return "not printed" if claim.in_paper == OPEN else claim.in_paper


def _points(claim: ClaimRecord) -> str:
    """The verdict without intervals, in words."""
    return "a number is missing" if claim.would_be == OPEN else claim.would_be


def _shown(cell: CellRecord | None, unit: str) -> str:
    """A cell: ours with its interval, and in brackets the paper's number and our difference to it."""
    if cell is None:
        return ""
    found = cell.measured(unit)
    ours = "not available" if cell.failures else ""
    if found is not None:
        ours = f"{_number(found.value, unit)} ({_number(found.low, unit)} to {_number(found.high, unit)})"
    if cell.paper is None:
        return ours
    difference = "" if found is None else f", {found.value - Printed.read(cell.paper).value:+.3g}"
    return f"{ours} [{cell.paper}{difference}]".strip()


def _number(value: float, unit: str) -> str:
    return f"{value:.2f}" if unit == PERCENT else f"{value:.3g}"
