"""The store of what was measured: on the disk as soon as it is known, so that whatever stops the work costs one part at most.

A text file, a line an entry: `{"crc": checksum of the entry, "entry": ...}`. The first entry says what the file is. Every value is
`[key, item, part, value]`, and `{"key": ..., "about": ...}` says once what a key stands for: the circumstances, which are all that a
value hangs on beside its name, the versions of layerwise and torch among them. Under other circumstances nothing of it is found, so
that no number is ever taken for another. A line that was cut off or damaged is left out, and its part is done again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, TypeAlias, final

from layerwise.errors import LayerwiseError
from layerwise.files import append, atomic, held, open_in_place, writing

logger = logging.getLogger(__name__)

FORMAT, VERSION = "layerwise-store", 1

Values: TypeAlias = dict[tuple[str, str], dict[int, Any]]
"""{(key, item): {part: value}}."""


@final
class Store:
    """What was measured, in JSON's types. A store without a path keeps nothing.

    Args:
        path: of the file.
        about: circumstances that hold for all of it, beside those of `under`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.journal"
    >>> with Store(path).open() as store, store.under({"seed": 0}):
    ...     store.put("pgd-20", "0110")
    >>> with Store(path).open() as store, store.under({"seed": 0}):
    ...     store.found("pgd-20"), store.get("rho", lambda: 0.2)
    ({0: '0110'}, 0.2)
    """

    def __init__(self, path: Path | None, *, about: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self._about: dict[str, Any] = {"versions": versions(), **(about or {})}
        self._values: Values = {}
        self._keys: dict[str, dict[str, Any]] = {}
        self._used: set[str] = set()
        self._open = self._done = self._ragged = self._new = False
        self._alone = True

    @contextmanager
    def open(self, *, alone: bool = True) -> Iterator[Store]:
        """Read what the file knows, and keep it for the duration; opening what is open does nothing.

        Args:
            alone: keep other processes out. What several have open holds what each of them adds, and is not read again.

        Raises:
            CheckpointError: another process has the file, or the disk refused.
        """
        if self.path is None or self._open:
            yield self
            return
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with held(self.path, instead="give this one another --record NAME") if alone else nullcontext():
            self._read(self.path, alone)
            self._open, self._done, self._alone = True, False, alone
            try:
                yield self
            finally:
                self._open = False
                if self._done:
                    self._forget(self.path)

    @contextmanager
    def under(self, circumstances: Mapping[str, Any], *, tell: bool = False) -> Iterator[Store]:
        """Look up and keep values in further circumstances for the duration.

        Args:
            circumstances: all that the values hang on, in JSON's types.
            tell: say so where the file holds something of other circumstances only, unless several may add to it.
        """
        before = self._about
        self._about = {**before, **json.loads(json.dumps(circumstances))}
        try:
            key = self._key()
            self._used.add(key)
            if tell and self._alone and self._keys and key not in self._keys:
                other = next(reversed(self._keys.values()))
                logger.warning(
                    "%s was begun under other circumstances (%s): that is kept, and this begins anew",
                    *(self.path, _difference(other, self._about)),
                )
            yield self
        finally:
            self._about = before

    def found(self, item: str) -> dict[int, Any]:
        """{part: value} of one thing to measure."""
        return dict(self._values.get((self._key(), item), {}))

    def get(self, item: str, make: Callable[[], Any]) -> Any:
        """A value, made and kept if it is not there."""
        with self.open():
            known = self.found(item)
            if 0 not in known:
                self.put(item, made := make())
                return json.loads(json.dumps(made))
            return known[0]

    def put(self, item: str, value: Any, part: int = 0) -> None:
        """Keep a value, and wait until the disk has it; see `extend`."""
        self.extend([(item, part, value)])

    def extend(self, values: Iterable[tuple[str, int, Any]]) -> None:
        """Keep values (item, part, value), and wait until the disk has them.

        Raises:
            CheckpointError: the disk refused.
        """
        if self.path is None or not (new := list(values)):
            return
        with self.open():
            key = self._key()
            self._used.add(key)
            lines: list[Any] = [_HEADER] if self._new else []
            lines += [] if key in self._keys else [{"key": key, "about": self._about}]
            lines += [[key, *value] for value in new]
            try:
                append(self.path, b"\n" * self._ragged + b"".join(map(_line, lines)), sync=True)
            except LayerwiseError:
                if self._new:  # on a full disk an empty one is no help
                    self.remove()
                raise
            self._new = self._ragged = False
            self._keys[key] = self._about
            for item, part, value in new:
                self._values.setdefault((key, item), {})[part] = value

    def finish(self) -> None:
        """Forget, when the file is let go, what was looked up or kept since it was opened: it is in a record now."""
        self._done = True

    def remove(self) -> None:
        """Delete the file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _key(self) -> str:
        return hashlib.blake2b(_canonical(self._about), digest_size=8).hexdigest()

    def _read(self, path: Path, alone: bool) -> None:
        self._values, self._keys, self._used, self._ragged = {}, {}, set(), False
        self._new = not (path.exists() or path.is_symlink())
        if self._new:
            return
        with writing(path), open_in_place(path, "r+b") as file:
            text = file.readall()
            # What follows the last line break was cut off in the middle of a write.
            whole = text[: text.rfind(b"\n") + 1]
            first, *lines = whole.splitlines() or [b""]
            ours = _entry(first) == _HEADER if whole else _line(_HEADER).startswith(text)
            if ours and (alone or not whole):
                file.truncate(len(whole))
        self._new, self._ragged = not (whole and ours), ours and bool(whole) and not alone and len(text) > len(whole)
        if not ours:
            lines, aside = [], _set_aside(path)
            logger.warning(
                "%s is damaged at its beginning, or was not written by this layerwise: it is kept as %s, and what it should "
                "hold is measured anew",
                *(path, aside.name),
            )
        lines = list(filter(None, lines))
        entries = [entry for line in lines if (entry := _entry(line)) is not None]
        if len(entries) < len(lines):
            logger.warning("%s: %s damaged lines, what they held is done again", path, len(lines) - len(entries))
        self._take(entries)

    def _take(self, entries: Iterable[Any]) -> None:
        for entry in entries:
            if isinstance(entry, dict) and isinstance(entry.get("key"), str) and isinstance(entry.get("about"), dict):
                self._keys[entry["key"]] = entry["about"]
            if isinstance(entry, list) and [type(v) for v in entry[:3]] == [str, str, int] and len(entry) == 4:
                key, item, part, value = entry
                self._values.setdefault((key, item), {})[part] = value

    def _forget(self, path: Path) -> None:
        """What is left of the file is written anew, if anything is."""
        kept: list[Any] = [{"key": k, "about": about} for k, about in self._keys.items() if k not in self._used]
        kept += [
            [key, item, part, value]
            for (key, item), parts in self._values.items()
            if key not in self._used
            for part, value in parts.items()
        ]
        if not kept:
            self.remove()
            return
        with writing(path), atomic(path) as partial:
            partial.write_bytes(b"".join(map(_line, [_HEADER, *kept])))


_HEADER = {"format": FORMAT, "version": VERSION}


def versions() -> dict[str, str]:
    """Versions of Python, torch and layerwise: every number hangs on them."""
    return {"python": platform.python_version(), **{name: _version(name) for name in ("torch", "layerwise")}}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # on the path, and not installed
        return f"{import_module(name).__version__} (not installed)"


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


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    name = next(name for name in {**now, **before} if now.get(name) != before.get(name))
    return f"{name} {before.get(name)!s:.60} before, {now.get(name)!s:.60} now"


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.aside-{number}")).exists():
        number += 1
    return path.rename(aside)
