"""A headless Chromium, driven through its DevTools protocol with the standard library alone."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, BinaryIO

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def found() -> str | None:
    """The browser's program."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab."""

    def __init__(self, connection: socket.socket, address: str) -> None:
        host, _, path = address.removeprefix("ws://").partition("/")
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET /{path} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        self.socket, self.file, self.count = connection, connection.makefile("rb"), 0
        self.events: list[dict[str, Any]] = []
        while self.file.readline().strip():
            pass

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer; what happens meanwhile goes to `events`."""
        self.count += 1
        self._send(json.dumps({"id": self.count, "method": method, "params": parameters}).encode())
        while (message := _receive(self.file)).get("id") != self.count:
            self.events.append(message)
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    def wait(self, method: str) -> None:
        """Wait for an event."""
        while True:
            message = _receive(self.file)
            self.events.append(message)
            if message.get("method") == method:
                return

    def value(self, expression: str) -> Any:
        """What some JavaScript gives."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def _send(self, text: bytes) -> None:
        mask, size = os.urandom(4), len(text)
        length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack(">H", size)
        self.socket.sendall(b"\x81" + length + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(text)))


def _receive(file: BinaryIO) -> dict[str, Any]:
    text, last = b"", False
    while not last:
        head, size = file.read(2)
        size &= 127
        if size > 125:
            kind, width = (">H", 2) if size == 126 else (">Q", 8)
            (size,) = struct.unpack(kind, file.read(width))
        text, last = text + file.read(size), bool(head & 0x80)
    message: dict[str, Any] = json.loads(text)
    return message


@contextmanager
def browsing(program: str) -> Iterator[Browser]:
    """A browser for the duration."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
        ]
        with subprocess.Popen([program, *options, "about:blank"], stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                line = next(line for line in process.stderr if "DevTools listening" in line)
                port = int(line.partition("ws://")[2].partition("/")[0].partition(":")[2])
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                    (address, *_) = [t["webSocketDebuggerUrl"] for t in json.load(answer) if t["type"] == "page"]
                with closing(socket.create_connection(("127.0.0.1", port), timeout=60)) as connection:
                    browser = Browser(connection, address)
                    with closing(browser.file):
                        yield browser
            finally:
                process.terminate()
