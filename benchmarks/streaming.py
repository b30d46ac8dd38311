"""Pictures of 224 pixels from folders: how fast they are read, and what training on them takes in time and memory.

Run from the root of the repository on a folder with train/CLASS/ and val/CLASS/ (its files are linked often enough to be a volume):

    python -m benchmarks.streaming FOLDER benchmarks/results/streaming-cpu.json --note "what else the machine did"

Every line of the record comes from a process of its own, because a process's peak memory never falls.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from layerwise import methods, models
from layerwise.data import ImageData, batches, load
from layerwise.experiments.bench.stepping import WATCHED, loop_of, training
from layerwise.experiments.bench.timing import ALLOCATOR, machine
from layerwise.training.fit import advance

READ = {"batch": 32, "batches": 16}
TRAINED = {"batch": 8, "batches": 2}
EXACT = {"MALLOC_MMAP_THRESHOLD_": "1048576"}
"""glibc's setting under which every block of a megabyte goes back when it is freed: peaks then repeat."""
NETWORKS = ("resnet18_imagenet", "resnet50_imagenet")
METHODS: dict[str, dict[str, Any]] = {"Standard": {}, "SLAT": {"sites": ["conv1", "layer1"], "eta": 4 / 255}}


def volume(source: Path, target: Path, *, copies: int) -> None:
    """The same folders with every training picture linked several times."""
    for path in sorted(source.glob("*/*/*")):
        folder = target / path.parent.relative_to(source)
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(copies if path.parts[-3] == "train" else 1):
            (folder / f"{i}-{path.name}").symlink_to(path.resolve())


def used() -> float:
    """Seconds of processor time of this process and of its workers that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak() -> float:
    """The most memory that this process has held, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def pictures(root: Path) -> ImageData:
    """The shorter side at 256, the middle square of 224."""
    return load("image-folder", root=root, size=224, resize=256)


def read(root: Path, *, workers: int) -> dict[str, Any]:
    """Read batches and do nothing with them."""
    split = pictures(root).train.subset(range(READ["batch"] * READ["batches"]))
    began, cost = time.perf_counter(), used()
    count = sum(len(x) for x, _ in batches(split, READ["batch"], shuffle=True, num_workers=workers))
    seconds = time.perf_counter() - began
    return {
        "workers": workers,
        "images": count,
        "images_per_second": count / seconds,
        "processor_ms_per_image": 1e3 * (used() - cost) / count,
    }


def recomputed(network: nn.Module) -> None:
    """Make every residual block forget its activations; they are computed again in the backward pass."""
    for name, module in network.named_modules():
        if name.rpartition(".")[2].isdigit() and name.startswith("layer"):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def train(root: Path, *, network: str, method: str, checkpoints: bool) -> dict[str, Any]:
    """Train with `fit`'s own step, past the batches whose perturbations are measured."""
    data, net = pictures(root), models.build(network, num_classes=20, shape=(3, 224, 224))
    if checkpoints:
        recomputed(net)
    settings = training(batch_size=TRAINED["batch"], accelerator="cpu")
    chosen = getattr(methods, method)(**METHODS[method])
    before = peak()
    with ExitStack() as stack:
        loop = loop_of(net, chosen, data, settings, stack)
        images, times = loop.session.images(), []
        for x, y in islice(images, WATCHED + TRAINED["batches"]):
            began = time.process_time()
            loop.session.end_batch(x, y, advance(loop, chosen, x, y))
            times.append(time.process_time() - began)
    seconds = sum(times[WATCHED:]) / (TRAINED["batch"] * TRAINED["batches"])
    return {
        "network": network,
        "method": method,
        "checkpoints": checkpoints,
        "processor_ms_per_image": 1e3 * seconds,
        "images_per_processor_second": 1 / seconds,
        "peak_mb": peak(),
        "peak_before_mb": before,
    }


def apart(root: Path, task: dict[str, Any], *, allocator: dict[str, str] = ALLOCATOR) -> dict[str, Any]:
    """A line of the record, from a fresh process."""
    command = [sys.executable, "-m", "benchmarks.streaming", str(root), json.dumps(task), "--task"]
    environment = {k: v for k, v in os.environ.items() if k not in ALLOCATOR} | allocator
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    row: dict[str, Any] = json.loads(done.stdout)
    sys.stderr.write(f"{row}\n")
    return row


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output")
    parser.add_argument("--note", default="", help="what a reader has to know about this run")
    parser.add_argument("--task", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.task:
        task = json.loads(given.output)
        act = train if "network" in task else read
        sys.stdout.write(json.dumps(act(given.folder, **task)))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        volume(given.folder, root, copies=2)
        reading = [apart(root, {"workers": workers}) for workers in (0, 1, 2)]
        wanted = [
            {"network": n, "method": m, "checkpoints": c} for n in NETWORKS for m in METHODS for c in (False, True)
        ]
        timed = [apart(root, task) for task in wanted]
        # A process that keeps its blocks is faster, and leaves gaps between them that are no part of what training takes.
        weighed = [apart(root, task, allocator=EXACT) for task in wanted]
        trained = [{**row, "peak_mb": w["peak_mb"]} for row, w in zip(timed, weighed, strict=True)]
    record = {
        "kind": "streaming",
        "machine": {**machine(torch.device("cpu")), "allocator": ALLOCATOR, "allocator_of_peak_mb": EXACT},
        "settings": {"size": 224, "resize": 256, "read": READ, "trained": TRAINED, "methods": METHODS},
        "note": given.note,
        "reading": reading,
        "training": trained,
    }
    Path(given.output).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
