"""Gradient alignment: FGSM training that keeps the input gradient's direction the same within the ball."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from layerwise.core import norms
from layerwise.core.calling import Inputs, examples, logits, with_examples
from layerwise.core.checks import NonNegative, Radius
from layerwise.core.cost import PROBE, Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.modes import batch_norm, twice_differentiable
from layerwise.core.probe import Probe
from layerwise.core.random import uniform
from layerwise.core.registry import register
from layerwise.core.sites import unwrap
from layerwise.core.threat import EPS, radius
from layerwise.methods.base import InputMethod, Losses, Method
from layerwise.methods.standard import Standard

PENALTY = Passes(1, 3, 2, 0)
"""A gradient with its double backward, which goes back through a forward and a backward pass."""


@register("method")
@final
@dataclass(kw_only=True)
class GradAlign(Method):
    """FGSM-GA: L(f(x_adv), y) + lambda (1 - cos(g(x), g(x + u))), u uniform in the ball, g(x) held constant, g = dL/dx.

    The two gradients are taken on the unwrapped network in float32 without autocast, and the second is differentiated once more; the
    loss goes through the network as given. An example whose gradient is zero at either point adds nothing.

    Args:
        eps: radius, pixels in [0, 1]; None is the threat model's.
        step: step size of the attack as a fraction of eps.
        weight: lambda; the authors take exp(eps 255 ln(10) / 8) / 50, 0.2 at 8/255.
        base: what perturbs the input and gives the loss; None is FGSM from x, whose gradient is g(x): no pass is added for it.
        criterion: each example's loss (of the default base and of the aligned gradients).
        probe: how the gradients are taken.

    Reference: Andriushchenko and Flammarion 2020, Understanding and improving fast adversarial
    training. x + u is not clipped, as in the authors' code, which averages over the examples with
    gradients that are not zero; here the sum is divided by the batch size, so that it does not depend on
    how a batch is split.
    """

    eps: Radius | None = field(default=None, metadata=EPS)
    step: float = 1.0
    weight: NonNegative = 0.2
    base: InputMethod | None = None
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    perturbs_input = second_order = True

    _goes_on = False

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """A probe at x, then one descent on the loss and the misalignment."""
        raw, given, eps = unwrap(model), examples(x), radius(self.eps)
        with torch.autocast(given.device.type, enabled=False):
            g, _ = self.probe(raw, x, y, criterion=self.criterion, wrt_input=True)
        if self.base is None:
            base: InputMethod = Standard(criterion=self.criterion)
            x_adv = with_examples(x, (given + self.step * eps * g.sign()).clamp_(0, 1))
        else:
            base = self.base
            x_adv, _ = base.batch_perturb(model, x, y, step)
        near = with_examples(x, given + eps * uniform(given, step.generator, key="near"))
        yield base.loss(model, x, x_adv, y) + self.weight * self.misalignment(raw, near, y, g)

    def misalignment(self, raw: nn.Module, x: Inputs, y: Tensor, g: Tensor) -> Tensor:
        """Mean over the batch of 1 - cos(g, dL/dx), 0-dim, differentiable in the parameters."""
        leaf = examples(x).detach().requires_grad_()
        with twice_differentiable(leaf.device), batch_norm(raw, self.probe.batch_norm):
            loss = (self.probe.criterion or self.criterion)(logits(raw, with_examples(x, leaf)), y).sum()
            # Differentiated once more by the descent, which is what moves the parameters.
            (here,) = torch.autograd.grad(loss, leaf, create_graph=True)
        sizes = norms.norm(g) * norms.norm(here)
        # Where either gradient is zero the cosine is 0/0: made safe before dividing, and left out of the sum.
        cosine = norms.safe_divide((g * here).flatten(1).sum(dim=1), sizes)
        return ((1 - cosine) * (sizes > 0)).sum() / len(leaf)

    @property
    def passes(self) -> Passes:
        """A probe, a descent, and the penalty."""
        return PROBE + (self.base or Standard()).passes + PENALTY

    @property
    def losses_alone(self) -> Passes:
        return (self.base or Standard()).losses_alone + PENALTY
