"""MART: adversarial training that treats misclassified examples apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from layerwise.core.calling import Inputs, logits
from layerwise.core.checks import NonNegative
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.registry import register
from layerwise.methods.base import AttackedMethod, InputMethod
from layerwise.methods.pgd import PGD, divergence


@register("method")
@final
@dataclass(kw_only=True)
class MART(AttackedMethod):
    """L(f(x_adv), y) - log(1.0001 - max_k!=y p_k(x_adv)) + beta mean[(1 - p_y(x)) KL(p(x) || p(x_adv))], x_adv by PGD.

    Args:
        attack: what finds x_adv, on this method's criterion; the authors' code attacks in evaluation mode.
        beta: weight of the divergence.
        criterion: each example's loss.

    Reference: Wang et al. 2020, Improving adversarial robustness requires revisiting misclassified
    examples. The attack is PGD from a uniform start in the ball, as the paper says; the authors' code
    starts at 0.001 N(0, 1). The natural probabilities carry gradient, as there.
    """

    attack: InputMethod = field(default_factory=PGD)
    beta: NonNegative = 5.0
    criterion: Criterion = field(default_factory=CrossEntropy)

    needs_classes = True
    """Its terms are probabilities."""

    def loss(self, model: nn.Module, x: Inputs, x_adv: Inputs, y: Tensor) -> Tensor:
        """The three terms; the natural pass comes first."""
        natural, adversarial = logits(model, x).softmax(dim=1), logits(model, x_adv)
        others = adversarial.softmax(dim=1).scatter(1, y.unsqueeze(1), 0.0).amax(dim=1)
        # Boosted cross entropy: the strongest other class counts too. 1.0001 keeps the logarithm finite.
        boosted = self.criterion(adversarial, y) - torch.log(1.0001 - others)
        # The less sure the network is of a clean image, the more its divergence weighs.
        unsure = 1 - natural.gather(1, y.unsqueeze(1)).squeeze(1)
        each: Tensor = boosted + self.beta * unsure * divergence(adversarial, natural)
        return each.mean()
