"""Jobs: independent commands of `layerwise`, several at once, on this machine or on a cluster.

A job is a command that can be typed by hand, resumes by itself, and leaves what it makes in its run folder; the command that has
started it (`train --seeds`, `evaluate` of several runs, `tune`, `reproduce`) goes on from these folders as if it had done all itself.
"""

from __future__ import annotations

import logging
import os
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, final

import torch

from layerwise.core.checks import at_least
from layerwise.core.cost import duration
from layerwise.errors import ConfigError, LayerwiseError
from layerwise.files import writing
from layerwise.training.interrupt import Interrupt

logger = logging.getLogger("layerwise")

PAUSE = 0.1
"""Seconds between two looks at the jobs; a look at a cluster's costs nothing, since submitit asks the cluster rarely."""

PLACE = "jobs"
"""Folder of the jobs' logs, beside the run folders."""

DAY = 24 * 60
"""Minutes that a cluster gives a job, unless `--cluster-options` say otherwise; what is stopped then goes on with the next command."""


@final
@dataclass(frozen=True, kw_only=True)
class Job:
    """A command.

    Args:
        name: of its run folder; what is told of it begins so.
        command: what follows `layerwise`.
        runs: the folder of run folders; the log is there, in `jobs/NAME.log`, and what the command says in `jobs/NAME.out`.
    """

    name: str
    command: tuple[str, ...]
    runs: Path

    @property
    def log(self) -> Path:
        """What it tells while it works, and its error."""
        return self.runs / PLACE / f"{self.name}.log"

    @property
    def out(self) -> Path:
        """What it says at its end."""
        return self.log.with_suffix(".out")


class Running(Protocol):
    """A job that has been started."""

    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""

    def stop(self, *, now: bool) -> None:
        """Ask it to stop with a checkpoint, or end it now."""


class Launcher(Protocol):
    """Where jobs run."""

    def start(self, job: Job, slot: int) -> Running:
        """Start a job in one of the slots from 0 on."""


@final
@dataclass(frozen=True, kw_only=True)
class Crew:
    """How many jobs run at once, and where.

    Args:
        at_once: so many; the cores of a machine are shared out evenly.
        cluster: what submitit calls it: `"slurm"`, or `"local"` for a trial; None is this machine, without submitit.
        options: of submitit's executor, such as `{slurm_partition: gpu, gpus_per_node: 1}`.
    """

    at_once: int = 1
    cluster: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the settings."""
        at_least("jobs", self.at_once, 1)
        if self.options and self.cluster is None:
            raise ConfigError("--cluster-options are a cluster's; type --cluster slurm too")

    @property
    def alone(self) -> bool:
        """Whether there is nothing to share out: one after the other, in this process."""
        return self.at_once == 1 and self.cluster is None

    @property
    def threads(self) -> int:
        """Threads a job on this machine; `OMP_NUM_THREADS` may ask for fewer."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        share = max(1, cores // self.at_once)
        asked = os.environ.get("OMP_NUM_THREADS", "")
        return min(share, int(asked)) if asked.isdigit() and int(asked) else share

    def launcher(self, folder: Path) -> Launcher:
        """Where jobs run; a cluster keeps its own files in the folder.

        Raises:
            ConfigError: submitit is missing, or does not know the cluster or an option.
        """
        return _Machine(self.threads) if self.cluster is None else _cluster(self, folder)

    def run(
        self,
        jobs: Iterable[Job],
        *,
        total: int,
        again: Callable[[], str],
        ended: Callable[[Job], None] = lambda job: None,
        show: bool = True,
    ) -> dict[str, str]:
        """Run the jobs; each is asked for when a slot is free, so that it may hang on what ended before.

        Args:
            jobs: what to run.
            total: how many there are.
            again: gives the command that goes on.
            ended: called with each job that has ended well, as soon as it has.
            show: show a line a job where a person watches.

        Returns:
            {name: sentence} of the jobs that did not end well; the others went on.

        Raises:
            KeyboardInterrupt: Ctrl-C, SIGTERM or a closed terminal; all jobs have stopped then.
        """
        return _Round(self, total, ended, show).run(iter(jobs), again)


def not_all(lost: Mapping[str, str], again: str) -> LayerwiseError:
    """The error of jobs that did not end well, with the command that does what is left."""
    return LayerwiseError(f"{'; '.join(lost.values())}; what is done is kept, and the rest is done by: {again}")


@final
class _Round:
    """The jobs of one call."""

    def __init__(self, crew: Crew, total: int, well: Callable[[Job], None], show: bool) -> None:
        self.crew, self.total, self.well, self.show = crew, total, well, show
        self.running: dict[int, tuple[Job, Running, float]] = {}
        self.ended, self.lost = 0, dict[str, str]()

    def run(self, jobs: Iterator[Job], again: Callable[[], str]) -> dict[str, str]:
        """See `Crew.run`."""
        launcher: Launcher | None = None
        more = True
        with Interrupt() as interrupt, _Lines(self.running, self.show) as lines:
            try:
                while more or self.running:
                    if interrupt.requested:
                        raise KeyboardInterrupt
                    while more and (free := self._free()) is not None:
                        job = next(jobs, None)
                        if more := job is not None:
                            launcher = launcher or self.crew.launcher(job.log.parent)
                            self._start(job, launcher, free)
                    self._look()
                    lines.update()
                    time.sleep(PAUSE * bool(self.running))
            except BaseException as error:
                self._stop()
                if isinstance(error, KeyboardInterrupt):
                    raise KeyboardInterrupt(f"stopped, what is done is kept; go on with: {again()}") from None
                raise
        return self.lost

    def _free(self) -> int | None:
        return next((slot for slot in range(self.crew.at_once) if slot not in self.running), None)

    def _start(self, job: Job, launcher: Launcher, slot: int) -> None:
        with writing(job.log):
            job.log.parent.mkdir(parents=True, exist_ok=True)
            for file in (job.log, job.out):
                file.unlink(missing_ok=True)
        logger.info("%s: started, layerwise %s", job.name, shlex.join(job.command))
        self.running[slot] = (job, launcher.start(job, slot), time.monotonic())

    def _look(self) -> None:
        for slot, (job, running, began) in list(self.running.items()):
            if (code := running.code()) is None:
                continue
            del self.running[slot]
            self.ended += 1
            took = duration(time.monotonic() - began)
            logger.info("%s: ended after %s (%s of %s)", job.name, took, self.ended, self.total)
            if code:
                self.lost[job.name] = _why(job, code)
                logger.warning("%s", self.lost[job.name])
            else:
                self.well(job)

    def _stop(self) -> None:
        """Stop all, and wait until they have written their checkpoints; a second Ctrl-C does not wait."""
        now = False
        while self.running:
            try:
                for _, running, _ in self.running.values():
                    running.stop(now=now)
                while any(running.code() is None for _, running, _ in self.running.values()):
                    time.sleep(PAUSE)
                self.running.clear()
            except KeyboardInterrupt:
                now = True


