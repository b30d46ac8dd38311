"""What an example found: a JSON file that grows part by part, so that a stopped run goes on, and its differences in words."""

from __future__ import annotations

import argparse
import json
import logging
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import layerwise as lw
from layerwise.evaluation.intervals import Estimate, mean_of
from layerwise.files import write_text
from layerwise.report.pairs import signed

logger = logging.getLogger("layerwise.examples")


class Record:
    """Settings, machine and parts; whatever is known already is not computed again.

    Args:
        file: where it is kept; None keeps it in memory only.
        settings: of the run; a file made with others is refused.

    Raises:
        ValueError: the file was made with other settings.
    """

    def __init__(self, file: Path | None, settings: Mapping[str, Any]) -> None:
        self.file = file
        versions = {"layerwise": lw.__version__, "torch": torch.__version__, "python": platform.python_version()}
        self.content: dict[str, Any] = {"settings": dict(settings), "versions": versions, "parts": {}}
        if file is not None and file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["settings"] != json.loads(json.dumps(self.content["settings"])):
                raise ValueError(f"{file} was made with other settings, {found['settings']}; name another file")
            self.content = found

    @property
    def parts(self) -> dict[str, Any]:
        """What has been found, by name."""
        parts: dict[str, Any] = self.content["parts"]
        return parts

    def part(self, name: str, find: Callable[[], Any]) -> Any:
        """A part that is known, or is found now and kept."""
        if name not in self.parts:
            self.parts[name] = find()
            self.keep()
            logger.info("%s: %s", name, self.parts[name])
        return self.parts[name]

    def conclude(self, verdict: Sequence[str]) -> None:
        """Put the verdict beside the parts."""
        self.content["verdict"] = list(verdict)
        self.keep()
        logger.info("%s", "\n".join(verdict))

    def keep(self) -> None:
        """Write the file."""
        if self.file is not None:
            write_text(self.file, json.dumps(self.content, indent=1) + "\n")


Shares = Mapping[str, Mapping[str, Sequence[float]]]
"""Of every way and kind, a share for each seed, or for each image that all have seen."""


def seeds_of(parts: Mapping[str, Any]) -> range:
    """Seeds that have as many parts as the first; names of parts begin with the seed.

    >>> seeds_of({"choice 0.1": 1, "0 plain": 1, "0 own": 1, "1 plain": 1, "1 own": 1, "2 plain": 1})
    range(0, 2)
    """
    counts = Counter(int(name.partition(" ")[0]) for name in parts if name[0].isdigit())
    return range(sum(count == counts[0] for count in counts.values()))


def compared(found: Shares, base: str, unit: str = "seeds") -> list[str]:
    """A line for every way, and one for each of its differences from the base.

    Args:
        found: the shares.
        base: the way that the others are compared with.
        unit: what a share is of.

    >>> for line in compared({"plain": {"clean": [0.70, 0.72]}, "own": {"clean": [0.73, 0.76]}}, "plain"):
    ...     print(line)
    plain: clean 71.0 % [58.3, 83.7].
    own: clean 74.5 % [55.4, 93.6].
    own beside plain, clean: +3.5 points [-2.9, +9.9], undecided over 2 seeds.
    """
    lines = [
        f"{way}: " + ", ".join(f"{kind} {percent(shares)}" for kind, shares in kinds.items()) + "."
        for way, kinds in found.items()
    ]
    return lines + [
        f"{way} beside {base}, {kind}: {points(shares, found[base][kind], unit)}."
        for way, kinds in found.items()
        if way != base
        for kind, shares in kinds.items()
    ]


def points(own: Sequence[float], base: Sequence[float], unit: str = "seeds") -> str:
    """The mean difference of shares, paired: each seed has its own data and start, each image is the same, for both.

    >>> points([0.72, 0.75, 0.73], [0.70, 0.72, 0.72])
    '+2.0 points [-0.5, +4.5], undecided over 3 seeds'
    >>> points([0.5], [0.5])
    '0.0 points, one seed: undecided'
    >>> points([0.50, 0.75], [0.25, 0.50])
    '+25.0 points [+25.0, +25.0], undecided over 2 seeds'
    """
    mean = mean_of([a - b for a, b in zip(own, base, strict=True)])
    if mean.half_width is None:
        return signed(Estimate.exactly(mean.value), " points").partition(" [")[0] + ", one seed: undecided"
    low, high = mean.value - mean.half_width, mean.value + mean.half_width
    # Few shares of few passages may differ by the same amount by chance: no spread decides nothing.
    word = "undecided" if low <= 0 <= high or mean.half_width < 1e-6 else "more" if low > 0 else "less"
    return f"{signed(Estimate(mean.value, low, high), ' points')}, {word} over {mean.runs} {unit}"


def percent(shares: Sequence[float]) -> str:
    """The mean of shares, and its interval where there are several.

    >>> percent([0.71]), percent([0.98, 0.99])
    ('71.0 %', '98.5 % [92.1, 100.0]')
    """
    mean = mean_of(shares)
    value = f"{100 * mean.value:.1f} %"
    if mean.half_width is None:
        return value
    low, high = max(0.0, mean.value - mean.half_width), min(1.0, mean.value + mean.half_width)
    return f"{value} [{100 * low:.1f}, {100 * high:.1f}]"


def options(document: str | None, *, folder: str, seeds: int) -> argparse.ArgumentParser:
    """What every example is called with.

    Args:
        document: its documentation.
        folder: what the folder of its data holds.
        seeds: how many, where nobody says otherwise.
    """
    parser = argparse.ArgumentParser(description=(document or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help=folder)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--output", type=Path, help="a file for the record, JSON; a stopped run goes on from it")
    return parser
