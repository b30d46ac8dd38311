"""`layerwise bench`: steps, other libraries' steps, and the time to robustness."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from layerwise.core.checks import at_least
from layerwise.errors import ConfigError

TEXT = """\
Measure on this machine, in one run, what a training step costs.

  layerwise bench step                         every method's step against the
                                               standard one and plain code
  layerwise bench step --network preact_resnet18 --shape 3,32,32 --methods SLAT
      PGD:steps=7 "LAT:sites=first(2)" --precision bf16-mixed --capture auto
  layerwise bench peers                        the same steps with torchattacks,
                                               ART and MAIR, if installed
  layerwise bench robust                       seconds to 45 % under PGD-50 on
                                               CIFAR-10 (for a GPU)

Contestants take turns; ratios are medians over rounds. `docs/performance.md`
explains every column.
"""

PEERS = ("PGD", "PGD:steps=7", "FGSMRS", "TRADES")


def add_arguments(parser: Any) -> None:
    """The command's arguments."""
    parser.add_argument("what", choices=("step", "peers", "robust"), help="what to measure")
    parser.add_argument("--network", default="lenet", help="a network's name (default: lenet)")
    parser.add_argument("--options", default="{}", help="the network's options, as YAML: '{width: 32}'")
    parser.add_argument("--shape", default="1,28,28", help="of one image, channels,height,width (default: 1,28,28)")
    parser.add_argument("--classes", type=int, default=10, help="of the labels (default: 10)")
    parser.add_argument("--batch", type=int, default=128, help="images (default: 128)")
    parser.add_argument("--methods", nargs="+", default=[], help="such as SLAT PGD:steps=7 ANP:k=2 (default: all)")
    parser.add_argument("--precision", default="32-true", help="32-true, bf16-mixed or 64-true (default: 32-true)")
    parser.add_argument("--compile", action="store_true", help="run the network through torch.compile")
    parser.add_argument("--capture", choices=("auto", "true", "false"), default="auto", help="as training.capture")
    parser.add_argument("--channels-last", action="store_true", help="the memory format of convolutions on GPUs")
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
    parser.add_argument("--recipe", help="of `bench robust` (default: n-fgsm-cifar10)")
    parser.add_argument("--goal", type=float, help="accuracy to reach, for other data than CIFAR-10 (default: 0.45)")
    parser.add_argument("--attack", default="pgd-50", help="what judges `bench robust` (default: pgd-50)")
    parser.add_argument("--name", default="bench-robust", help="run folder of `bench robust` (default: bench-robust)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders (default: runs)")
    parser.add_argument("--output", type=Path, help="also write the record there, as JSON")


SMALLEST = {"classes": 2, "batch": 1, "threads": 1, "rounds": 1, "seconds": 0, "processes": 1}


def bench_command(arguments: Any, settings: list[str]) -> None:
    """`layerwise bench`."""
    from layerwise.cli.console import complain, say, show_table
    from layerwise.files import write_text

    if settings and arguments.what != "robust":
        raise ConfigError(f"bench {arguments.what} does not take {settings[0]}; see `layerwise bench --help`")
    for name, smallest in SMALLEST.items():
        if (value := getattr(arguments, name)) is not None:
            at_least(f"--{name}", value, smallest)
    if arguments.what == "robust":
        from layerwise.experiments.bench.robust import RECIPE, bench_robust

        record = bench_robust(
            arguments.recipe or RECIPE,
            settings,
            folder=arguments.runs / arguments.name,
            progress=True,
            goal=arguments.goal,
            attack=arguments.attack,
        )
        scores = ", ".join(f"{name} {value:.1%}" for name, value in record["accuracies"].items())
        verdict = "reached" if record["reached"] else "not reached"
        say(
            f"{record['seconds']:.1f} s of training, {record['steps']:,} batches: {scores}; "
            f"{record['goal']:.0%} under {record['attack']} {verdict}"
        )
    else:
        import torch

        from layerwise.experiments.bench.steps import bench_peers, bench_steps, peers_table, step_table
        from layerwise.experiments.bench.timing import hint, repeated

        busy = arguments.clock == "process"
        threads = 1 if busy else arguments.threads
        if threads is not None:
            torch.set_num_threads(threads)
        setup = setup_of(arguments)
        measure, table = (bench_steps, step_table) if arguments.what == "step" else (bench_peers, peers_table)
        methods = arguments.methods or (PEERS if arguments.what == "peers" else [])
        record = repeated(
            measure,
            setup,
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
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.output, json.dumps(record, indent=1) + "\n")


def setup_of(arguments: Any) -> Any:
    """What the arguments say is trained."""
    from layerwise.experiments.bench.stepping import Setup, training
    from layerwise.spelling import parse_options, parse_shape

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
            capture={"true": True, "false": False}.get(arguments.capture, "auto"),
            channels_last=arguments.channels_last,
            clip_norm=arguments.clip,
            accelerator=arguments.accelerator,
        ),
    )
