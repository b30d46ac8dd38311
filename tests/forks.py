"""Processes that are forked from one that has imported everything: real ones, in milliseconds, where importing takes seconds."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import importlib
import multiprocessing
import os
import signal
import socket
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[1]


@functools.cache
def forks() -> Any:
    """Where processes come from; started here, since the fork server finds `tests` in its current folder only."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    # Threads of OpenMP that wait for work burn the time of the others.
    with contextlib.chdir(ROOT), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "passive")
        forkserver.ensure_running()
    return context


def started(act: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process that does this."""
    process: BaseProcess = forks().Process(target=act, args=arguments)
    process.start()
    return process


def exit_code(act: Callable[..., None], *arguments: Any) -> int | None:
    """The exit code of a process that does this."""
    process = started(act, *arguments)
    process.join()
    return process.exitcode


def together(world: int, act: Callable[..., None], *arguments: Any, join: bool = True) -> Any:
    """Do `act(rank, *arguments)` in so many processes, in which everything is as torchrun leaves it."""
    forks()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start: Any = torch.multiprocessing.start_processes  # type: ignore[attr-defined]
    given = (port, world, act, arguments)
    return start(_rank, args=given, nprocs=world, join=join, start_method="forkserver")


def _rank(index: int, port: int, world: int, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    act(index, *arguments)
    if dist.is_initialized():
        # Groups end with nothing under way on any rank, and without networks that still hold on to them.
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()


@dataclass
class Typed:
    """A command that runs.

    Args:
        process: it.
        said: the files of its output and its errors.
    """

    process: BaseProcess
    said: tuple[Path, Path]

    def told(self) -> tuple[int | None, str, list[str]]:
        """Wait for it; exit code, output, and lines of errors."""
        self.process.join()
        out, err = (file.read_text() for file in self.said)
        return self.process.exitcode, out, err.splitlines()

    def stop(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


def typed(folder: Path, *argv: str) -> Typed:
    """`layerwise` with these arguments, in a folder; what it starts by itself is the command as an installation writes it."""
    said = (folder / "said.out", folder / "said.err")
    return Typed(started(command, 0, folder, said, argv), said)


def typed_together(folder: Path, *argv: str) -> str:
    """What two processes of `layerwise`, started as by torchrun, print when all goes well."""
    said = (folder / "together.out", folder / "together.err")
    together(2, command, folder, said, argv)
    assert said[1].read_text() == ""
    return said[0].read_text()


def command(rank: int, folder: Path, said: tuple[Path, Path], argv: tuple[str, ...]) -> None:
    """`layerwise` in this process."""
    module, name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["layerwise"].split(":")
    main = getattr(importlib.import_module(module), name)
    (folder / "layerwise").write_text(f"import sys\nfrom {module} import {name}\nsys.exit({name}())\n")
    sys.argv = [str(folder / "layerwise"), *argv]
    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ |= {"COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, handler)  # as in a terminal, however the tests were started
    for descriptor, file in enumerate(said, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    faulthandler.enable(2)
    if code := main():
        sys.exit(code)
