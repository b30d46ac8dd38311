"""Training steps with the channels of each pixel together in memory (`channels_last`) and apart, in turns in one process.

    python -m benchmarks.layouts --network preact_resnet18 --shape 3,32,32 --output benchmarks/results/layouts-preact_resnet18-cpu.json

Options are those of `layerwise bench step`; `chosen` in the record is what `training.channels_last: auto` does with the network.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from benchmarks.command import timed

from layerwise.core.layout import fastest
from layerwise.experiments.bench.stepping import Setup, somewhere
from layerwise.experiments.bench.steps import Record, Say, described
from layerwise.experiments.bench.timing import Clock, interleaved, machine, ratio

METHODS = ("Standard", "FGSM", "SLAT", "PGD")
LAYOUTS = {"apart": False, "together": True}


def bench_layouts(
    setup: Setup, methods: Sequence[str], *, rounds: int, seconds: float, say: Say, clock: Clock = time.perf_counter
) -> Record:
    """Time each method's step in both layouts; arguments as those of `bench_steps`."""
    rows, device = [], torch.device("cpu")
    for text in methods:
        with ExitStack() as stack:
            runs = {}
            for name, value in LAYOUTS.items():
                chosen = replace(setup, training=replace(setup.training, channels_last=value))
                contestant = stack.enter_context(somewhere(text, chosen))
                device, runs[name] = contestant.loop.session.place.device, contestant.run
            times = interleaved(runs, device, rounds=rounds, seconds=seconds, clock=clock)
        typical = {name: 1e3 * statistics.median(own) for name, own in times.items()}
        rows.append({"method": text, **typical, "gain": ratio(times["apart"], times["together"])})
        say(f"{rows[-1]}")
    auto = fastest(setup.network().to(device), setup.data()[0].to(device))
    return {
        "kind": "layouts",
        "machine": machine(device),
        "settings": described(setup, rounds, seconds, clock),
        "chosen": "together" if auto is torch.channels_last else "apart",
        "rows": rows,
    }


def layouts_table(record: Record) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows as people read them."""
    numbers = ("apart", "together", "gain")
    body: list[tuple[str, ...]] = [(row["method"], *(f"{row[name]:.2f}" for name in numbers)) for row in record["rows"]]
    return ("method", "apart, ms", "together, ms", "gain"), body


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write the record."""
    return timed("layouts", __doc__, bench_layouts, layouts_table, METHODS, argv)


if __name__ == "__main__":
    sys.exit(main())
