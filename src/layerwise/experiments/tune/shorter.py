"""An experiment in fewer epochs, or in more: schedule and phases in proportion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from layerwise.evaluation.settings import EvaluationSettings
from layerwise.experiments.settings import SCHEMA, Experiment
from layerwise.trees import Tree


def shortened(
    chosen: Experiment, *, epochs: int, evaluation: EvaluationSettings | None = None
) -> tuple[Experiment, Tree]:
    """The experiment in so many epochs: schedule, phases and `max_steps` shrink (or grow) in proportion.

    Args:
        chosen: the experiment.
        epochs: of the new one; at least as many as it has phases.
        evaluation: how it is evaluated; None is as before.
    """
    training, old = chosen.training, chosen.training.epochs
    if epochs != old:
        steps = None if training.max_steps is None else max(1, training.max_steps * epochs // old)
        training = replace(training, epochs=epochs, max_steps=steps, schedule=training.schedule.over(old))
    new = replace(
        chosen,
        training=training,
        phases=_shrunk(chosen.phases, epochs),
        evaluation=evaluation or chosen.evaluation,
    )
    return new, SCHEMA.tree(new)


def _shrunk(phases: list[dict[str, Any]], epochs: int) -> list[dict[str, Any]]:
    """The phases in so many epochs, each at least one long.

    >>> [phase["epochs"] for phase in _shrunk([{"epochs": 40}, {"epochs": 1}, {"epochs": 50}], 9)]
    [4, 1, 4]
    """
    total, passed, end, found = sum(phase["epochs"] for phase in phases), 0, 0, []
    for index, phase in enumerate(phases):
        passed += phase["epochs"]
        begin, end = end, max(end + 1, min(round(passed * epochs / total), epochs - (len(phases) - 1 - index)))
        found.append({**phase, "epochs": end - begin})
    return found
