"""Seconds of training to 45 % under PGD-50 on CIFAR-10, on a GPU.

    python -m benchmarks.robust --output benchmarks/results/robust.json
    python -m benchmarks.robust --recipe n-fgsm-digits --goal 0.5 --attack pgd-10 --model.name digits_cnn
        --training.compile false

Settings of the recipe are typed as `layerwise train` has them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layerwise.attacks import parse_attack
from layerwise.cli.arguments import add_runs
from layerwise.cli.bench import keep
from layerwise.cli.console import complain, say, tell_messages
from layerwise.errors import ConfigError, LayerwiseError
from layerwise.experiments import experiment
from layerwise.experiments.bench.timing import machine

ATTACK, GOAL = "pgd-50", 0.45
RECIPE = "n-fgsm-cifar10"
SETTINGS = (
    "--model.name=preact_resnet18",
    "--model.options={}",
    "--training.epochs=15",
    "--training.eval_every=0",
    "--training.precision=bf16-mixed",
    "--training.channels_last=true",
    "--training.compile=true",
    "--training.capture=auto",
)
"""What a GPU takes; what is typed beside the command replaces it."""


def bench_robust(
    recipe: str,
    settings: list[str],
    *,
    folder: Path,
    progress: bool,
    goal: float | None = None,
    attack: str = ATTACK,
) -> dict[str, Any]:
    """Train a recipe, evaluate it on the test set, and tell whether it reached the goal and in what time.

    `seconds` are those of `fit`, what it compiles included; `whole_seconds` those from the command to the verdict:
    data, training and evaluating.

    Args:
        recipe: its name.
        settings: `--training.epochs=20`, ... after those that the benchmark has.
        folder: of the run, which must not be there.
        progress: show it.
        goal: accuracy under the attack, in [0, 1]; None is the headline's, which is CIFAR-10's alone.
        attack: to evaluate under.

    Raises:
        ConfigError: the folder is taken, the goal is none, it is not said for other data than CIFAR-10, or another attack is named.
    """
    attack = str(parse_attack(attack))  # as records have it: pgd-50-1 is pgd-50
    if folder.exists():
        raise ConfigError(f"{folder} is there already, and time counts from the first batch; type another --name")
    changes = [*SETTINGS, f"--evaluation.attacks=[clean, {attack}]", *settings]
    chosen, tree = experiment.read(recipe, changes, trust=True)
    if goal is None and chosen.data.name != "cifar10":
        raise ConfigError(
            f"{recipe} is trained on {chosen.data.name}; the benchmark is CIFAR-10's: type a --goal for it"
        )
    goal = GOAL if goal is None else goal
    if not 0 < goal <= 1:
        raise ConfigError(f"goal={goal} is no accuracy to reach; type a number above 0, up to 1")
    if attack not in [str(parse_attack(text)) for text in chosen.evaluation.attacks]:
        raise ConfigError(f"the benchmark counts {attack}; leave it among evaluation.attacks")
    began = time.perf_counter()
    result, evaluation = experiment.train(chosen, tree, folder=folder, progress=progress)
    whole, accuracies = time.perf_counter() - began, evaluation.accuracies
    return {
        "kind": "robust",
        "machine": machine(experiment.best_device()),
        "settings": {"recipe": recipe, "changes": changes},
        "data": chosen.data.name,
        "seconds": result.seconds,
        "whole_seconds": whole,
        "steps": result.steps,
        "images": evaluation.worst.total,
        "accuracies": accuracies,
        "attack": attack,
        "goal": goal,
        "reached": accuracies[attack] >= goal,
        "messages": result.messages,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Train, evaluate, tell whether the goal was reached, and write the record."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robust", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--recipe", default=RECIPE, help=f"its name (default: {RECIPE})")
    parser.add_argument("--goal", type=float, help=f"accuracy to reach, for other data than CIFAR-10 (default: {GOAL})")
    parser.add_argument("--attack", default=ATTACK, help=f"to evaluate under (default: {ATTACK})")
    parser.add_argument("--name", default="bench-robust", help="run folder (default: bench-robust)")
    add_runs(parser)
    parser.add_argument("--output", type=Path, help="also write the record there, as JSON")
    arguments, settings = parser.parse_known_args(argv)
    tell_messages()
    try:
        record = bench_robust(
            arguments.recipe,
            settings,
            folder=arguments.runs / arguments.name,
            progress=True,
            goal=arguments.goal,
            attack=arguments.attack,
        )
    except LayerwiseError as error:
        complain(str(error))
        return 2
    scores = ", ".join(f"{name} {value:.1%}" for name, value in record["accuracies"].items())
    verdict = "reached" if record["reached"] else "not reached"
    say(
        f"{record['seconds']:.1f} s of training, {record['steps']:,} batches: {scores}; "
        f"{record['goal']:.0%} under {record['attack']} {verdict}"
    )
    keep(record, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
