"""Corruptions of pictures of 224 pixels, ours and those of the package `imagecorruptions`, in turns in one process.

Run from the root of the repository, in an environment of its own that also has the other package:

    pip install imagecorruptions scikit-image opencv-python-headless "setuptools<81"
    python -m benchmarks.corruptions benchmarks/results/corruptions-cpu.json --threads 1
    python -m benchmarks.corruptions benchmarks/results/corruptions-cpu-2-threads.json --threads 2

Each is given the pictures as it takes them: ours one float tensor (B, 3, 224, 224), the other uint8 arrays one by one. Both use the
constants of ImageNet-C, with two exceptions on its side: its elastic transform leaves the affine map out, and its pixelate enlarges
by the nearest pixel. Where the package is not installed, ours are timed alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerwise.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from layerwise.experiments.bench.timing import Clock, Run, interleaved, machine, ratio

SIDE = 224
PEER = "imagecorruptions"
LIBRARIES = ("numpy", "scipy", "scikit-image", "opencv-python-headless", "pillow")

Peer = Callable[..., Any]
"""The other package's `corrupt`."""


def pictures(count: int) -> Tensor:
    """Squares of scikit-learn's two photographs, multiples of 1/255, float32, shape (count, 3, SIDE, SIDE)."""
    from sklearn.datasets import load_sample_images

    photographs = [torch.from_numpy(picture) for picture in load_sample_images().images]
    stream, squares = torch.Generator().manual_seed(0), []
    for i in range(count):
        picture = photographs[i % len(photographs)]
        top, left = (int(torch.randint(n - SIDE, (), generator=stream)) for n in picture.shape[:2])
        squares.append(picture[top : top + SIDE, left : left + SIDE].permute(2, 0, 1))
    return torch.stack(squares) / 255


def peer(threads: int) -> tuple[Peer | None, dict[str, str]]:
    """The other package, if it is there, and the versions of what it works with.

    It was written for older releases of its libraries: two names that have changed since are given to it.
    """
    try:
        warnings.simplefilter("ignore")  # it imports what setuptools and SciPy discourage
        np.float_ = np.float64  # type: ignore[attr-defined]
        package, cv2 = import_module(PEER), import_module("cv2")
    except ImportError as error:
        sys.stderr.write(f"{PEER} is left out: {error}\n")
        return None, {}
    cv2.setNumThreads(threads)
    own: Any = import_module(f"{PEER}.corruptions")
    smooth = own.gaussian

    def gaussian(*arguments: Any, multichannel: bool = False, **options: Any) -> Any:
        return smooth(*arguments, channel_axis=-1 if multichannel else None, **options)

    own.gaussian = gaussian
    return package.corrupt, {name: version(name) for name in (PEER, *LIBRARIES)}


def turns(name: str, severity: int, x: Tensor, other: Peer | None) -> dict[str, Run]:
    """One corruption of the batch by each."""
    arrays = list((x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy())

    def theirs() -> None:
        for array in arrays:
            assert other is not None
            other(array, severity=severity, corruption_name=name)

    def ours() -> None:
        corrupt(x, name, severity, table="imagenet")

    return {"layerwise": ours} if other is None else {"layerwise": ours, PEER: theirs}


def compare(
    names: Sequence[str], severities: Sequence[int], x: Tensor, other: Peer | None, *, rounds: int, clock: Clock
) -> list[dict[str, Any]]:
    """A row a corruption and severity: milliseconds an image, and how many times ours the other takes."""
    rows = []
    for name in names:
        for severity in severities:
            runs = turns(name, severity, x, other)
            times = interleaved(runs, x.device, rounds=rounds, seconds=0.05, clock=clock)
            row: dict[str, Any] = {"corruption": name, "severity": severity}
            for who, own in times.items():
                row[who] = round(1e3 * statistics.median(own) / len(x), 3)
            if other is not None:
                row["times_ours"] = round(ratio(times[PEER], times["layerwise"]), 2)
            rows.append(row)
            sys.stderr.write(f"{row}\n")
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--names", nargs="+", default=list(CORRUPTIONS), choices=list(CORRUPTIONS), metavar="NAME")
    parser.add_argument("--severities", nargs="+", type=int, default=list(SEVERITIES), choices=SEVERITIES)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="one is timed by the processor time used (default: 1)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", default="", help="what a reader has to know about this run")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    other, versions = peer(given.threads)
    clock = time.process_time if given.threads == 1 else time.perf_counter
    x = pictures(given.images)
    rows = compare(given.names, given.severities, x, other, rounds=given.rounds, clock=clock)
    settings = {key: getattr(given, key) for key in ("images", "threads", "rounds")}
    record = {
        "kind": "corruptions",
        "machine": {**machine(x.device), "peer": versions},
        "settings": {**settings, "side": SIDE, "clock": clock.__name__},
        "note": given.note,
        "rows": rows,
    }
    given.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
