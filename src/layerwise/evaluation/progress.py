"""Progress bars with an estimated end, on standard error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, final

_T = TypeVar("_T")

_PATIENCE = 1e9
"""Seconds that the estimate of the end looks back: things to do differ too much for the last few to speak for the rest."""


@final
class Board:
    """A bar for each thing to do, and one for everything together.

    Args:
        costs: {thing to do: how much it is, in any one unit}.
        visible: False shows nothing.
    """

    def __init__(self, costs: Mapping[str, float], *, visible: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not visible,
            speed_estimate_period=_PATIENCE,
        )
        self._costs = dict(costs)
        self._left = dict(costs)
        self._open: dict[str, Any] = {}
        self._all: Any = None if len(costs) < 2 else self._bars.add_task("everything", total=sum(costs.values()))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bars for the duration."""
        with self._bars:
            yield

    @contextmanager
    def working(self, name: str) -> Iterator[None]:
        """A bar for a thing while it is done, which may `track` its parts; at the end all of it counts as done."""
        self._open[name] = self._bars.add_task(name, total=None)
        try:
            yield
        finally:
            self._bars.remove_task(self._open.pop(name))
            self._advance(name, self._left.get(name, 0.0))

    def track(self, values: Iterable[_T], name: str, total: int) -> Iterator[_T]:
        """The values, of which there are `total`; each moves the bar of this thing and that of everything."""
        bar = self._open.get(name)
        if own := bar is None:
            bar = self._bars.add_task(name)
        self._bars.update(bar, total=total)
        share = self._costs.get(name, 0.0) / max(total, 1)
        for value in values:
            yield value
            self._bars.advance(bar)
            self._advance(name, share)
        if own:
            self._bars.remove_task(bar)

    def _advance(self, name: str, cost: float) -> None:
        self._left[name] = max(0.0, self._left.get(name, 0.0) - cost)
        if self._all is not None:
            self._bars.advance(self._all, cost)

    def skip(self, name: str, share: float = 1.0) -> None:
        """Take what is done already out of the estimate; `share` of the thing, in [0, 1]."""
        cost = share * self._costs.get(name, 0.0)
        self._costs[name] = self._left[name] = self._costs.get(name, 0.0) - cost
        if self._all is not None:
            self._bars.update(self._all, total=sum(self._costs.values()))


def tracked(values: Iterable[_T], total: int, name: str, board: Board | bool) -> Iterator[_T]:
    """The values, with a bar on a board, with a bar of their own (True), or with none (False).

    >>> list(tracked("ab", 2, "letters", False))
    ['a', 'b']
    """
    if isinstance(board, Board):
        yield from board.track(values, name, total)
    else:
        own = Board({name: float(total)}, visible=board)
        with own.shown():
            yield from own.track(values, name, total)
