"""What passes have found, kept for a second run of the same method on the same batch: the passes are not made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, final

T = TypeVar("T")


@final
class Tape:
    """Results in the order in which they were found; a second run, rewound, takes them instead of finding them again.

    >>> tape, made = Tape(), []
    >>> for _ in range(2):
    ...     with tape.running():
    ...         _ = remembered(lambda: made.append("a pass"))
    >>> made
    ['a pass']
    """

    def __init__(self) -> None:
        self._results: list[Any] = []
        self._position = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write in the first run, read from the start in every later one; a run is one call that finds and does not suspend."""
        self._position = 0
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def next(self, find: Callable[[], T]) -> T:
        """The next result."""
        if self._position == len(self._results):
            token = _current.set(None)  # what is found on the way belongs to this result
            try:
                self._results.append(find())
            finally:
                _current.reset(token)
        found: T = self._results[self._position]
        self._position += 1
        return found


_current: ContextVar[Tape | None] = ContextVar("layerwise_tape", default=None)


def remembered(find: Callable[[], T]) -> T:
    """What `find` gives, or gave at the same place of the first run, if a tape is running."""
    tape = _current.get()
    return find() if tape is None else tape.next(find)
