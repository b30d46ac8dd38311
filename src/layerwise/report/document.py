"""What a report is made of: sections of text, tables and pictures, which become HTML or markdown."""

from __future__ import annotations

import dataclasses
import html
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, TypeAlias, TypeVar

from layerwise.evaluation.record import escape

T = TypeVar("T")

LONGEST = 120
"""Characters of a name that a page shows."""


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Args:
        text: plain text.
        command: what to type, shown as code after it.
    """

    text: str
    command: str | None = None


@dataclass(frozen=True)
class Table:
    """A table; its first column names the rows.

    Args:
        header: of the columns.
        rows: plain text; the cells of `marked` stand out.
        caption: what the cells are, with their unit.
        marked: (row, column) of each cell that stands out.
        numbers: whether the columns after the first hold numbers.
        sorts: whether a reader can sort it by a column.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    marked: frozenset[tuple[int, int]] = frozenset()
    numbers: bool = True
    sorts: bool = False

    def without_empty_columns(self) -> Table:
        """The table without the columns that have no cell filled; nothing may be marked."""
        kept = [j for j in range(len(self.header)) if any(row[j] for row in self.rows)]
        rows = tuple(tuple(row[j] for j in kept) for row in self.rows)
        return replace(self, header=tuple(self.header[j] for j in kept), rows=rows)


@dataclass(frozen=True)
class Plot:
    """A figure.

    Args:
        source: a data URI.
        alt: what it shows, in a sentence.
        caption: how to read it.
        size: width and height in CSS pixels.
        file: where markdown finds it; "" tells it in words there.
    """

    source: str
    alt: str
    caption: str
    size: tuple[int, int]
    file: str = ""


@dataclass(frozen=True)
class Triple:
    """An image, its adversarial one, and their difference.

    Args:
        sources: three data URIs.
        alts: what each is.
        text: what the network saw.
        wrong: whether the attack succeeded.
    """

    sources: tuple[str, str, str]
    alts: tuple[str, str, str]
    text: str
    wrong: bool


@dataclass(frozen=True)
class Gallery:
    """Images beside what an attack made of them.

    Args:
        title: whose.
        caption: which attack, how the difference is shown; empty where it is that of the one before.
        items: the images.
    """

    title: str
    caption: str
    items: tuple[Triple, ...]


@dataclass(frozen=True)
class Folded:
    """Text in fixed pitch that is closed at first.

    Args:
        title: what opens it.
        lines: of the text.
    """

    title: str
    lines: tuple[str, ...]


Block: TypeAlias = Text | Table | Plot | Gallery | Folded


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        title: its heading.
        blocks: what it holds.
        folded: whether it is closed at first.
    """

    title: str
    blocks: tuple[Block, ...]
    folded: bool = False

    @property
    def anchor(self) -> str:
        """What a link to it is called."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def groups(self) -> list[list[Block]]:
        """The blocks, neighbours of one kind together: figures stand side by side."""
        return [list(blocks) for _, blocks in groupby(self.blocks, key=type)]


def clean(value: T) -> T:
    """The value with all text in it fit to be shown: one line, without control characters, direction marks and halves of characters.

    Containers and dataclasses are rebuilt. Whatever a run folder tells goes through here; escaping comes when text becomes HTML,
    markdown or SVG.

    >>> clean({"a\\x00b": ("evil\\u202egnp", 1)})
    {'a\\ufffdb': ('evilgnp', 1)}
    """
    found: Any = value
    if isinstance(value, str):
        found = "".join(map(_shown, value))
    elif isinstance(value, Mapping):
        found = {clean(k): clean(v) for k, v in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)(map(clean, value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = dataclasses.replace(value, **{f.name: clean(getattr(value, f.name)) for f in dataclasses.fields(value)})
    result: T = found
    return result


def _shown(character: str) -> str:
    kind = unicodedata.category(character)
    if kind in ("Zs", "Zl", "Zp") or character in "\n\t":
        return " "
    return "" if kind == "Cf" else "\ufffd" if kind in ("Cc", "Cs", "Co") else character


def shorten(text: str, length: int = LONGEST) -> str:
    """A name of at most so many characters; its middle is left out, since runs often differ in their ends.

    >>> shorten("slat-cifar10-eta-8-seed0", 13)
    'slat-c…-seed0'
    """
    if len(text) <= length:
        return text
    tail = (length - 1) // 2 if length > 2 else 0
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def code(text: str) -> str:
    """Text as code in markdown, whatever it holds.

    >>> code("ls `a`")
    '`` ls `a` ``'
    """
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    space = " " if longest else ""
    return "`" * (longest + 1) + space + " ".join(text.split()) + space + "`" * (longest + 1)


def to_markdown(sections: Iterable[Section]) -> str:
    """The sections in markdown; a picture is the sentence that tells what it shows."""
    parts: list[str] = []
    for section in sections:
        parts += [f"## {escape(section.title)}", *(_markdown(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Text):
        return escape(block.text) + (f" {code(block.command)}" if block.command else "")
    if isinstance(block, Table):
        return f"{escape(block.caption)}\n\n{table(block)}"
    if isinstance(block, Plot):
        shown = f"![{escape(block.alt)}]({block.file})" if block.file else escape(block.alt)
        return f"{shown} {escape(block.caption)}".rstrip()
    if isinstance(block, Gallery):
        rows = "\n".join(f"- {'fooled' if item.wrong else 'held'}: {escape(item.text)}" for item in block.items)
        return f"**{escape(block.title)}** {escape(block.caption)}".rstrip() + f"\n\n{rows}"
    text = "\n".join(block.lines)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"<details><summary>{html.escape(block.title)}</summary>\n\n{fence}\n{text}\n{fence}\n\n</details>"


def table(block: Table) -> str:
    """A table in markdown."""
    rule = "---:" if block.numbers else "---"

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    body = [
        row([f"**{escape(c)}**" if (i, j) in block.marked else escape(c) for j, c in enumerate(cells)])
        for i, cells in enumerate(block.rows)
    ]
    head = row([escape(name) for name in block.header])
    return "\n".join([head, "|---|" + f"{rule}|" * (len(block.header) - 1), *body])
