"""`layerwise bench step`: what runs against what, and the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from layerwise.core import registry
from layerwise.errors import LayerwiseError
from layerwise.experiments.bench.stepping import Contestant, Setup, by_hand, parse_method, somewhere
from layerwise.experiments.bench.timing import Clock, Run, interleaved, machine, matrix_ceiling, ratio

STANDARD = "Standard"
Record = dict[str, Any]
Say = Callable[[str], None]


def bench_steps(
    setup: Setup, methods: Sequence[str], *, rounds: int, seconds: float, say: Say, clock: Clock = time.perf_counter
) -> Record:
    """Time the steps of methods against the standard step, and against plain code where there is some.

    Args:
        setup: what is trained.
        methods: see `parse_method`; empty is all that are registered.
        rounds: see `interleaved`.
        seconds: see `interleaved`.
        say: is told what does not run.
        clock: see `interleaved`.

    Returns:
        Plain data: the machine, the settings, and a row a method.

    Raises:
        ConfigError: a method is misspelt, or the network does not fit the images.
    """
    wanted = list(dict.fromkeys([STANDARD, *(methods or registry.names("method"))]))
    for text in wanted:
        parse_method(text, setup)  # what is misspelt is no reason to leave a row out
    with ExitStack() as stack:
        contestants = {STANDARD: stack.enter_context(somewhere(STANDARD, setup))}
        for text in wanted[1:]:
            try:
                contestants[text] = stack.enter_context(somewhere(text, setup))
            except LayerwiseError as error:
                say(f"{text} is left out: {error}")
        place = contestants[STANDARD].loop.session.place
        dtype = {"bf16-mixed": torch.bfloat16, "64-true": torch.float64}.get(setup.training.precision, torch.float32)
        ceiling = matrix_ceiling(place.device, dtype, clock=clock)
        runs: dict[str, Run] = {}
        for text, contestant in contestants.items():
            runs[text] = contestant.run
            if (plain := by_hand(contestant, text, setup)) is not None:
                runs[_plain(text)] = plain
        times = interleaved(runs, place.device, rounds=rounds, seconds=seconds, clock=clock, part=True)
        rows = [_row(text, contestant, setup, times, ceiling) for text, contestant in contestants.items()]
    settings = {**described(setup, len(times[STANDARD]), seconds, clock), "ceiling_tflops": ceiling / 1e12}
    return {"kind": "step", "machine": machine(place.device), "settings": settings, "rows": rows}


def _plain(text: str) -> str:
    return f"{text}, by hand"


def described(setup: Setup, rounds: int, seconds: float, clock: Clock) -> Record:
    """The settings of a measurement, for its record."""
    chosen = setup.training
    training = {
        name: getattr(chosen, name) for name in ("precision", "compile", "capture", "channels_last", "clip_norm")
    }
    network = {"model": setup.model, "options": setup.options, "shape": setup.shape, "classes": setup.classes}
    return {**network, "batch": setup.batch, **training, "rounds": rounds, "seconds": seconds, "clock": clock.__name__}


def _row(
    text: str, contestant: Contestant, setup: Setup, times: Mapping[str, list[float]], ceiling: float
) -> dict[str, Any]:
    own, passes = times[text], contestant.method.passes
    typical, plain = statistics.median(own), times.get(_plain(text))
    return {
        "method": text,
        "milliseconds": 1e3 * typical,
        "fastest": 1e3 * min(own),
        "slowest": 1e3 * max(own),
        "images_per_second": setup.batch / typical,
        "passes": passes.total,
        "ratio": ratio(own, times[STANDARD]),
        "floor": passes.total / 3,
        "of_ceiling": contestant.operations / typical / ceiling,
        "by_hand": None if plain is None else 1e3 * statistics.median(plain),
        "to_by_hand": None if plain is None else ratio(own, plain),
        "captured": contestant.captured,
    }


def step_table(record: Record) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows as people read them."""
    header = ("method", "ms", "images/s", "passes", "ratio", "floor", "ceiling", "by hand", "graph")
    body: list[tuple[str, ...]] = []
    for row in record["rows"]:
        hand = "-" if row["to_by_hand"] is None else f"{row['to_by_hand']:.2f}"
        body.append(
            (
                row["method"],
                f"{row['milliseconds']:.2f}",
                f"{row['images_per_second']:,.0f}",
                str(row["passes"]),
                f"{row['ratio']:.2f}",
                f"{row['floor']:.2f}",
                f"{row['of_ceiling']:.1%}",
                hand,
                "yes" if row["captured"] else "no",
            )
        )
    return header, body
