"""How much memory this process has and had, as the kernel counts it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KNOWN = sys.platform == "linux"
"""Elsewhere nothing is measured: the peak cannot be reset there."""


def resident() -> float:
    """Megabytes in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def bounded(megabytes: float) -> Iterator[None]:
    """At no time inside are so many megabytes more in use than at first."""
    if not KNOWN:
        yield
        return
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")
    yield
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    grown = int(peak.split()[1]) * 1.024e-3 - before
    assert grown < megabytes, f"{grown:.0f} MB more were in use at the peak, allowed are {megabytes:.0f}"
