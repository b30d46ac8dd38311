"""Carlini and Wagner's attack, from the package foolbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from layerwise.attacks.base import EVALUATED
from layerwise.attacks.external import ExternalAttack, Logits, package
from layerwise.core import norms
from layerwise.core.checks import Count, NonNegative
from layerwise.core.registry import register
from layerwise.core.threat import ThreatModel
from layerwise.errors import ConfigError


@final
@register("attack", "cw")
@dataclass(frozen=True)
class CW(ExternalAttack):
    """Carlini and Wagner's l2 attack: min ||x' - x||^2 + c max(z_y - max_k!=y z_k + confidence, 0), x' = (tanh w + 1) / 2.

    The nearest adversarial image that it meets is evaluated. ANP's tables: `cw binary_search_steps=1 initial_const=0.2 bounded=False`.

    Args:
        steps: of Adam, for each c.
        binary_search_steps: values of c that are tried.
        initial_const: the first c.
        stepsize: Adam's rate.
        confidence: by how much another logit has to lead.
        bounded: the image is cut to the ball of the threat model, which has to be l2; False evaluates it at whatever size it has, as the
            papers' tables do: then it is outside every threat model, and does not count for the worst case.

    Reference: Carlini and Wagner 2017, section VI.A.
    """

    needs: ClassVar[str] = "foolbox"
    numbers: ClassVar[tuple[str, ...]] = ("steps",)

    steps: Count = 1000
    binary_search_steps: Count = 9
    initial_const: NonNegative = 1e-3
    stepsize: NonNegative = 0.01
    confidence: NonNegative = 0.0
    bounded: bool = True

    @property
    def in_threat_model(self) -> bool:
        """Where it is bounded."""
        return self.bounded

    def passes(self, classes: int = 10) -> int:
        """About three passes a step and constant."""
        return 3 * self.steps * self.binary_search_steps + EVALUATED

    def check(self, x: Tensor, threat: ThreatModel) -> None:
        super().check(x, threat)
        if self.bounded and threat.norm != "l2":
            raise ConfigError(
                f"cw makes small l2 changes, the threat model is {threat}; type norm='l2', or `{self} bounded=False` to evaluate its "
                "images at their own size"
            )

    def run(self, network: Logits, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, classes: int) -> Tensor:
        """Nothing in it is random."""
        foolbox = package("foolbox")
        attack = foolbox.attacks.L2CarliniWagnerAttack(
            steps=self.steps,
            binary_search_steps=self.binary_search_steps,
            initial_const=self.initial_const,
            stepsize=self.stepsize,
            confidence=self.confidence,
        )
        wrapped = foolbox.PyTorchModel(network, bounds=(0, 1), device=x.device)
        found, _, _ = attack(wrapped, x, foolbox.Misclassification(y), epsilons=None)
        # Where it finds nothing it gives a black image, and calls that a success if the network happens to get it wrong.
        return torch.where(norms.rows(found.flatten(1).any(dim=1), x), found, x)
