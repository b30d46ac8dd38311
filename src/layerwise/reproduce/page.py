"""The index as one HTML page that needs nothing beside it, in the form of the reports."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from layerwise.report.document import Block, Plot, Section, Table, Text, clean
from layerwise.report.figures import uri
from layerwise.report.page import html
from layerwise.reproduce.record import Picture, Record, failures, findings
from layerwise.reproduce.render import points_of, printed_of, shown, written

FOOTER = "Made from the records beside it; every verdict is computed from their numbers."


def to_html(records: Sequence[Record], folder: Path) -> str:
    """The page of every record, its pictures inside it."""
    scale = f": {records[0].scale_title}" if records else ""
    sections = [Section(f"{r.item}: {r.title}", clean(tuple(_blocks(r, folder)))) for r in records]
    return html(f"Reproduction at the scale {folder.name}{scale}", (), sections, footer=FOOTER)


def _blocks(record: Record, folder: Path) -> Iterator[Block]:
    yield Text(f"{record.paper}.")
    yield from map(Text, record.notes)
    if record.columns:
        yield _numbers(record)
    if record.claims:
        rows = tuple((c.says, printed_of(c), c.verdict, points_of(c)) for c in record.claims)
        header = ("claim", "in the paper's numbers", "in ours", "without intervals")
        yield Table(header, rows, "What the paper says, and whether it holds.", numbers=False)
    for picture in record.pictures:
        yield _picture(picture, folder / record.item.partition("/")[0] / picture.file)
    for head, told in (("Self-checks warn: ", findings(record)), ("Not available: ", failures(record))):
        yield from (Text(head + text) for text in told)


def _numbers(record: Record) -> Table:
    units = {column.name: column.unit for column in record.columns}
    header = ("", *(f"{c.name}, {c.unit}" if c.unit else c.name for c in record.columns))
    rows = tuple((r.name, *(shown(r.cells.get(name), units[name]) for name in units)) for r in record.rows)
    return Table(
        header,
        rows,
        f"Ours with its 95 % interval; in brackets the paper's number and our difference. {written(record)}",
    )


def _picture(picture: Picture, file: Path) -> Plot:
    data = file.read_bytes()
    width, height = struct.unpack(">II", data[16:24])  # of a PNG
    return Plot(uri("image/png", data), picture.alt, "", (width, height))
