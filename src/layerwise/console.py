"""What the command line shows: sentences, and tables that people read without a markdown viewer."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby

WIDE = 200
"""Columns of what goes into a file or another program."""


def say(text: str) -> None:
    """Show a text on standard output; its markdown tables are aligned, long sentences are wrapped at the terminal's width."""
    from rich.console import Console

    console = Console()
    for is_table, lines in groupby(readable(text).splitlines(), key=lambda line: line.startswith(TABLE)):
        body = "\n".join(line.removeprefix(TABLE) for line in lines)
        # A table's line that is too long is broken by the terminal, at the right edge: wrapping at words would tear its columns.
        console.print(body, markup=False, highlight=False, soft_wrap=is_table or not console.is_terminal)


def complain(sentence: str, *, what: str = "error: ") -> None:
    """Show a sentence on standard error."""
    from rich.console import Console

    Console(stderr=True).print(f"{what}{sentence}", style="red", markup=False, highlight=False, soft_wrap=True)


def show_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Show a table; its last column wraps."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, no_wrap=number + 1 < len(header))
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)


def tell_messages(*, quiet: bool = False) -> None:
    """Show what the library logs on standard error; `quiet` leaves only the warnings."""
    logger = logging.getLogger("layerwise")
    for known in [h for h in logger.handlers if isinstance(h, _Messages)]:
        logger.removeHandler(known)
    logger.addHandler(_Messages())
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


class _Messages(logging.Handler):
    """Plain sentences, to whatever standard error is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{record.getMessage()}\n")


TABLE = "\0"
"""Marks the lines of a table."""


def readable(markdown: str) -> str:
    """Markdown with its tables aligned; their lines begin with `TABLE`.

    >>> print(readable("| run | clean |\\n|---|---:|\\n| a-seed0 | **9.5** |").replace(TABLE, ""))
    run      clean
    -------  -----
    a-seed0    9.5
    """
    lines: list[str] = []
    for is_table, group in groupby(markdown.splitlines(), key=lambda line: line.startswith("|")):
        block = list(group)
        lines += _aligned(block) if is_table else map(_unescaped, block)
    return "\n".join(lines)


def _aligned(lines: list[str]) -> list[str]:
    rows = [[_unescaped(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    is_rule = [all(re.fullmatch(r":?-+:?", cell) for cell in row) for row in rows]
    right = [cell.endswith(":") for row, rule in zip(rows, is_rule, strict=True) if rule for cell in row]
    wide = [max(len(row[i]) for row, rule in zip(rows, is_rule, strict=True) if not rule) for i in range(len(rows[0]))]

    def line(row: list[str], rule: bool) -> str:
        if rule:
            return "  ".join("-" * w for w in wide)
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, wide, right, strict=True)]
        return "  ".join(cells).rstrip()

    return [TABLE + line(row, rule) for row, rule in zip(rows, is_rule, strict=True)]


def _unescaped(text: str) -> str:
    """Without markdown's emphasis and escapes."""
    return re.sub(r"\\(.)", r"\1", re.sub(r"(?<!\\)\*\*", "", text))
