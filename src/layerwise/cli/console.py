"""What the command line shows: sentences, and tables that people read without a markdown viewer."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from itertools import groupby

PARENT = os.getppid()
"""Who has started this process; another later, when that one has ended."""


def say(text: str) -> None:
    """Show a text on standard output; its markdown tables are aligned, long sentences are wrapped at the terminal's width."""
    for line in readable(text).splitlines():
        # A table's line that is too long is broken by the terminal, at the right edge: wrapping at words would tear its columns.
        wide = None if line.startswith(TABLE) else _width()
        sys.stdout.write("".join(f"{part}\n" for part in _wrapped(line.removeprefix(TABLE), wide)))


def _width() -> int | None:
    """Columns of the terminal; None where the text goes into a file or another program, whose lines stay whole."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _wrapped(line: str, width: int | None) -> list[str]:
    """A line broken at words, its beginning kept as it is."""
    if width is None or len(line) <= width:
        return [line]
    return textwrap.wrap(line, max(width, 20), replace_whitespace=False, break_long_words=False, break_on_hyphens=False)


def is_first() -> bool:
    """Whether this is the first of the processes that torchrun, Slurm or Fabric has started, the one that speaks for all.

    >>> is_first()
    True
    """
    numbers = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))
    return all(number in (None, "", "0") for number in numbers)


def complain(sentence: str, *, what: str = "error: ", own: bool = False) -> None:
    """Show a sentence on standard error.

    Args:
        sentence: what to show.
        what: put before it.
        own: it is about this process; of several processes only the first one tells what is not.
    """
    if not is_first():
        if not own:
            _wait_for_the_first()
            return
        what = f"process {os.environ.get('RANK') or os.environ.get('LOCAL_RANK')}: {what}"
    red = sys.stderr.isatty() and os.name == "posix" and not os.environ.get("NO_COLOR")
    sys.stderr.write(f"\x1b[31m{what}{sentence}\x1b[0m\n" if red else f"{what}{sentence}\n")


def _wait_for_the_first(seconds: float = 10.0) -> None:
    """Launchers end all processes as soon as one has ended, and the first one has something to say before."""
    end = time.monotonic() + seconds
    while os.getppid() == PARENT and time.monotonic() < end:
        time.sleep(0.05)


def show_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Show a table; its last column wraps at the terminal's width, and a row of one cell begins a group."""
    body = list(rows)
    wide = [max(len(row[i]) for row in (header, *body) if len(row) > 1) for i in range(len(header) - 1)]
    indent = sum(wide) + 2 * len(wide)
    whole = _width()
    room = None if whole is None else max(whole - indent, 20)
    last = max((len(row[-1]) for row in (header, *body)), default=0) if room is None else room
    for row in (header, ["-" * w for w in wide] + ["-" * min(last, 60)], *body):
        if len(row) == 1:
            sys.stdout.write(f"\n{row[0]}\n")
            continue
        first, *more = _wrapped(row[-1], room)
        begin = "".join(cell.ljust(w + 2) for cell, w in zip(row, wide, strict=False))
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in (begin + first, *(" " * indent + m for m in more))))


def tell_messages(*, quiet: bool = False) -> None:
    """Show what the library logs on standard error; `quiet` leaves only the warnings."""
    logger = logging.getLogger("layerwise")
    for known in [h for h in logger.handlers if isinstance(h, _Messages)]:
        logger.removeHandler(known)
    logger.addHandler(_Messages())
    logger.setLevel((logging.WARNING if quiet else logging.INFO) if is_first() else logging.CRITICAL)


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
