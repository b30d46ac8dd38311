"""The command line: every command is a module of this package, which it finds by itself; what goes wrong becomes a sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from layerwise.cli.arguments import Command

STOPPED = 130
"""What a shell knows as Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    with _noted() as stops:
        try:
            _run(list(sys.argv[1:] if argv is None else argv))
        except KeyboardInterrupt as stop:
            return _stopped(str(stop))
        except Exception as error:
            # A package that Ctrl-C stopped while it was imported may say that it is broken.
            if stops:
                return _stopped()
            if (code := _told(error)) is None:
                raise
            return code
    return 0


def _run(typed: list[str]) -> None:
    # Imported here, where Ctrl-C is a sentence.
    from layerwise.cli.arguments import parse

    known = commands([token for token in typed[:2] if token != "help"][:1])
    arguments, settings = parse(typed, known)
    known[arguments.command].run(arguments, settings)
    sys.stdout.flush()


def commands(typed: Sequence[str] = ()) -> dict[str, Command]:
    """Every command by its name; only the one whose name was typed, if there is one."""
    import pkgutil
    from importlib import import_module

    import layerwise.cli

    names = [info.name for info in pkgutil.iter_modules(layerwise.cli.__path__)]
    for chosen in ([name for name in names if name in typed], names):
        modules = {name: import_module(f"layerwise.cli.{name}") for name in chosen}
        if found := {name: module.COMMAND for name, module in modules.items() if hasattr(module, "COMMAND")}:
            return found
    return {}


@contextmanager
def _noted() -> Iterator[list[int]]:
    """Note Ctrl-C beside raising it: what is being imported then may swallow it, or make another error of it."""
    import signal

    stops: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        stops.append(number)
        raise KeyboardInterrupt

    # Only Python's own handler is replaced: a signal that is ignored, as in the background of a script, stays so.
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        ours = ours and signal.signal(signal.SIGINT, note) is not None
    except ValueError:  # not in the main thread, which alone may do so
        ours = False
    try:
        yield stops
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _stopped(sentence: str = "") -> int:
    from layerwise.cli.console import complain

    complain(sentence or "stopped by Ctrl-C", what="")
    return STOPPED


def _told(error: Exception) -> int | None:
    """The exit code after a sentence about an error; None where nobody has foreseen it, so that its traceback is what helps."""
    import errno
    import os

    from layerwise.cli.console import complain
    from layerwise.errors import LayerwiseError

    if isinstance(error, LayerwiseError):
        complain(str(error), own=isinstance(error.__cause__, OSError))
        return 2
    if isinstance(error, BrokenPipeError):  # `layerwise list recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, OSError):
        where = f" {error.filename}" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free space" if full else "check the path and its permissions, or choose another folder"
        complain(f"the system refused{where}: {error.strerror or error}; {advice}, then run the same again", own=True)
        return 2
    if type(error).__name__ == "OutOfMemoryError":  # torch's, and torch need not be imported for this
        complain(
            "the accelerator's memory is full; type a smaller --training.batch_size, --training.accumulate 2 (the "
            "same batch in two parts), or a smaller --evaluation.batch_size",
            own=True,
        )
        return 2
    return None


if __name__ == "__main__":
    sys.exit(main())
