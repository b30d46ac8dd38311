"""What metrics.jsonl tells about a training."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from layerwise.report.document import clean
from layerwise.training.monitor import OVERFITTING

Line = dict[str, Any]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class History:
    """The lines of metrics.jsonl.

    Args:
        lines: each with its `kind`.
        problem: a sentence about what could not be read; empty is good.
    """

    lines: tuple[Line, ...]
    problem: str = ""

    def of(self, kind: str) -> list[Line]:
        """The lines of a kind."""
        return [line for line in self.lines if line["kind"] == kind]

    @property
    def per_epoch(self) -> float | None:
        """Batches an epoch, None where no epoch ended."""
        found = [number(e.get("step")) / number(e.get("epoch")) for e in self.of("epoch") if number(e.get("epoch")) > 0]
        return found[-1] if found and 0 < found[-1] < math.inf else None

    def curve(self, kind: str, field: str) -> Points:
        """(epochs done, value) of a field, where there is a number; batches where no epoch ended."""
        scale = self.per_epoch or 1.0
        points = [(number(line.get("step")) / scale, number(line.get(field))) for line in self.of(kind)]
        return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]

    @property
    def overfitted(self) -> int | None:
        """The epoch in which robust accuracy collapsed, None where it did not."""
        for epoch in self.of("epoch"):
            flags, which = epoch.get("flags"), number(epoch.get("epoch"))
            if isinstance(flags, list) and OVERFITTING in flags and 0 < which < math.inf:
                return int(which)
        return None

    @property
    def epoch(self) -> int:
        """The epoch that the last line is of, from 1."""
        return int(max((e for line in self.lines if 0 < (e := number(line.get("epoch"))) < math.inf), default=1))

    @property
    def steps(self) -> int:
        """Batches done at the last line."""
        return int(max((s for line in self.lines if 0 < (s := number(line.get("step"))) < math.inf), default=0))

    @property
    def planned(self) -> int:
        """Batches of all epochs, whatever else ended the training; 0 where nothing says so, as in older runs."""
        found = [n for epoch in self.of("epoch") if 0 < (n := number(epoch.get("planned"))) < math.inf]
        return int(found[-1]) if found else 0

    @property
    def passes(self) -> str:
        """Passes a batch of the method that trained last; empty where nothing says so, as in older runs."""
        found = [n for epoch in self.of("epoch") if math.isfinite(n := number(epoch.get("passes")))]
        return f"{found[-1]:g}" if found else ""

    @property
    def images_per_second(self) -> float | None:
        """The median of what was logged."""
        rates = [y for _, y in self.curve("train", "images_per_second") if y > 0]
        return statistics.median(rates) if rates else None

    @property
    def seconds(self) -> float | None:
        """Seconds that the loop took, with its looks at the validation split, summed over the calls that a resumed run needed."""
        ends = [end for epoch in self.of("epoch") if math.isfinite(end := number(epoch.get("seconds")))]
        # Each call counts from 0, so a smaller number than the one before begins another call.
        return sum(now - before if now >= before else now for before, now in pairwise([0.0, *ends])) if ends else None

    def sites(self) -> dict[str, list[Line]]:
        """{site: its sizes, in the order of the steps}."""
        found: dict[str, list[Line]] = {}
        for line in self.of("sites"):
            sites = line.get("sites")
            for site, sizes in sites.items() if isinstance(sites, dict) else ():
                if isinstance(sizes, dict):
                    found.setdefault(site, []).append(sizes)
        return found


MOST = 1 << 22
"""Bytes of lines that are read, some 25,000 of them: a longer file is thinned, since no figure shows more."""

LONGEST = 1 << 20
"""Bytes of a line; one that has more is no line of ours."""


def read_history(file: Path) -> History:
    """Read metrics.jsonl up to the first line that is damaged; of a long file every so many-th line, and all that end an epoch."""
    if file.exists() and not file.is_file():
        return History((), f"{file.name} is no plain file.")
    lines: list[Line] = []
    try:
        step = max(1, -(-file.stat().st_size // MOST))
        with file.open("rb") as source:
            for index, line in enumerate(iter(partial(source.readline, LONGEST), b""), 1):
                # What our own files say of the end of an epoch has to be added up, not drawn.
                if index % step == 0 or (line.startswith(b'{"kind": "epoch"') and len(lines) < MOST >> 7):
                    lines.append(_read(line))
    except FileNotFoundError:
        return History((), f"{file.name} is missing.")
    except OSError as error:
        return History((), f"{file.name} cannot be read ({error}).")
    except (ValueError, KeyError, TypeError, RecursionError):
        shown = "nothing of it is shown" if index == 1 else "what stands before it is shown"
        return History(tuple(lines), f"{file.name} is damaged at line {index}; {shown}.")
    thinned = f"{file.name} has {file.stat().st_size / 1e6:,.0f} MB; one line in {step} is shown." if step > 1 else ""
    return History(tuple(lines), thinned)


def _read(line: bytes) -> Line:
    found = json.loads(line)
    return clean({**found, "kind": str(found["kind"])})


def number(value: object) -> float:
    """A number from JSON; what is none is NaN.

    >>> number("nan"), number(True), number(10**400), number(2)
    (nan, nan, inf, 2.0)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf
