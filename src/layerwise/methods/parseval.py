"""Parseval training: after each step, rows of every weight move towards a tight frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from layerwise.core.calling import Inputs, rows
from layerwise.core.checks import NonNegative, Share
from layerwise.core.driving import Partial, Step
from layerwise.core.random import Source, for_the_batch, own_rows
from layerwise.core.registry import register
from layerwise.methods.base import Losses, Method
from layerwise.methods.standard import Standard
from layerwise.methods.weights import effective_weights
from layerwise.methods.wrapper import Wrapper


@register("method")
@final
@dataclass(kw_only=True)
class Parseval(Wrapper):
    """After each step W_S <- (1 + beta) W_S - beta W_S W_S^T W_S, for drawn rows S of each weight seen as (out, rest).

    One step of descent on ||W_S W_S^T - I||^2: singular values go to 1, and with them the layer's Lipschitz constant.

    Args:
        beta: step size; 1e-4 for MNIST and 3e-4 for CIFAR-10 in Deep Defense.
        share: of the rows that are drawn, anew for each weight and step; 0.3 in both papers. Deep Defense speaks of columns, the
            original paper of rows.
        base: any method. The products of weights cost little beside its passes.

    Reference: Cisse et al. 2017, section 4.2 and algorithm 1. Its convex combinations in residual networks are not part of this.
    """

    beta: NonNegative = 1e-4
    share: Share = 0.3
    base: Method = field(default_factory=Standard)

    needs_steps = True

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """The base's losses; the code after a yield runs after the step."""
        # The micro-batches of a batch share its steps: the first one moves the weights for all.
        mine, count = own_rows(step.generator, rows(x))[0] == 0, 0
        several = self.base.passes.steps > 1
        for loss in self.base.batch_losses(model, x, y, step):
            yield loss
            # The next pass of a base with several steps has to see the moved weights; with one step the base cleans up first.
            if several and mine and not isinstance(loss, Partial):
                self._tighten(model, step.generator, count)
                count += 1
        if mine and not several:
            self._tighten(model, step.generator, 0)

    @torch.no_grad()
    def _tighten(self, model: nn.Module, generator: Source, count: int) -> None:
        for weight in effective_weights(self.reached(model)):
            full = weight.value()
            drawn = max(1, round(self.share * len(full)))
            order = for_the_batch(len(full), generator, key=f"parseval/{count}/{weight.name}").argsort()
            rows = order[:drawn].to(full.device)
            w = full[rows].flatten(1)
            moved = (1 + self.beta) * w - self.beta * (w @ w.T) @ w
            full[rows] = moved.view_as(full[rows])
            weight.assign(full)
