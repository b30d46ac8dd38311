"""Runs that are killed or starved, in processes of their own."""

from __future__ import annotations

import ctypes
import io
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning_fabric  # noqa: F401 - imported once, before the forks
import numpy as np
import torch
from torch import Tensor, nn

from layerwise.data import Augment
from layerwise.errors import LayerwiseError
from layerwise.training import AdamW, OneCycle, Training
from tests.methods.cases import make
from tests.networks import TinyResNet
from tests.torture.disk import Write, watching
from tests.training.fakes import cheap, pictures, train

NO_NAMESPACE = 77
"""Exit code where the kernel allows no file system of one's own."""


class Noisy(nn.Module):
    """Dropout, and noise from NumPy's and Python's random states: all of them have to come back."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.dropout = TinyResNet(), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * (1 + 0.01 * random.gauss(0, 1)) + 0.01 * float(np.random.randn())
        out: Tensor = self.net(self.dropout(x))
        return out


def settings(**more: Any) -> Training:
    """Two epochs of four batches, the last of three images; checkpoints within epochs, a moving average, Adam's moments."""
    usual: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 8,
        "optimizer": AdamW(lr=0.01),
        "schedule": OneCycle(),
        "ema_decay": 0.9,
        "clip_norm": 1.0,
        "augment": Augment(crop=1),
        "eval_every": 1,
        "checkpoint_every": 0.4,
        "log_every": 3,
    }
    return cheap(**{**usual, **more})


def whole_run(method: str, folder: Path, **more: Any) -> None:
    """Train with a method, going on with what the folder holds."""
    noisy = method != "DeepDefense"  # its gradients by class are those of one network, not of three draws
    train(Noisy() if noisy else TinyResNet(), make(method), settings(**more), pictures(27), run=folder, resume=True)


@dataclass
class Moments:
    """Counts what a process does to the disk, and acts at one of these moments, in a write after a part of the bytes.

    Args:
        folder: only what happens in it counts.
        at: the moment to act at, from 0.
        act: what then happens.
        share: of a write's bytes that arrive first.
    """

    folder: Path
    at: int
    act: Callable[[], None]
    share: float = 0.5
    count: int = 0

    def watch(self) -> None:
        """From now on, and to the end of the process: audit hooks cannot be removed."""
        inside = str(self.folder)

        def write(plain: Write, data: Any) -> int:
            if self.due():
                plain(bytes(data)[: round(len(data) * self.share)])
                self.act()
            return plain(data)

        def heard(event: str, args: tuple[Any, ...]) -> None:
            changes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")
            if changes and inside in str(args[0]) and self.due():
                self.act()

        io.open = watching(self.folder, write)
        sys.addaudithook(heard)

    def due(self) -> bool:
        """Whether this is the moment."""
        self.count += 1
        return self.count - 1 == self.at


def kill() -> None:
    """Die at once, as in a power failure: no handler, no `finally`."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed(method: str, folder: str, at: int, share: float, count: str) -> None:
    """Train, and be killed at a moment of writing; with at = -1 to the end, and `count` tells how many moments there were."""
    torch.set_num_threads(1)
    moments = Moments(Path(folder), at, kill, share)
    moments.watch()
    whole_run(method, Path(folder))
    if at < 0:
        Path(count).write_text(str(moments.count))


def starved(folder: str, limit: int, threads: int = 1, seed: int = 0) -> None:
    """Train where no file may grow beyond `limit` bytes: exit code 2 for the errors that a user can mend, as on the command line."""
    torch.set_num_threads(threads)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    told(lambda: whole_run("LAT", Path(folder), epochs=1, seed=seed), Path(folder))


def on_a_small_disk(mount: str, folder: str, size: int) -> None:
    """Train on a file system of `size` bytes, which only this process sees; afterwards what is left there goes to `folder`.

    A size of 0 is one that may only be read.
    """
    import shutil

    torch.set_num_threads(1)
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(0x00020000 | (0x10000000 if user else 0)):
        sys.exit(NO_NAMESPACE)
    if user:  # who owns nothing in the new space could make no file there
        for name, text in {"setgroups": "deny", "uid_map": f"0 {user} 1", "gid_map": f"0 {group} 1"}.items():
            Path(f"/proc/self/{name}").write_text(text)
    if libc.mount(None, b"/", None, 0x44000, None):
        sys.exit(NO_NAMESPACE)
    if libc.mount(b"tmpfs", mount.encode(), b"tmpfs", 0 if size else 1, f"size={size or 8192}".encode()):
        sys.exit(NO_NAMESPACE)

    def once() -> None:
        try:
            whole_run("LAT", Path(mount) / "run", epochs=1)
        finally:
            if (Path(mount) / "run").exists():
                shutil.copytree(Path(mount) / "run", folder)

    told(once, Path(mount))


def told(act: Callable[[], None], where: Path) -> None:
    """Exit code 2, and the sentence beside the folder, where a user's error comes out."""
    try:
        act()
    except LayerwiseError as error:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        where.with_suffix(".error").write_text(str(error))
        sys.exit(2)


def holds(folder: str, ready: Any) -> None:
    """Hold the lock of a run folder until killed."""
    from layerwise.training.run import Run

    run = Run(Path(folder))
    run.begin({"the": "same"}, resume=True)
    ready.set()
    signal.pause()
