"""`layerwise bench step`: what a training step of each method costs on a network and this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from layerwise.cli.arguments import Command, parse_path

TEXT = """\
Measure on this machine, in one run, what a training step costs.

  layerwise bench step                         every method's step against the
                                               standard one and plain code
  layerwise bench step --network preact_resnet18 --shape 3,32,32 --methods SLAT
      PGD:steps=7 "LAT:sites=first(2)" --precision bf16-mixed --capture auto

Contestants take turns; ratios are medians over rounds. `docs/performance.md`
explains every column.
"""

SWITCH: dict[str, Any] = {"auto": "auto", "true": True, "false": False}
SMALLEST = {"classes": 2, "batch": 1, "threads": 1, "rounds": 1, "seconds": 0, "processes": 1}


def add_arguments(parser: Any) -> None:
    """The command's arguments."""
    parser.add_argument("what", choices=("step",), help="what to measure")
    add_setup(parser)


def add_setup(parser: Any) -> None:
    """The arguments that say what is trained and how it is timed."""
    parser.add_argument("--network", default="lenet", help="a network's name (default: lenet)")
    parser.add_argument("--options", default="{}", help="the network's options, as YAML: '{width: 32}'")
    parser.add_argument("--shape", default="1,28,28", help="of one image, channels,height,width (default: 1,28,28)")
    parser.add_argument("--classes", type=int, default=10, help="of the labels (default: 10)")
    parser.add_argument("--batch", type=int, default=128, help="images (default: 128)")
    parser.add_argument("--methods", nargs="+", default=[], help="such as SLAT PGD:steps=7 ANP:k=2 (default: all)")
    parser.add_argument("--precision", default="32-true", help="32-true, bf16-mixed or 64-true (default: 32-true)")
    parser.add_argument("--compile", action="store_true", help="run the network through torch.compile")
    for name in ("capture", "channels-last"):
        known = f"as training.{name.replace('-', '_')} (default: auto)"
        parser.add_argument(f"--{name}", choices=tuple(SWITCH), nargs="?", default="auto", const="true", help=known)
    parser.add_argument("--clip", type=float, help="clip the gradient's norm, as training.clip_norm")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's own choice)")
    parser.add_argument(
        "--clock", choices=("wall", "process"), default="wall",
        help="process counts this process's time only, on a busy CPU; sets --threads 1 (default: wall)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contestant (default: 7)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one turn (default: 0.5)")
    parser.add_argument(
        "--processes", type=int, default=1,
        help="measure in so many processes, one after the other, and give medians: where memory lies moves times by a few "
        "hundredths (default: 1)",
    )  # fmt: skip
    parser.add_argument("--output", type=parse_path, help="also write the record there, as JSON")


def run(arguments: Any, settings: list[str]) -> None:
    """Measure the steps."""
    from layerwise.experiments.bench.steps import bench_steps, step_table

    measured(arguments, bench_steps, step_table, arguments.methods)


def measured(
    arguments: Any,
    measure: Callable[..., dict[str, Any]],
    table: Callable[[dict[str, Any]], Any],
    methods: Sequence[str],
) -> None:
    """Measure, show the table, and write the record where the arguments say so.

    Args:
        arguments: of `add_setup`.
        measure: makes the record.
        table: header and rows of it.
        methods: as they are typed.
    """
    import torch

    from layerwise.cli.console import complain, say, show_table
    from layerwise.core.checks import at_least
    from layerwise.experiments.bench.timing import hint, repeated

    for name, smallest in SMALLEST.items():
        if (value := getattr(arguments, name)) is not None:
            at_least(f"--{name}", value, smallest)
    busy = arguments.clock == "process"
    threads = 1 if busy else arguments.threads
    if threads is not None:
        torch.set_num_threads(threads)
    record = repeated(
        measure,
        setup_of(arguments),
        methods,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        clock=time.process_time if busy else time.perf_counter,
        say=partial(complain, what=""),
        processes=arguments.processes,
        threads=threads,
    )
    show_table(*table(record))
    say(hint(torch.device(record["machine"]["device"])))
    keep(record, arguments.output)
    if (whole := record["settings"]["rounds"]) < arguments.rounds:
        raise KeyboardInterrupt(f"stopped by Ctrl-C; what is shown is of {whole} of {arguments.rounds} rounds")


def keep(record: dict[str, Any], output: Path | None) -> None:
    """Write a record where `--output` says."""
    from layerwise.files import write_text

    if output is not None:
        write_text(output, json.dumps(record, indent=1) + "\n")


def setup_of(arguments: Any) -> Any:
    """What the arguments say is trained."""
    from layerwise.cli.arguments import parse_options, parse_shape
    from layerwise.experiments.bench.stepping import Setup, training

    return Setup(
        model=arguments.network,
        options=parse_options(arguments.options),
        shape=parse_shape(arguments.shape),
        classes=arguments.classes,
        batch=arguments.batch,
        training=training(
            batch_size=arguments.batch,
            precision=arguments.precision,
            compile=arguments.compile,
            capture=SWITCH[arguments.capture],
            channels_last=SWITCH[arguments.channels_last],
            clip_norm=arguments.clip,
            accelerator=arguments.accelerator,
        ),
    )


COMMAND = Command(summary="measure what a training step costs here", text=TEXT, add_arguments=add_arguments, run=run)
