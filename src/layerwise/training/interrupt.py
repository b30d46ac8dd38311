"""Ctrl-C, SIGTERM and a closed terminal as a wish to stop at the next batch, so that nothing is lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self, final

NAMES = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "the end of the terminal"}


@final
class Interrupt:
    """A context in which the first Ctrl-C, SIGTERM or SIGHUP is noted and the second one stops at once.

    A SIGHUP that is ignored stays so: `nohup` means it. Outside the main thread, where Python allows no handlers, it notes nothing.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            for name in NAMES:
                number = getattr(signal, name, None)  # Windows has no SIGHUP
                ignored = name == "SIGHUP" and number is not None and signal.getsignal(number) is signal.SIG_IGN
                if number is not None and not ignored:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt("stopped at once; what came after the last checkpoint is lost")
        self.requested = NAMES[signal.Signals(number).name]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
