"""`layerwise bench robust`: seconds of training to 45 % under PGD-50 on CIFAR-10."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from layerwise.errors import ConfigError
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
    """Train a recipe, judge it on the test set, and tell whether it reached the goal and in what time.

    `seconds` are those of `fit`, what it compiles included; `whole_seconds` those from the command to the verdict:
    data, training and judging.

    Args:
        recipe: its name.
        settings: `--training.epochs=20`, ... after those that the benchmark has.
        folder: of the run, which must not be there.
        progress: show it.
        goal: accuracy under the attack, in [0, 1]; None is the headline's, which is CIFAR-10's alone.
        attack: what judges.

    Raises:
        ConfigError: the folder is taken, the goal is none, it is not said for other data than CIFAR-10, or another attack judges.
    """
    from layerwise.attacks import parse_attack
    from layerwise.experiments import experiment

    attack = str(parse_attack(attack))  # as records have it: pgd-50-1 is pgd-50
    if folder.exists():
        raise ConfigError(f"{folder} is there already, and time counts from the first batch; type another --name")
    changes = [*SETTINGS, f"--evaluation.attacks=[clean, {attack}]", *settings]
    chosen, tree = experiment.read(recipe, changes)
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
    result, judgement = experiment.train(chosen, tree, folder=folder, progress=progress)
    whole, accuracies = time.perf_counter() - began, judgement.evaluation.accuracies
    return {
        "kind": "robust",
        "machine": machine(experiment.best_device()),
        "settings": {"recipe": recipe, "changes": changes},
        "data": chosen.data.name,
        "seconds": result.seconds,
        "whole_seconds": whole,
        "steps": result.steps,
        "images": judgement.evaluation.worst.total,
        "accuracies": accuracies,
        "attack": attack,
        "goal": goal,
        "reached": accuracies[attack] >= goal,
        "messages": result.messages,
    }
