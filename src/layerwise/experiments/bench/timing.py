"""Fair timings on a machine that is not quiet: contestants take turns, and what is compared is compared within a turn."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from layerwise.training import versions

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
"""glibc's settings under which large blocks are kept: otherwise timings on a CPU swing with page faults."""

Run = Callable[[], None]
"""Does one step."""
Clock = Callable[[], float]
"""Seconds since some moment."""


def interleaved(
    runs: Mapping[str, Run],
    device: torch.device,
    *,
    rounds: int,
    seconds: float,
    clock: Clock = time.perf_counter,
    part: bool = False,
) -> dict[str, list[float]]:
    """Seconds a step takes, {name: one number a round}.

    In each round each contestant runs for about `seconds`, one after the other, in an order that moves on by one from round to round.

    Args:
        runs: the contestants.
        device: what they run on; it is waited for at both ends.
        rounds: how many.
        seconds: of one contestant in one round.
        clock: `time.process_time` counts what this process alone has used of a CPU that others use too; only with one thread.
        part: after Ctrl-C give the whole rounds that there are, if there is one.

    >>> found = interleaved({"a": lambda: None, "b": lambda: None}, torch.device("cpu"), rounds=3, seconds=1e-4)
    >>> {name: len(times) for name, times in found.items()}
    {'a': 3, 'b': 3}
    """
    names = list(runs)
    steps = {name: max(1, round(seconds / max(_timed(runs[name], 1, device, clock), 1e-7))) for name in names}
    found: dict[str, list[float]] = {name: [] for name in names}
    try:
        for turn in range(rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                found[name].append(_timed(runs[name], steps[name], device, clock) / steps[name])
    except KeyboardInterrupt:
        whole = min(map(len, found.values()))
        if not part or not whole:
            raise
        return {name: times[:whole] for name, times in found.items()}
    return found


def _timed(run: Run, steps: int, device: torch.device, clock: Clock) -> float:
    _wait(device)
    started = clock()
    for _ in range(steps):
        run()
    _wait(device)
    return clock() - started


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def ratio(times: list[float], to: list[float]) -> float:
    """The median over rounds of a / b, both of the same round.

    >>> ratio([2.0, 20.0, 2.2], [1.0, 10.0, 1.0])
    2.0
    """
    return statistics.median(a / b for a, b in zip(times, to, strict=True))


def repeated(
    measure: Callable[..., dict[str, Any]],
    *arguments: Any,
    say: Callable[[str], object],
    processes: int,
    threads: int | None,
    **options: Any,
) -> dict[str, Any]:
    """A record measured in so many fresh processes, one after the other: its rows are medians over them.

    Where a network's memory happens to lie moves its times by a few hundredths, which no number of rounds in one process averages out.

    Args:
        measure: gives a record with "rows", the same ones each time; what is handed over is pickled.
        arguments: for `measure`.
        say: is told what does not run, once.
        processes: how many; 1 measures here.
        threads: of each; None is torch's own choice.
        options: for `measure`.
    """
    if processes == 1:
        return measure(*arguments, say=say, **options)
    records = []
    for number in range(processes):
        told = say if number == 0 else _drop
        with get_context("spawn").Pool(1, initializer=_start, initargs=(threads,)) as pool:
            records.append(pool.apply(measure, arguments, {"say": told, **options}))
            pool.close()
            pool.join()  # so that what other libraries opened is closed
    return {**records[0], "processes": processes, "rows": medians([r["rows"] for r in records])}


def _start(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def medians(tables: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows whose fractions are medians over the tables; the rest is the first table's.

    >>> medians([[{"method": "PGD", "ratio": 7.5}], [{"method": "PGD", "ratio": 8.5}]])
    [{'method': 'PGD', 'ratio': 8.0}]
    """
    return [
        {
            key: statistics.median(row[key] for row in rows) if isinstance(value, float) else value
            for key, value in rows[0].items()
        }
        for rows in zip(*tables, strict=True)
    ]


def matrix_ceiling(
    device: torch.device,
    dtype: torch.dtype,
    *,
    size: int | None = None,
    rounds: int = 5,
    clock: Clock = time.perf_counter,
) -> float:
    """Floating-point operations a second of a large matrix product, the best of a few."""
    n = size or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    runs = {"product": lambda: _drop(a @ b)}
    times = interleaved(runs, device, rounds=rounds, seconds=0.1, clock=clock)["product"]
    return 2.0 * n**3 / min(times)


def _drop(value: object) -> None:
    del value


def machine(device: torch.device) -> dict[str, Any]:
    """Versions and hardware for a record."""
    return {**versions(device), "processor": _processor(), "allocator": {k: os.environ.get(k) for k in ALLOCATOR}}


def _processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else str(versions()["processor"])


def hint(device: torch.device) -> str:
    """What to set for timings that repeat, or nothing."""
    if device.type != "cpu" or all(os.environ.get(k) == v for k, v in ALLOCATOR.items()):
        return ""
    settings = " ".join(f"{k}={v}" for k, v in ALLOCATOR.items())
    return f"\nTimings on a CPU swing less with {settings} set."
