"""MART: adversarial training that treats misclassified examples apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from layerwise.core.checks import Radius, at_least
from layerwise.core.cost import Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.probe import Probe
from layerwise.core.registry import register
from layerwise.core.sites import Sites
from layerwise.methods.base import InputMethod, Perturbed
from layerwise.methods.pgd import PGD, divergence


@register("method")
@final
@dataclass(kw_only=True)
class MART(InputMethod):
    """L(f(x_adv), y) - log(1.0001 - max_k!=y p_k(x_adv)) + beta mean[(1 - p_y(x)) KL(p(x) || p(x_adv))], x_adv by PGD.

    Args:
        eps: radius in pixel units, in [0, 1].
        steps: probes of the attack.
        alpha: step size.
        beta: weight of the divergence.
        criterion: each example's loss.
        probe: how gradients are taken; the authors' code attacks in evaluation mode.

    Reference: Wang et al. 2020. The attack is PGD from a uniform start in the ball, as the paper says; the
    authors' code starts at 0.001 N(0, 1). The natural probabilities carry gradient, as there.
    """

    eps: Radius = 8 / 255
    steps: int = 10
    alpha: Radius = 2 / 255
    beta: float = 5.0
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    def __post_init__(self) -> None:
        """Check the fields."""
        self._attack()
        at_least("beta", self.beta, 0)

    def _attack(self) -> PGD:
        return PGD(eps=self.eps, steps=self.steps, alpha=self.alpha, criterion=self.criterion, probe=self.probe)

    def batch_perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, step: Step, record: Sites | None = None
    ) -> Perturbed:
        """As PGD does."""
        return self._attack().batch_perturb(model, x, y, step, record)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """The three terms; the natural pass comes first."""
        natural, adversarial = model(x).softmax(dim=1), model(x_adv)
        others = adversarial.softmax(dim=1).scatter(1, y.unsqueeze(1), 0.0).amax(dim=1)
        boosted = self.criterion(adversarial, y) - torch.log(1.0001 - others)
        unsure = 1 - natural.gather(1, y.unsqueeze(1)).squeeze(1)
        each: Tensor = boosted + self.beta * unsure * divergence(adversarial, natural)
        return each.mean()

    @property
    def passes(self) -> Passes:
        """Those of PGD and the natural descent pass."""
        return self._attack().passes + Passes(1, 1, 1, 0)
