"""Deep Defense's reference radius: where FGSM halves the accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import nn

from layerwise.attacks.gradient import FGSMAttack
from layerwise.core.registry import register
from layerwise.core.threat import ThreatModel
from layerwise.errors import ConfigError
from layerwise.evaluation.conditions import Conditions, Data, evaluating
from layerwise.evaluation.intervals import Count
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import Measurement

FRACTIONS = (1.0, 0.5, 0.2)


@final
@dataclass(frozen=True)
class EpsRef(Measurement):
    """The reference radius and what is correct at its fractions.

    Args:
        eps: the radius.
        accuracies: {1.0, 0.5, 0.2: accuracy under FGSM at that fraction of it}.
    """

    title: ClassVar[str] = "eps_ref"
    section: ClassVar[str] = "Comparison"
    caption: ClassVar[str] = (
        "eps_ref, the radius at which FGSM halves the accuracy, and accuracy in % under FGSM at fractions of it."
    )
    drawn: ClassVar[bool] = False

    eps: float
    accuracies: dict[float, Count]

    def sentence(self) -> str:
        """The radius, and the accuracies."""
        shares = ", ".join(f"{100 * c.accuracy:.2f} % at {f:g}" for f, c in self.accuracies.items())
        return f"eps_ref: {self.eps:.4g} (FGSM halves the accuracy); accuracy under FGSM {shares} of it."

    def cells(self) -> Mapping[str, str]:
        """A row of a table."""
        shares = {f"at {f:g}": f"{100 * c.accuracy:.1f}" for f, c in sorted(self.accuracies.items(), reverse=True)}
        return {"eps_ref": f"{self.eps:.4g}", **shares}


@register("measure", "eps-ref", passes=lambda size: 70 * size.total)
def _measure(target: Target) -> EpsRef:
    """Deep Defense's reference radius, at which FGSM halves the accuracy, and accuracy under FGSM at fractions of it."""
    return eps_ref(target.model, target.split, **target.subset)


def eps_ref(model: nn.Module, data: Data, *, tolerance: float = 1e-4, **options: Any) -> EpsRef:
    """The smallest radius at which FGSM leaves at most half of the images correct, by bisection.

    The accuracy need not fall steadily: the search brackets the first crossing among 1/256, 1/128, ..., 1 and halves that bracket.

    Args:
        model: the network, Deep Defense's regularised one; its radius is then used on the others with `fgsm_accuracies`.
        data: see `layerwise.evaluation.conditions.Data`.
        tolerance: width of the bracket at the end; the upper bound is returned.
        options: those of `layerwise.evaluation.conditions.evaluating`.

    Raises:
        ConfigError: half of the images are wrong without attack, or more than half correct at every radius up to 1.

    Reference: Yan et al. 2018 (Deep Defense), section 4.1.
    """
    with evaluating(model, data, **options) as conditions:
        if _halved(conditions, 0.0):
            raise ConfigError("half of the images are misclassified without any attack; eps_ref has no meaning")
        high = next((radius for k in range(8, -1, -1) if _halved(conditions, radius := 2.0**-k)), None)
        if high is None:
            raise ConfigError("more than half of the images stay correct under FGSM at every radius up to 1")
        low = high / 2 if high > 2.0**-8 else 0.0
        while high - low > tolerance:
            middle = (low + high) / 2
            low, high = (low, middle) if _halved(conditions, middle) else (middle, high)
        return EpsRef(high, {fraction: _fgsm(conditions, fraction * high) for fraction in FRACTIONS})


def fgsm_accuracies(model: nn.Module, data: Data, radii: Sequence[float], **options: Any) -> dict[float, Count]:
    """What stays correct under FGSM at each radius.

    Args:
        model: the network.
        data: see `layerwise.evaluation.conditions.Data`.
        radii: in pixel units, in [0, 1].
        options: those of `layerwise.evaluation.conditions.evaluating`.
    """
    with evaluating(model, data, **options) as conditions:
        return {radius: _fgsm(conditions, radius) for radius in radii}


def _fgsm(conditions: Conditions, radius: float) -> Count:
    outcomes = FGSMAttack().outcomes(conditions.network, conditions.batches, ThreatModel("linf", radius))
    correct = torch.cat(list(outcomes))
    return Count(int(correct.sum()), len(correct))


def _halved(conditions: Conditions, radius: float) -> bool:
    count = _fgsm(conditions, radius)
    return 2 * count.correct <= count.total
