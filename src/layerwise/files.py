"""Files that are whole or not there, files written in place, one lock, and sentences for what a disk refuses."""

from __future__ import annotations

import errno
import os
import platform
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Literal

from layerwise.errors import CheckpointError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; on success it is flushed to disk and takes its place, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process's number: who can guess the name could lay a link there, through which it would be written.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def open_in_place(path: Path, mode: Literal["ab", "a+b", "r+b"]) -> FileIO:
    """Open a file that is written where it is, such as a lock or a log: never through a link, and only a plain file.

    A run folder may come from a stranger, and a link in it would let a command write or cut what lies outside.

    Args:
        path: of the file; `ab` and `a+b` make it.
        mode: as `open` has it; there is no buffer, which a full disk would refuse once more when the file is closed.

    Raises:
        CheckpointError: a link or a special file stands there.
        OSError: the system refused.
    """

    def plain(name: str, flags: int) -> int:
        # O_NONBLOCK: opening a named pipe would wait for ever.
        try:
            handle = os.open(name, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
                raise _odd(path) from None
            raise
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise _odd(path)
        return handle

    # Windows has no O_NOFOLLOW.
    if path.is_symlink():
        raise _odd(path)
    return open(path, mode, buffering=0, opener=plain)


def write_all(file: FileIO, data: bytes) -> None:
    """Write all of it, which one call on a file without buffer need not do."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def append(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Add bytes to a file that is written in place.

    Args:
        path: of the file.
        data: what to add.
        sync: wait until the disk has it.

    Raises:
        CheckpointError: the disk refused, or no plain file stands there.
    """
    with writing(path), open_in_place(path, "ab") as file:
        write_all(file, data)
        if sync:
            os.fsync(file.fileno())


def own_folder(path: Path) -> Path:
    """A folder inside one that may come from a stranger, made if it is not there; its parent has to be.

    Raises:
        CheckpointError: a link or a file stands there.
        OSError: the system refused.
    """
    refuse_link(path)
    path.mkdir(exist_ok=True)
    return path


def refuse_link(folder: Path) -> None:
    """Complain about a link, or a file, where a folder is to be written to.

    Raises:
        CheckpointError: with what stands there.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise _odd(folder, "a folder")


def _odd(path: Path, wanted: str = "a plain file") -> CheckpointError:
    what = f"a link to {os.readlink(path)}" if path.is_symlink() else "something else"
    return CheckpointError(f"{path} is {what}, and has to be {wanted}: remove it, and type the same again")


@contextmanager
def held(path: Path, *, instead: str = "choose another name", wait: bool = False) -> Iterator[None]:
    """Keep others from working on a folder, or on a file; the kernel lets go, however the process ends.

    Args:
        path: a folder that exists, or a file, which need not.
        instead: what to do, beside waiting, where somebody else has it.
        wait: until another process lets go.

    Raises:
        CheckpointError: somebody else has it, or the disk refused.
    """
    lock = path / LOCK if path.is_dir() else path.with_name(f".{path.name}{LOCK}")
    own = str(lock.absolute())
    taken = "this process" if own in _HELD else _taken(lock)
    while wait and isinstance(taken, str) and own not in _HELD:
        time.sleep(PATIENCE)
        taken = _taken(lock)
    if isinstance(taken, str):
        raise CheckpointError(f"{path} is in use by {taken}; wait until that ends or stop it, or {instead}")
    _HELD.add(own)
    try:
        yield
    finally:
        _HELD.discard(own)
        with suppress(OSError):  # the folder may be gone; Windows removes no open files, and one that stays is no lock
            if _is_there(taken, lock):
                lock.unlink()
        taken.close()


def is_held(folder: Path) -> bool:
    """Whether some process keeps others from working on a folder; nothing is written to find out."""
    lock = folder / LOCK
    if str(lock.absolute()) in _HELD:  # opening and closing the file would let it go
        return True
    if not lock.is_file():
        return False
    try:
        with open_in_place(lock, "r+b") as file:
            _lock(file)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    except CheckpointError:
        return False
    return False


PATIENCE = 0.2
"""Seconds between two tries to get a lock."""

LOCK = ".lock"
"""Of a folder, in it; that of a file begins and ends with its name and this."""

_HELD: set[str] = set()
"""Locks of this process: the kernel's are by process, and would let it in twice."""


def _taken(lock: Path) -> FileIO | str:
    """The lock's file, or who has it."""
    while True:
        with writing(lock.parent):
            file = open_in_place(lock, "a+b")
        try:
            _lock(file)
        except OSError as error:
            # Some network file systems have no locks: then nobody is kept out.
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                with file:
                    return _owner(file)
        # Between opening and locking, the one who had it may have removed the file.
        if _is_there(file, lock):
            _sign(file)
            return file
        file.close()


def _is_there(file: FileIO, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), lock.lstat())
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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell what the disk refuses in a sentence.

    Args:
        path: what is written, for the sentence.

    Raises:
        CheckpointError: the disk refused.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {refusal(error)}") from error


def write_text(file: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        CheckpointError: the disk refused.
    """
    with writing(file), atomic(file) as partial:
        partial.write_text(text, encoding="utf-8")


def refusal(error: BaseException) -> str:
    """Why the system refused, and what helps.

    >>> refusal(OSError(errno.ENOSPC, "No space left on device"))
    'No space left on device; free space and resume'
    """
    number = getattr(error, "errno", None)
    if number in NO_ROOM:
        advice = "; free space and resume"
    elif number in READ_ONLY:
        advice = "; make it writable and resume"
    elif number in (errno.ENOTDIR, errno.EEXIST):
        advice = "; a file stands where a folder should be: check the path"
    elif number in (errno.ENOENT, errno.ESTALE):
        advice = "; the folder of the run was moved or removed: put it back and resume"
    else:
        advice = ""
    return f"{getattr(error, 'strerror', None) or error}{advice}"


def disk_refused(error: BaseException | None) -> bool:
    """Whether a disk that is full, or may only be read, is behind an error: then nothing that follows can be kept either.

    >>> disk_refused(OSError(errno.ENOSPC, "No space left on device")), disk_refused(ValueError("another"))
    (True, False)
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (*NO_ROOM, errno.EROFS):
            return True
        error = error.__cause__
    return False
