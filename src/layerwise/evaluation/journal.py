"""The journal of an evaluation: what is done is on the disk, so that whatever stops it costs one batch at most.

A text file, a line an entry: `{"crc": checksum of the entry, "entry": ...}`. The first entry holds the circumstances, every other one
is (item, part, value). A line that was cut off or damaged is left out, and its part is done again.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, final

from layerwise.errors import CheckpointError
from layerwise.files import open_in_place, write_all, writing

logger = logging.getLogger(__name__)

FORMAT, VERSION = "layerwise-journal", 1

Entry: TypeAlias = tuple[str, int, Any]
"""Which thing to do, which part of it, and what came of it in JSON's types."""


@final
class Journal:
    """What an evaluation has found so far. A journal without a path keeps nothing.

    Args:
        path: of the file.
        about: circumstances that hold for all of it, beside those of `open`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.journal"
    >>> with Journal(path).open({"seed": 0}) as journal:
    ...     journal.add([("pgd-20", 0, {"right": "0110"})])
    >>> with Journal(path).open({"seed": 0}) as journal:
    ...     journal.found("pgd-20")
    {0: {'right': '0110'}}
    """

    def __init__(self, path: Path | None, *, about: Mapping[str, Any] | None = None) -> None:
        self.path, self._circumstances = path, dict(about or {})
        self._found: dict[str, dict[int, Any]] = {}
        self._file: Any = None

    @contextmanager
    def open(self, circumstances: Mapping[str, Any] | None = None) -> Iterator[Journal]:
        """Hold the file for the duration, and read what it knows.

        Args:
            circumstances: all that the entries hang on, in JSON's types; None are those of the last time. A file that was written in
                others is set aside.

        Raises:
            CheckpointError: another process holds the file, or the disk refused.
        """
        if self.path is None:
            yield self
            return
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _held(self.path)
        try:
            self._circumstances |= circumstances or {}
            self._begin({"format": FORMAT, "version": VERSION, "circumstances": self._circumstances})
            yield self
        finally:
            self._file.close()
            self._file = None
            if not self._found:
                self.remove()

    def found(self, item: str) -> dict[int, Any]:
        """{part: what came of it} of one thing to do."""
        return dict(self._found.get(item, {}))

    def add(self, entries: Iterable[Entry]) -> None:
        """Write entries, and wait until the disk has them.

        Raises:
            CheckpointError: the disk refused.
        """
        if self._file is not None:
            entries = list(entries)
            for item, part, value in entries:
                self._found.setdefault(item, {})[part] = value
            self._write(entries)

    def remove(self) -> None:
        """Delete the file: what it knew is in the record now."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _begin(self, header: dict[str, Any]) -> None:
        assert self.path is not None
        self._found, text = {}, self._file.read()
        # What follows the last line break was cut off in the middle of a write.
        end = text.rfind(b"\n") + 1
        lines = text[:end].split(b"\n")[:-1]
        if (reason := _foreign(text, lines, header)) is not None:
            self._file.close()
            aside = _set_aside(self.path)
            logger.warning("%s %s: it is kept as %s, and the evaluation begins anew", self.path, reason, aside.name)
            self._file, lines = _held(self.path), []
        else:
            self._file.truncate(end)
        entries = [entry for line in lines if (entry := _entry(line)) is not None]
        if len(entries) < len(lines):
            logger.warning("%s: %s damaged lines, what they held is done again", self.path, len(lines) - len(entries))
        if not lines:
            self._write([header])
        for entry in entries[1:]:
            if _is_entry(entry):
                item, part, value = entry
                self._found.setdefault(item, {})[part] = value

    def _write(self, entries: Iterable[Any]) -> None:
        assert self.path is not None
        with writing(self.path):
            write_all(self._file, b"".join(map(_line, entries)))
            os.fsync(self._file.fileno())


def _line(entry: Any) -> bytes:
    return json.dumps({"crc": zlib.crc32(_canonical(entry)), "entry": entry}, allow_nan=False).encode() + b"\n"


def _canonical(entry: Any) -> bytes:
    return json.dumps(entry, sort_keys=True).encode()


def _entry(line: bytes) -> Any:
    """What a line holds; None if it is damaged."""
    try:
        found = json.loads(line)
        return found["entry"] if found["crc"] == zlib.crc32(_canonical(found["entry"])) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and [type(v) for v in entry[:2]] == [str, int] and len(entry) == 3


def _foreign(text: bytes, lines: list[bytes], header: dict[str, Any]) -> str | None:
    """Why a file is no journal of this evaluation, or None."""
    if not lines and _line(header).startswith(text):
        return None  # empty, or cut off in its first line
    found = _entry(lines[0]) if lines else None
    if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("version") != VERSION:
        return "is damaged at its beginning, or no journal of this layerwise"
    mine, theirs = json.loads(json.dumps(header))["circumstances"], found.get("circumstances") or {}
    for name in {**mine, **theirs}:
        if mine.get(name) != theirs.get(name):
            return f"was begun under other circumstances ({name} {theirs.get(name)!s:.60} before, {mine.get(name)!s:.60} now)"
    return None


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.aside-{number}")).exists():
        number += 1
    return path.rename(aside)


def _held(path: Path) -> Any:
    """The file, read and appended to by this process alone (where the system knows such locks)."""
    with writing(path):
        file = open_in_place(path, "a+b")
    file.seek(0)
    try:
        import fcntl
    except ImportError:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise CheckpointError(
            f"{path} belongs to an evaluation that is running; wait for its end, or give this one another --record NAME"
        ) from None
    return file