def _why(job: Job, code: int) -> str:
    """What a job that did not end well has said last, or what ended it."""
    if code < 0:
        with suppress(ValueError):
            return f"{job.name} was killed ({signal.Signals(-code).name}); its log is {job.log}"
    said = _last_line(job.log).removeprefix("error: ")
    return f"{job.name} ended with code {code}{': ' * bool(said)}{said} (see {job.log})"


def _last_line(file: Path) -> str:
    """The last line of a log that is being written; empty without one."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
            lines = log.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


@final
class _Lines:
    """A line for each running job: its name, how long it runs, and the last line of its log."""

    def __init__(self, running: Mapping[int, tuple[Job, Running, float]], show: bool) -> None:
        self.running, self.live = running, None
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), transient=True, refresh_per_second=2)

    def __enter__(self) -> _Lines:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def update(self) -> None:
        """Show what is so now."""
        if self.live is None:
            return
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for job, _, began in self.running.values():
            row = (job.name, duration(time.monotonic() - began), _last_line(job.log))
            table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
        self.live.update(table)


@final
class _Machine:
    """This machine: a process a job, the cores shared out, the accelerators in turn."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.devices = [*map(str, range(torch.cuda.device_count()))] if named is None else named.split(",")

    def start(self, job: Job, slot: int) -> Running:
        """See `Launcher`. The process leaves the terminal's group: Ctrl-C there is this process's to pass on."""
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        if len(self.devices) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        typed = [sys.executable, "-m", "layerwise", *job.command]
        with writing(job.log), job.log.open("wb") as log, job.out.open("wb") as out:
            process = subprocess.Popen(
                typed, stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=environment, start_new_session=True
            )
        return _Process(process)


@final
@dataclass(frozen=True)
class _Process:
    """A process of this machine."""

    process: subprocess.Popen[bytes]

    def code(self) -> int | None:
        """See `Running`."""
        return self.process.poll()

    def stop(self, *, now: bool) -> None:
        """See `Running`; SIGTERM, since a process in the background may ignore SIGINT."""
        self.process.kill() if now else self.process.terminate()


def _cluster(crew: Crew, folder: Path) -> Launcher:
    """A cluster, by submitit."""
    try:
        import submitit
    except ImportError:
        raise ConfigError("--cluster needs the package submitit; type pip install 'layerwise[cluster]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    try:
        executor = submitit.AutoExecutor(folder=folder / "submitit", cluster=crew.cluster)
        executor.update_parameters(**{"timeout_min": DAY, **crew.options})
    except (ValueError, NameError, AssertionError, RuntimeError) as error:
        told = " ".join(str(error).split())
        raise ConfigError(f"--cluster {crew.cluster}: {told}") from None
    # On other machines the cluster says how many cores a job has.
    return _Cluster(executor, crew.threads if crew.cluster == "local" else None)


@final
@dataclass(frozen=True)
class _Cluster:
    """A cluster."""

    executor: Any
    threads: int | None

    def start(self, job: Job, slot: int) -> Running:
        """See `Launcher`."""
        import submitit

        class Resumed(submitit.helpers.Checkpointable):  # type: ignore[misc, unused-ignore]
            """A call that is put into the queue again as it is when the cluster takes its machine away: it goes on by itself."""

            def __call__(self, *arguments: Any) -> int:
                return here(*arguments)

        call: Any = Resumed
        return _Submitted(self.executor.submit(call(), job.command, job.log, job.out, self.threads))


@final
@dataclass(frozen=True)
class _Submitted:
    """A job of a cluster."""

    job: Any

    def code(self) -> int | None:
        """See `Running`; what the cluster has ended without a result counts as killed."""
        if not self.job.done():
            return None
        try:
            return int(self.job.result())
        except Exception as error:  # of submitit's own kinds, and those of its cluster's commands
            logger.debug("%s", error)
            return -signal.SIGKILL

    def stop(self, *, now: bool) -> None:
        """See `Running`."""
        self.job.cancel()


def here(command: tuple[str, ...], log: Path, out: Path, threads: int | None) -> int:
    """Run a command in this process, which a cluster has started for it; its exit code."""
    if threads is not None:
        torch.set_num_threads(threads)
    sys.argv = ["layerwise", *command]
    with log.open("w") as told, out.open("w") as said, redirect_stderr(told), redirect_stdout(said):
        try:
            runpy.run_module("layerwise", run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
    return 0
