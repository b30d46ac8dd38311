"""The page of everything that was reproduced at a scale: markdown, and the same in one HTML file."""

from __future__ import annotations

from pathlib import Path

from layerwise.evaluation.record import escape
from layerwise.files import write_text
from layerwise.reproduce.claims import OPEN
from layerwise.reproduce.definitions import items
from layerwise.reproduce.record import Record
from layerwise.reproduce.render import INDEX, to_html, to_markdown


def records(folder: Path) -> list[Record]:
    """Every record below a folder, in the papers' order."""
    order = {id: number for number, id in enumerate(items())}
    found = [
        Record.from_json(file.read_text(encoding="utf-8"), source=str(file))
        for file in sorted(folder.glob("*/*.json"))
        if not file.name.startswith(".")
    ]
    return sorted(found, key=lambda record: (order.get(record.item, len(order)), record.item))


def write_index(folder: Path) -> Path:
    """Write FOLDER/index.md: every item with its verdicts, and below them every page; and index.html, the same in one file."""
    found = records(folder)
    scale = found[0].scale_title if found else "nothing yet"
    lines = [f"# Reproduction at the scale {folder.name}", "", f"{scale[:1].upper()}{scale[1:]}.", ""]
    lines += [
        "| item | what | numbers | claims that hold, of those decided | of all | not available |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for record in found:
        numbers = sum(bool(cell.ours) for row in record.rows for cell in row.cells.values()) + len(record.pictures)
        missing = sum(not cell.ours for row in record.rows for cell in row.cells.values()) + len(record.failures)
        held, decided = record.held
        name = f"[{record.item}]({record.item}.md)"
        lines.append(
            f"| {name} | {escape(record.title)} | {numbers} | {held} of {decided} | {len(record.claims)} | {missing} |"
        )
    if any(claim.verdict == OPEN for record in found for claim in record.claims):
        lines += ["", "A claim whose interval does not exclude the contrary is not decided; at *smoke* none is."]
    for record in found:
        lines += ["", to_markdown(record, within=record.item.partition("/")[0]).rstrip()]
    write_text((folder / INDEX).with_suffix(".html"), to_html(found, folder))
    write_text(folder / INDEX, "\n".join(lines) + "\n")
    return folder / INDEX
