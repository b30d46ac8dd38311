"""`layerwise bench robust`: seconds of training to 45 % under PGD-50 on CIFAR-10."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerwise.bench.timing import machine
from layerwise.errors import ConfigError

ATTACK, GOAL = "pgd-50-1", 0.45
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
    f"--evaluation.attacks=[clean, {ATTACK}]",
)
"""What a GPU takes; what is typed beside the command replaces it."""


def bench_robust(recipe: str, settings: list[str], *, folder: Path, progress: bool) -> dict[str, Any]:
    """Train a recipe, judge it on the test set, and tell whether it reached the goal and in what time.

    The time is that of the training loop with compiling and recording, from its first batch to its last.

    Args:
        recipe: its name.
        settings: `--training.epochs=20`, ... after those that the benchmark has.
        folder: of the run, which must not be there.
        progress: show it.

    Raises:
        ConfigError: the folder is taken, the recipe is not CIFAR-10's, or another attack judges.
    """
    from layerwise import experiment

    if folder.exists():
        raise ConfigError(f"{folder} is there already, and time counts from the first batch; type another --name")
    changes = [*SETTINGS, *settings]
    chosen, tree = experiment.read(recipe, changes)
    if chosen.data.name != "cifar10":
        raise ConfigError(f"{recipe} is trained on {chosen.data.name}; the benchmark is CIFAR-10's")
    result, judgement = experiment.train(chosen, tree, folder=folder, progress=progress)
    accuracies = judgement.evaluation.accuracies
    if ATTACK not in accuracies:
        raise ConfigError(f"the benchmark counts {ATTACK}; leave it among evaluation.attacks")
    return {
        "kind": "robust",
        "machine": machine(experiment.best_device()),
        "settings": {"recipe": recipe, "changes": changes},
        "seconds": result.seconds,
        "accuracies": accuracies,
        "goal": GOAL,
        "reached": accuracies[ATTACK] >= GOAL,
        "messages": result.messages,
    }
