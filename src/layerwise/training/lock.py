"""One process a run folder: a lock that the kernel releases, however the process ends."""

from __future__ import annotations

import errno
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from layerwise.errors import CheckpointError
from layerwise.files import open_in_place, writing

LOCK = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from writing the run in a folder.

    Args:
        folder: of the run; it has to exist.

    Raises:
        CheckpointError: another process has the lock, or the folder cannot be written.
    """
    file = _taken(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may be gone; Windows removes no open files, and one that stays is no lock
            if _is_there(file, folder):
                (folder / LOCK).unlink()
        file.close()


def _taken(folder: Path) -> FileIO:
    while True:
        with writing(folder):
            file = open_in_place(folder / LOCK, "a+b")
        try:
            _lock(file)
        except OSError as error:
            # Some network file systems have no locks: then nobody is kept out.
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                owner = _owner(file)
                file.close()
                raise CheckpointError(
                    f"{folder} is in use by {owner}; wait until that ends or stop it, or choose another name"
                ) from None
        # Between opening and locking, the one who had it may have removed the file.
        if _is_there(file, folder):
            _sign(file)
            return file
        file.close()


def _is_there(file: FileIO, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).lstat())
    except OSError:
        return False


def _lock(file: FileIO) -> None:
    """Take the lock, or raise at once.

    POSIX record locks, not flock: data workers inherit the latter, and would keep it after the kill of their parent.
    """
    if sys.platform == "win32":
        import msvcrt

        file.seek(1 << 30)  # a byte beyond the text, since locked bytes cannot be read there
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sign(file: FileIO) -> None:
    """Say who has the lock; a full disk is no reason not to."""
    with suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}".encode())


def _owner(file: FileIO) -> str:
    file.seek(0)
    text = (file.read(200) or b"").decode(errors="replace")
    return text if text.isprintable() and text else "another process"
