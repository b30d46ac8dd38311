"""Files that are whole or not there, and sentences for what a disk refuses."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
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
    elif number == errno.ENOTDIR:
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
