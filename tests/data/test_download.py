"""Downloads from a server in a thread: whole, cut, wrong, from servers that cannot continue, onto a full disk."""

from __future__ import annotations

import errno
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import pytest

from layerwise.data import download, load
from layerwise.data.download import REMOTES, Remote, fetch
from layerwise.errors import DataError
from tests.data import writers

CONTENT = bytes(range(256)) * 4000


class Site:
    """A local web server that holds files, and can be told to misbehave."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"/file.bin": CONTENT}
        self.requests: list[tuple[str, str | None]] = []
        self.cuts: list[int] = []
        self.ranges = True
        self.status = 200
        self.shift = 0
        self.stall_after: int | None = None
        self.closing = threading.Event()

    def remote(self, **changes: Any) -> Remote:
        whole = Remote(file="file.bin", urls=(self.url(),), size=len(CONTENT), md5=hashlib.md5(CONTENT).hexdigest())
        return replace(whole, **changes)

    def url(self, path: str = "/file.bin") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def ranges_asked(self) -> list[str | None]:
        return [asked for _, asked in self.requests]

    @contextmanager
    def serve(self) -> Iterator[Site]:
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            server.shutdown()
            thread.join()
            server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.requests.append((handler.path, asked))
        if self.stall_after == 0:
            self.closing.wait(10)
            return
        if self.status != 200 or handler.path not in self.files:
            handler.send_error(self.status if self.status != 200 else 404)
            return
        content, start = self.files[handler.path], 0
        if asked and self.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) + self.shift  # type: ignore[index]
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        end = start + self.cuts.pop(0) if self.cuts else len(content)
        handler.wfile.write(content[start : end if self.stall_after is None else start + self.stall_after])
        if self.stall_after is not None:
            self.closing.wait(10)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Site().serve() as running:
        yield running


def error_of(make: Callable[[], object]) -> str:
    with pytest.raises(DataError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_whole_file(site: Site, tmp_path: Path) -> None:
    assert fetch(site.remote(), tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / "file.bin"
    assert contents(tmp_path / "new" / "folder") == {"file.bin": CONTENT}
    assert site.ranges_asked() == [None]


def test_a_cut_connection_is_continued_within_one_call(site: Site, tmp_path: Path) -> None:
    site.cuts = [300_000, 200_000]
    fetch(site.remote(), tmp_path, pause=0)
    assert site.ranges_asked() == [None, "bytes=300000-", "bytes=500000-"]
    assert contents(tmp_path) == {"file.bin": CONTENT}


def test_a_cut_download_is_continued_by_the_next_call(site: Site, tmp_path: Path) -> None:
    site.cuts = [300_000]
    message = error_of(lambda: fetch(site.remote(), tmp_path, rounds=1))
    assert message == (
        f"file.bin could not be downloaded ({site.url()}: the connection ended after 0.3 MB); 0.3 MB of 1.0 MB are kept in "
        f"{tmp_path / 'file.bin.part'}: run again to continue, or copy it yourself from {site.url()} to {tmp_path / 'file.bin'}"
    )
    assert contents(tmp_path) == {"file.bin.part": CONTENT[:300_000]}
    fetch(site.remote(), tmp_path)
    assert site.ranges_asked() == [None, "bytes=300000-"]
    assert contents(tmp_path) == {"file.bin": CONTENT}


def test_a_server_without_range_sends_everything_again(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    site.cuts = [300_000]
    fetch(site.remote(), tmp_path, pause=0)
    assert site.ranges_asked() == [None, "bytes=300000-"]
    assert contents(tmp_path) == {"file.bin": CONTENT}


def test_a_server_that_continues_elsewhere_is_not_believed(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    site.shift = 24
    message = error_of(lambda: fetch(site.remote(), tmp_path, rounds=1))
    assert "the connection ended after" in message
    assert "file.bin" not in contents(tmp_path)


def test_a_finished_part_is_only_checked(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    fetch(site.remote(), tmp_path)
    assert site.requests == []
    assert contents(tmp_path) == {"file.bin": CONTENT}


@pytest.mark.parametrize("rest", [b"garbage" * 1000, CONTENT + b"more"])
def test_a_wrong_part_is_thrown_away(site: Site, tmp_path: Path, rest: bytes) -> None:
    (tmp_path / "file.bin.part").write_bytes(rest)
    fetch(site.remote(), tmp_path, pause=0)
    assert contents(tmp_path) == {"file.bin": CONTENT}


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", CONTENT + b"more"])
def test_a_wrong_checksum(site: Site, tmp_path: Path, content: bytes) -> None:
    site.files["/file.bin"] = content
    message = error_of(lambda: fetch(site.remote(), tmp_path, pause=0))
    assert re.fullmatch(
        rf"file.bin could not be downloaded \({site.url()}: the checksum is [0-9a-f]{{32}}, expected {site.remote().md5}, so "
        rf"what came was deleted\); run again later, or copy it yourself from {site.url()} to {tmp_path}/file.bin",
        message,
    )
    assert contents(tmp_path) == {}
    assert len(site.requests) == 1


def test_the_next_mirror_is_tried(site: Site, tmp_path: Path) -> None:
    site.files |= {"/wrong": b"x" * len(CONTENT), "/short": CONTENT[:1000]}
    urls = tuple(site.url(path) for path in ("/missing", "/wrong", "/short", "/file.bin"))
    fetch(site.remote(urls=urls), tmp_path)
    assert site.requests == [("/missing", None), ("/wrong", None), ("/short", None), ("/file.bin", "bytes=1000-")]
    assert contents(tmp_path) == {"file.bin": CONTENT}


def test_a_server_that_refuses(site: Site, tmp_path: Path) -> None:
    site.status = 503
    message = error_of(lambda: fetch(site.remote(), tmp_path, rounds=2, pause=0))
    assert message == (
        f"file.bin could not be downloaded ({site.url()}: HTTP 503 Service Unavailable); run again later, or copy it yourself "
        f"from {site.url()} to {tmp_path / 'file.bin'}"
    )
    assert len(site.requests) == 2
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("sent", [0, 1000])
def test_a_server_that_falls_silent(site: Site, tmp_path: Path, sent: int) -> None:
    site.stall_after = sent
    message = error_of(lambda: fetch(site.remote(), tmp_path, rounds=1, timeout=0.2))
    assert f"{site.url()}: timed out" in message
    assert ("run again to continue" if sent else "run again later") in message
    site.stall_after = None
    fetch(site.remote(), tmp_path)
    assert site.ranges_asked() == [None, "bytes=1000-" if sent else None]
    assert contents(tmp_path) == {"file.bin": CONTENT}


def test_no_server(site: Site, tmp_path: Path) -> None:
    remote = site.remote(urls=("http://127.0.0.1:1/file.bin",))
    assert "Connection refused" in error_of(lambda: fetch(remote, tmp_path, rounds=1))


class FullDisk:
    """A file on a disk with room for `room` bytes."""

    def __init__(self, file: IO[bytes], room: int) -> None:
        self.file, self.room = file, room

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, block: bytes) -> None:
        self.file.write(block[: self.room])
        self.room -= len(block)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(download, "open", lambda path, mode: FullDisk(path.open(mode), 400_000), raising=False)
        message = error_of(lambda: fetch(site.remote(), tmp_path))
    assert message == (
        f"{tmp_path / 'file.bin.part'} cannot be written (no space left on device): it needs 1.0 MB in all, 0.4 MB are kept; "
        "make room or choose another --data.root, then run again to continue"
    )
    assert contents(tmp_path) == {"file.bin.part": CONTENT[:400_000]}
    assert len(site.requests) == 1
    fetch(site.remote(), tmp_path)
    assert site.ranges_asked() == [None, "bytes=400000-"]
    assert contents(tmp_path) == {"file.bin": CONTENT}


def test_a_folder_that_cannot_be_made(site: Site, tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    message = error_of(lambda: fetch(site.remote(), tmp_path / "taken" / "sub"))
    assert "cannot be written (not a directory)" in message
    assert site.requests == []


def test_the_bar_is_shown_on_a_terminal_only(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(site.remote(), tmp_path / "a")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    fetch(site.remote(), tmp_path / "b")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "file.bin" in shown.err
    assert "1.0" in shown.err


# --- through load


def test_load_downloads_what_is_missing_only(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writers.write_idx(tmp_path / "source", packed=True)
    files = {f"/{path.name}": path.read_bytes() for path in (tmp_path / "source").iterdir()}
    site.files = files
    local = tuple(
        replace(remote, urls=(site.url(f"/{remote.file}"),), size=len(content), md5=hashlib.md5(content).hexdigest())
        for remote in REMOTES["mnist"]
        for content in [files[f"/{remote.file}"]]
    )
    monkeypatch.setitem(REMOTES, "mnist", local)
    root = tmp_path / "root"
    assert "not found" in error_of(lambda: load("mnist", root=root))
    assert site.requests == []
    assert len(load("mnist", root=root, validation=0, download=True).train) == 20
    assert sorted(path.name for path in (root / "MNIST/raw").iterdir()) == sorted(name[1:] for name in files)
    (root / "MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    site.requests.clear()
    assert len(load("mnist", root=root, validation=0, download=True).test) == 10
    assert site.requests == [("/t10k-labels-idx1-ubyte.gz", None)]


def test_load_downloads_the_cifar_archive(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = writers.tar_bytes([writers.member(*item) for item in writers.cifar10_files(20).items()])
    name = "cifar-10-binary.tar.gz"
    site.files = {f"/{name}": archive}
    local = Remote(file=name, urls=(site.url(f"/{name}"),), size=len(archive), md5=hashlib.md5(archive).hexdigest())
    monkeypatch.setitem(REMOTES, "cifar10", (local,))
    data = load("cifar10", root=tmp_path, validation=0, download=True, allow_fewer=True)
    assert (len(data.train), len(data.test)) == (100, 20)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    load("cifar10", root=tmp_path, download=True, allow_fewer=True)
    assert len(site.requests) == 1


def test_every_address_names_its_file() -> None:
    for remotes in REMOTES.values():
        for remote in remotes:
            assert re.fullmatch(r"[0-9a-f]{32}", remote.md5)
            assert all(url.startswith("http") and url.endswith(f"/{remote.file}") for url in remote.urls)
