"""Free adversarial training: every batch is replayed, and each backward pass serves the weights and the perturbation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from layerwise.core.calling import Inputs, examples, logits, with_examples
from layerwise.core.checks import Count, Radius
from layerwise.core.cost import DESCENT, Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.random import own_rows
from layerwise.core.registry import register
from layerwise.core.threat import EPS, radius
from layerwise.errors import CheckpointError, ConfigError
from layerwise.methods.base import Losses, Method


@register("method")
@final
@dataclass(kw_only=True)
class FreeAT(Method):
    """Free-m: m times a descent at clip(x + delta), each followed by delta <- project(delta + step eps sign(dL/dx)).

    delta starts at zero and is carried over from batch to batch: row i meets row i of the batch before. A shorter batch uses and moves
    the first rows; the others keep theirs. It is in the checkpoint. m replays cost m optimiser steps, so an epoch counts m times.

    Args:
        eps: radius, pixels in [0, 1]; None is the threat model's.
        step: step size as a fraction of eps.
        m: replays of each batch.
        criterion: each example's loss.

    Reference: Shafahi et al. 2019, Adversarial training for free!, algorithm 1.
    """

    eps: Radius | None = field(default=None, metadata=EPS)
    step: float = 1.0
    m: Count = 8
    criterion: Criterion = field(default_factory=CrossEntropy)

    perturbs_input = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._delta: Tensor | None = None

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """Algorithm 1, one batch."""
        given, eps = examples(x), radius(self.eps)
        first, total = own_rows(step.generator, len(given))
        delta = self._register(given, total)[first : first + len(given)]
        for _ in range(self.m):
            x_adv = (given + delta).clamp_(0, 1).requires_grad_()
            yield self.criterion.mean(logits(model, with_examples(x, x_adv)), y)
            assert x_adv.grad is not None
            # The sign of NaN is 0: an overflow under fp16 scaling, whose step is skipped, does not stay in delta.
            move = self.step * eps * x_adv.grad.sign()
            delta.copy_((delta + move).clamp_(-eps, eps))

    def _register(self, x: Tensor, total: int) -> Tensor:
        """Delta of this process, with at least `total` rows; the micro-batches of one batch share it."""
        if self._delta is None:
            self._delta = x.new_zeros(total, *x.shape[1:])
        if self._delta.shape[1:] != x.shape[1:]:
            raise CheckpointError(
                f"FreeAT's stored perturbation is for images of shape {tuple(self._delta.shape[1:])}, found {tuple(x.shape[1:])}"
            )
        if len(self._delta) < total:
            self._delta = torch.cat([self._delta, x.new_zeros(total - len(self._delta), *x.shape[1:])])
        self._delta = self._delta.to(x)
        return self._delta

    def state_dict(self) -> dict[str, Tensor]:
        """Delta, one row for each of the batch's examples."""
        return {} if self._delta is None else {"delta": self._delta}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if unknown := set(state) - {"delta"}:
            raise ConfigError(f"FreeAT keeps delta only, found {', '.join(sorted(unknown))}")
        delta = state.get("delta")
        self._delta = None if delta is None else delta.clone()

    @property
    def passes(self) -> Passes:
        """M descents: 3 m."""
        return self.m * DESCENT
