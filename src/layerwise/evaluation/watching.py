"""Measures while a network is trained: what `evaluation.trace` names is logged after every look at the validation images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from torch import nn

from layerwise.core.threat import ThreatModel
from layerwise.data import ImageData
from layerwise.errors import ConfigError
from layerwise.evaluation.conditions import evaluating
from layerwise.evaluation.measure import Measure, Target, choose_measures
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.settings import EvaluationSettings


def watcher(
    settings: EvaluationSettings, data: ImageData, *, threat: ThreatModel
) -> Callable[[nn.Module], dict[str, float]] | None:
    """What `fit(watch=...)` takes, for the measures of `settings.trace`; None where there are none.

    Args:
        settings: which, and of how many of the images.
        data: whose validation split is looked at.
        threat: the measures' scale.

    Raises:
        ConfigError: there are no validation images.
    """
    chosen = choose_measures(settings.trace, other=False)
    if not chosen:
        return None
    if not len(data.validation):
        raise ConfigError(
            "evaluation.trace looks at validation images, and there are none; type --data.validation 1000"
        )

    def watch(network: nn.Module) -> dict[str, float]:
        count, size = settings.num_examples, settings.batch_size
        with evaluating(
            network, data.validation, num_examples=count, seed=settings.seed, batch_size=size
        ) as conditions:
            target = Target(conditions, threat, classes=data.classes)
            return dict(number for measure in chosen for number in _numbers(measure, measure(target)))

    return watch


def _numbers(measure: Measure, found: Measurement) -> Iterator[tuple[str, float]]:
    """The numbers among the fields of what was found, by `MEASURE.FIELD`."""
    for field in dataclasses.fields(found):  # type: ignore[arg-type]  # every measurement is a dataclass
        value = getattr(found, field.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{measure.entry.name}.{field.name}", float(value)
