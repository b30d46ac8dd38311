"""Files that are whole or not there, and sentences for what a disk refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerwise.errors import CheckpointError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; on success it is flushed to disk and takes its place, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
