"""Downloads that continue where they were cut, are checked, and appear under their name only when whole."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from layerwise.errors import DataError

if TYPE_CHECKING:
    from http.client import HTTPResponse

CHUNK = 1 << 18


@final
@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file on the web.

    Args:
        file: its name here.
        urls: where it is, the best first.
        size: its bytes.
        md5: its MD5 sum, as its site publishes it.
    """

    file: str
    urls: tuple[str, ...]
    size: int
    md5: str


def _idx(mirrors: tuple[str, ...], sizes: tuple[int, ...], sums: tuple[str, ...]) -> tuple[Remote, ...]:
    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return tuple(
        Remote(file=name, urls=tuple(f"{mirror}/{name}" for mirror in mirrors), size=size, md5=md5)
        for name, size, md5 in zip(names, sizes, sums, strict=True)
    )


def _cifar(file: str, size: int, md5: str) -> tuple[Remote, ...]:
    sites = ("https://www.cs.toronto.edu/~kriz", "https://cave.cs.toronto.edu/kriz")
    return (Remote(file=file, urls=tuple(f"{site}/{file}" for site in sites), size=size, md5=md5),)


REMOTES: dict[str, tuple[Remote, ...]] = {
    "mnist": _idx(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "https://storage.googleapis.com/cvdf-datasets/mnist",
            "http://yann.lecun.com/exdb/mnist",
        ),
        (9_912_422, 28_881, 1_648_877, 4_542),
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion-mnist": _idx(
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        ),
        (26_421_880, 29_515, 4_422_102, 5_148),
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    "cifar10": _cifar("cifar-10-binary.tar.gz", 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530"),
    "cifar100": _cifar("cifar-100-binary.tar.gz", 168_513_733, "03b5dce01913d631647c71ecec9e9cb8"),
}
"""Where the sets are. MD5 finds a broken file; it is what the sites publish."""


def obtain(name: str, folder: Path, missing: Sequence[Remote], *, download: bool) -> None:
    """Fetch the missing files of a set into `folder`, or say how to.

    Raises:
        DataError: something is missing and `download` is False, or the download fails.
    """
    if not missing:
        return
    if not download:
        files = ", ".join(remote.file for remote in missing)
        raise DataError(
            f"{name}: {files} not found in {folder}; add --data.download true (in Python download=True) to fetch "
            f"{_amount(sum(remote.size for remote in missing))} into it, or say with --data.root or LAYERWISE_DATA where the "
            "data are"
        )
    for remote in missing:
        fetch(remote, folder)


def fetch(remote: Remote, folder: Path, *, rounds: int = 3, pause: float = 1.0, timeout: float = 30.0) -> Path:
    """Download a file into `folder`, continuing what an earlier call left in FILE.part.

    Args:
        remote: what to fetch.
        folder: made where it does not exist.
        rounds: how often each address is tried.
        pause: seconds before the second round, doubled for each later one.
        timeout: seconds without a byte after which a connection counts as cut.

    Returns:
        The path of the file, which appears only when it is whole and its checksum right.

    Raises:
        DataError: no address gave the file (what came is kept and the next call continues), its checksum is wrong (what came
            is deleted), or the disk is full (what came is kept).
    """
    target = folder / remote.file
    part = target.with_name(target.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _progress(remote) as show:
            trouble = _attempts(remote, part, show, rounds=rounds, pause=pause, timeout=timeout)
        if trouble is None:
            os.replace(part, target)
            return target
        have = _size(part)
    except OSError as error:
        raise DataError(
            f"{part} cannot be written ({(error.strerror or str(error)).lower()}): it needs {_amount(remote.size)} in all, "
            f"{_amount(_size(part))} are kept; make room or choose another --data.root, then run again to continue"
        ) from None
    kept = (
        f"{_amount(have)} of {_amount(remote.size)} are kept in {part}: run again to continue"
        if have
        else "run again later"
    )
    raise DataError(
        f"{remote.file} could not be downloaded ({trouble}); {kept}, or copy it yourself from {remote.urls[0]} to {target}"
    )


class _Cut(Exception):
    """A connection that failed or ended early; kept apart from OSError, which from here on means the disk."""


def _attempts(
    remote: Remote, part: Path, show: Callable[[int], None], *, rounds: int, pause: float, timeout: float
) -> str | None:
    """Try every address `rounds` times; None once the part is whole and right, else the last trouble."""
    trouble, urls = "no address", list(remote.urls)
    for attempt in range(rounds):
        if attempt and urls:
            time.sleep(pause * 2 ** (attempt - 1))
        for url in tuple(urls):
            begun = _size(part) > 0
            try:
                _receive(remote, url, part, show, timeout)
            except _Cut as cut:
                trouble = f"{url}: {cut}"
                continue
            found = _md5(part)
            if found == remote.md5:
                return None
            part.unlink()
            trouble = f"{url}: the checksum is {found}, expected {remote.md5}, so what came was deleted"
            # What was begun elsewhere may be to blame; a file that came whole from here will not come out better.
            urls = urls if begun else [other for other in urls if other != url]
    return trouble


def _receive(remote: Remote, url: str, part: Path, show: Callable[[int], None], timeout: float) -> None:
    """Append to the part what it lacks, or begin again where the server cannot continue."""
    have = _size(part)
    if have > remote.size:
        part.unlink()
        have = 0
    if have < remote.size:
        with _open(url, have, timeout) as response:
            if have and not _continues(response, have):
                have = 0
            with open(part, "ab" if have else "wb") as file:
                show(have)
                for block in _blocks(response, remote.size - have):
                    file.write(block)
                    have += len(block)
                    show(have)
    if have < remote.size:
        raise _Cut(f"the connection ended after {_amount(have)}")


def _open(url: str, have: int, timeout: float) -> HTTPResponse:
    import urllib.error
    import urllib.request
    from http.client import HTTPException

    headers = {"User-Agent": "layerwise", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response: HTTPResponse = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
        return response
    except urllib.error.HTTPError as error:
        error.close()
        raise _Cut(f"HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _Cut(str(error.reason)) from None
    except (OSError, HTTPException) as error:
        raise _Cut(str(error) or type(error).__name__) from None


def _continues(response: HTTPResponse, have: int) -> bool:
    """Whether the server sends the rest from byte `have` on, and not the whole file again."""
    start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return response.status == 206 and start is not None and int(start[1]) == have


def _blocks(response: HTTPResponse, most: int) -> Iterator[bytes]:
    """What comes, up to `most` bytes and one more, which makes the checksum of a longer file fail."""
    from http.client import HTTPException

    while most >= 0:
        try:
            # read1 gives what is there; read would lose what came before a server fell silent.
            block = response.read1(min(CHUNK, most + 1))
        except (OSError, HTTPException) as error:
            raise _Cut(str(error) or type(error).__name__) from None
        if not block:
            return
        most -= len(block)
        yield block


@contextmanager
def _progress(remote: Remote) -> Iterator[Callable[[int], None]]:
    """A progress bar on the error stream, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(remote.file, total=remote.size)
        yield lambda done: bar.update(task, completed=done)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _amount(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size:,} bytes"
