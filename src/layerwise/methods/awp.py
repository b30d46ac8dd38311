"""AWP: adversarial weight perturbation around any method that takes one step a batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor, nn

from layerwise.core.checks import at_least
from layerwise.core.cost import Passes
from layerwise.core.driving import Partial, Step
from layerwise.core.modes import batch_norm
from layerwise.core.norms import safe_divide
from layerwise.core.random import repeatable
from layerwise.core.registry import register
from layerwise.core.sites import unwrap
from layerwise.core.tape import Tape
from layerwise.errors import ConfigError
from layerwise.methods.base import Losses, Method
from layerwise.methods.pgd import PGD
from layerwise.methods.wrapper import Wrapper


@register("method")
@final
@dataclass(kw_only=True)
class AWP(Wrapper):
    """Adversarial weight perturbation: descend the base's loss at w + gamma ||w|| / ||d|| d, with d that loss's gradient at w.

    Every weight of more than one dimension is moved along its own d before the step and back after it. The base's loss is back-propagated
    once more for d, over the whole global batch; what its probes found is remembered, so that no attack is run twice. Only the descent at
    the moved weights changes batch norm's running statistics. Gradients that are there already, of the caller's earlier micro-batches,
    are set aside meanwhile and have no part in d.

    Args:
        gamma: size of the perturbation relative to the weight; 0 is the base, bitwise.
        base: any method that takes one step a batch, layer-wise ones included.

    Reference: Wu et al. 2020. The authors' code takes d from a copy of the network.
    """

    gamma: float = 0.01
    base: Method = field(default_factory=PGD)

    def __post_init__(self) -> None:
        """Check the fields."""
        at_least("gamma", self.gamma, 0)
        steps = self.base.passes.steps
        if steps != 1 or isinstance(self.base, AWP):
            name = type(self.base).__name__
            hint = ", for example ANP with update=last-step" if steps != 1 else ""
            found = f"{name} takes {steps} steps" if steps != 1 else f"{name} is one already"
            raise ConfigError(f"AWP perturbs the weights around one step a batch, and {found}; type another base{hint}")
        self._shift: _Shift | None = None
        self._before: _Before | None = None

    def batch_losses(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
        """The base's loss at w, back-propagated only; then the same loss at w + v, with what its probes found at w."""
        self._undo(self._shift)  # what an abandoned generator left
        if not self.gamma:
            yield from self.base.batch_losses(model, x, y, step)
            return
        tape, again = Tape(), replace(step, generator=repeatable(step.generator))
        raw = unwrap(model)
        trial = self.base.batch_losses(model, x, y, again)
        try:
            with batch_norm(raw, "batch"):
                loss = self._first(trial, tape)
            before = self._set_aside(raw)
            try:
                yield Partial(loss)
            except BaseException:
                self._bring_back(before)
                raise
        finally:
            trial.close()
        if self._shift is None:  # the first micro-batch moves the weights for all
            self._shift = _Shift(raw, self.gamma)
            self._bring_back(before)
        shift, losses = self._shift, self.base.batch_losses(model, x, y, again)
        try:
            yield self._first(losses, tape)
            self._undo(shift)
            yield from losses
        finally:
            self._undo(shift)
            losses.close()

    def _first(self, losses: Losses, tape: Tape) -> Tensor:
        with tape.running():
            loss = next(losses)
        if isinstance(loss, Partial):
            raise ConfigError(
                f"{type(self.base).__name__} adds up several losses, and AWP takes one; type another base"
            )
        return loss

    def _set_aside(self, raw: nn.Module) -> _Before:
        """The gradients that are there already, of micro-batches of the caller's: those of the first losses come alone."""
        left = self._before is not None and all(w.grad is None for w in raw.parameters())  # by an abandoned generator
        if self._before is None or left:
            self._before = _Before(raw)
        return self._before

    def _bring_back(self, before: _Before) -> None:
        """Put the gradients back, once: the micro-batches of a batch share them."""
        if before is self._before:
            before.restore()
            self._before = None

    def _undo(self, shift: _Shift | None) -> None:
        """Move the weights back, once: the micro-batches of a batch share the shift."""
        if shift is not None and shift is self._shift:
            shift.undo()
            self._shift = None

    @property
    def passes(self) -> Passes:
        """Those of the base, and of its losses once more."""
        return self.base.passes + self.base.losses_alone


@final
class _Shift:
    """The perturbation of the weights, made from their gradients, which it takes away."""

    def __init__(self, raw: nn.Module, gamma: float) -> None:
        self.moved: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            for w in raw.parameters():
                d = w.grad
                if d is not None and w.ndim > 1:
                    v = d * (gamma * safe_divide(w.norm(), d.norm()))
                    # An overflow under fp16 scaling moves nothing; its step would be skipped, but the weights stay.
                    v = torch.where(v.isfinite().all(), v, torch.zeros_like(v))
                    w.add_(v)
                    self.moved.append((w, v))

    def undo(self) -> None:
        """Move back by as much: whatever a step has done in between stays."""
        with torch.no_grad():
            for w, v in self.moved:
                w.sub_(v)


@final
class _Before:
    """The gradients that the weights had, taken off them until they are put back."""

    def __init__(self, raw: nn.Module) -> None:
        self.gradients = [(w, w.grad) for w in raw.parameters()]
        for w, _ in self.gradients:
            w.grad = None

    def restore(self) -> None:
        """Give them back, in place of what has come since."""
        for w, gradient in self.gradients:
            w.grad = gradient
