"""A disk that somebody watches: what is written in a folder passes through a function."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

Write: TypeAlias = Callable[[Any], int]


def watching(folder: Path, write: Callable[[Write, Any], int]) -> Callable[..., Any]:
    """A replacement for `io.open`; below a file in the folder, `write(plain, data)` stands for the system's `plain(data)`."""
    plain = io.open

    class Watched(io.FileIO):
        def write(self, data: Any, /) -> int:
            return write(super().write, data)

    def opened(path: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        if not str(path).startswith(str(folder)) or not set(mode) & set("wa+"):
            return plain(path, mode, *more, **named)
        raw = Watched(path, mode.replace("b", "").replace("t", ""), opener=named.get("opener"))
        if 0 in (*more[:1], named.get("buffering")):
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, "utf-8")

    return opened
