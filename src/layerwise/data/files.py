"""Reading files whose size is known beforehand, plain or packed, and never more than that."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from layerwise.errors import DataError

SLACK = 1 << 20
"""Bytes beside the wanted members that an archive may hold: headers, padding, read-me files."""


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder of all data sets: `root`, else LAYERWISE_DATA, else ~/.cache/layerwise.

    >>> data_root("somewhere").as_posix()
    'somewhere'
    """
    return Path(root or os.environ.get("LAYERWISE_DATA") or "~/.cache/layerwise").expanduser()


def in_root(files: str) -> str:
    """Where files are looked for, in words.

    >>> in_root("a.bin")
    'ROOT/a.bin (ROOT: --data.root, else LAYERWISE_DATA, else ~/.cache/layerwise)'
    """
    return f"ROOT/{files} (ROOT: --data.root, else LAYERWISE_DATA, else ~/.cache/layerwise)"


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file, unpacked where its name ends in .gz; at most `limit` + 1 bytes of it are ever unpacked.

    Args:
        path: the file.
        limit: bytes that the content may have; one more is read, so that the caller sees that there is more.

    Raises:
        DataError: the file is missing, unreadable, or a broken .gz.
    """
    packed = path.suffix == ".gz"
    try:
        _check_kind(path)
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            content: bytes = file.read(limit + 1)
            return content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is no whole gzip file ({_reason(error)}); delete it and download it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({_reason(error)}); check the path and its permissions") from None


def read_members(path: Path, sizes: Mapping[str, int]) -> dict[str, bytes]:
    """The named members of a .tar.gz, without writing anything; all other members are passed over.

    Args:
        path: the archive.
        sizes: for each wanted member the bytes that it may have at most.

    Returns:
        The content of those that are there.

    Raises:
        DataError: the archive is missing or broken, unpacks to more than the wanted members can need, or holds one of them
            as a link, or larger than it may be.
    """
    found: dict[str, bytes] = {}
    try:
        _check_kind(path)
        with gzip.open(path, "rb") as unpacked:
            limited = _Limited(unpacked, sum(sizes.values()) + SLACK, path)
            with tarfile.open(fileobj=limited, mode="r|") as archive:  # type: ignore[call-overload]
                for member in archive:
                    if member.name not in sizes or member.name in found:
                        continue
                    if not member.isreg() or member.size > sizes[member.name]:
                        kind = f"has {member.size:,} bytes" if member.isreg() else "is no regular file"
                        raise DataError(
                            f"{path}: the member {member.name} {kind}, expected a file of at most {sizes[member.name]:,} "
                            "bytes; delete the archive and download it again"
                        )
                    content = archive.extractfile(member)
                    assert content is not None
                    found[member.name] = content.read(sizes[member.name])
                    if len(found) == len(sizes):
                        break
    except (
        EOFError,
        gzip.BadGzipFile,
        zlib.error,
        tarfile.TarError,
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:
        # The last three come from tarfile's parsers of extended headers.
        raise DataError(f"{path} is no whole .tar.gz ({_reason(error)}); delete it and download it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({_reason(error)}); check the path and its permissions") from None
    return found


def _check_kind(path: Path) -> None:
    """Complain about pipes and devices, which may never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise DataError(f"{path} is no regular file; replace or remove it")


class _Limited:
    """A file that refuses to give more than `limit` bytes: tarfile itself unpacks whatever a header claims."""

    def __init__(self, file: IO[bytes] | Any, limit: int, path: Path) -> None:
        self.file, self.left, self.limit, self.path = file, limit, limit, path

    def read(self, size: int) -> bytes:
        """Up to `size` bytes."""
        block: bytes = self.file.read(size)
        self.left -= len(block)
        if self.left < 0:
            raise DataError(
                f"{self.path} unpacks to more than the {self.limit:,} bytes that the data need; "
                "delete it and download it again"
            )
        return block


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
