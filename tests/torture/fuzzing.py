"""Hostile variants of good files, and what may come out of reading them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from layerwise.errors import LONGEST, LayerwiseError
from tests.torture.size import TORTURE

TOKENS = [
    b"",
    b"\x00",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\x80\x02c",
    b"[[[[[[",
    b"{{",
    b"{",
    b"}",
    b'"',
    b"&a [*a, *a]",
    b"<<: *a",
    b"!!python/object/apply:os.system [true]",
    b"!!binary x",
    b"0x_",
    b"1e999",
    b"-1",
    b"1.5",
    b"nan",
    b"null",
    b"true",
    b"9" * 30,
    b"../../etc/passwd",
    b"\x1b[2J",
    b"\xed\xa0\x80",
    b"\n",
    b": ",
    b", ",
]
"""What readers stumble over."""

EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 12),
        st.sampled_from(TOKENS) | st.binary(max_size=6) | st.integers(0, 7).map(lambda bit: bytes([1 << bit])),
        st.sampled_from(["put", "put", "flip", "cut", "repeat"]),
    ),
    min_size=1,
    max_size=4,
)


def altered(content: bytes, edits: list[tuple[float, int, bytes, str]]) -> bytes:
    """The content with bytes put in place of some, flipped, cut off, or repeated."""
    for place, length, token, kind in edits:
        at = int(place * len(content))
        if kind == "put":
            content = content[:at] + token + content[at + length :]
        elif kind == "flip":
            mask = token[:1] or b"\x01"
            content = content[:at] + bytes(byte ^ mask[0] for byte in content[at : at + 1]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        else:
            content = content[:at] + content[at : at + 20 * length] * 2 + content[at + 20 * length :]
    return content


def cases(count: int, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test on so many drawn cases; the same ones in every run, but for torture."""
    phases = (Phase.explicit, Phase.generate) if not TORTURE else (Phase.explicit, Phase.generate, Phase.shrink)
    options: dict[str, Any] = {"derandomize": not TORTURE, "database": None, "deadline": None, "phases": phases}

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        checked = settings(max_examples=count, suppress_health_check=list(HealthCheck), **options)
        return checked(given(**strategies)(test))

    return decorate


def survives(read: Callable[[], object]) -> bool:
    """Whether the reader took it; it may also refuse, in a sentence that steers no terminal. Anything else comes out."""
    try:
        read()
    except LayerwiseError as error:
        sentence = str(error)
        assert sentence
        assert all(c.isprintable() or c == "\n" for c in sentence)
        assert len(sentence) < 2 * LONGEST  # control characters are spelled out
        return False
    return True


def replaced(folder: Path, files: dict[str, bytes]) -> None:
    """Write files into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
