"""AWP: adversarial weight perturbation around any method that takes one step a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from layerwise.core.calling import Inputs, rows
from layerwise.core.checks import NonNegative
from layerwise.core.cost import Passes
from layerwise.core.driving import Partial, Step
from layerwise.core.modes import batch_norm
from layerwise.core.norms import safe_divide
from layerwise.core.random import Stream, own_rows, repeatable
from layerwise.core.registry import register
from layerwise.core.shards import grouped
from layerwise.core.sites import unwrap
from layerwise.core.tape import Tape
from layerwise.errors import ConfigError
from layerwise.methods.base import Losses, Method
from layerwise.methods.pgd import PGD
from layerwise.methods.weights import Made, made_weights
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

    gamma: NonNegative = 0.01
    base: Method = field(default_factory=PGD)

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.base.passes.steps
        if steps != 1 or isinstance(self.base, AWP):
            name = type(self.base).__name__
            hint = ", for example ANP with update=last-step" if steps != 1 else ""
            found = f"{name} takes {steps} steps" if steps != 1 else f"{name} is one already"
            raise ConfigError(f"AWP perturbs the weights around one step a batch, and {found}; type another base{hint}")
        self._made: list[_Watched] = []
        self._round: _Round | None = None

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """The base's loss at w, back-propagated only; then the same loss at w + v, with what its probes found at w."""
        if self._round is not None and self._round.moved:
            self._end(self._round)  # what an abandoned generator left
        if not self.gamma:
            yield from self.base.batch_losses(model, x, y, step)
            return
        tape, again = Tape(), replace(step, generator=repeatable(step.generator))
        raw = self.reached(model)
        trial, shared = self.base.batch_losses(model, x, y, again), self._joined(raw, x, step)
        try:
            with batch_norm(raw, "batch"):
                loss = self._first(trial, tape)
            yield Partial(loss)
        except BaseException:
            self._end(shared)
            raise
        finally:
            trial.close()
        shared.move(self.gamma)
        losses = self.base.batch_losses(model, x, y, again)
        try:
            yield self._first(losses, tape)
            self._end(shared)
            yield from losses
        finally:
            self._end(shared)
            losses.close()

    def reached(self, model: nn.Module) -> nn.Module:
        """See `Wrapper.reached`; weights that are made in every pass are watched and moved there."""
        raw, before = unwrap(model), self._reached
        if super().reached(model) is not before:
            self._unwatch()
            self._made = [_Watched(weight) for weight in made_weights(raw)]
        return raw

    def detach(self) -> None:
        self._unwatch()
        super().detach()

    def _unwatch(self) -> None:
        for each in self._made:
            each.handle.remove()
        self._made = []

    def _first(self, losses: Losses, tape: Tape) -> Tensor:
        with tape.running():
            loss = next(losses)
        if isinstance(loss, Partial):
            raise ConfigError(
                f"{type(self.base).__name__} adds up several losses, and AWP takes one; type another base"
            )
        return loss

    def _joined(self, raw: nn.Module, x: Inputs, step: Step) -> _Round:
        """The round of this micro-batch's batch, which the first one opens."""
        first = own_rows(step.generator, rows(x))[0] == 0
        if not isinstance(step.generator, Stream):  # no rows to go by: a round that has left no gradient was abandoned
            first = all(w.grad is None for w in raw.parameters())
        if self._round is None or first:
            self._round = _Round(raw, self._made)
        return self._round

    def _end(self, shared: _Round) -> None:
        """Once: whichever of the micro-batches goes on first moves the weights back for all."""
        if shared is self._round:
            shared.end()
            self._round = None

    @property
    def passes(self) -> Passes:
        """Those of the base, and of its losses once more."""
        return self.base.passes + self.base.losses_alone


@final
class _Round:
    """What the micro-batches of one batch share: the gradients that were there before, set aside, and then the moved weights.

    Args:
        raw: the network.
        made: its weights that are made in every pass.
    """

    def __init__(self, raw: nn.Module, made: Sequence[_Watched]) -> None:
        self.moved = False
        self._made = made
        self._before = [(w, w.grad) for w in raw.parameters()]
        self._shifts: list[tuple[Tensor, Tensor]] = []
        for w, _ in self._before:
            w.grad = None
        for each in made:
            each.listen()

    def move(self, gamma: float) -> None:
        """The first micro-batch moves the weights for all, along the gradients of all."""
        if self.moved:
            return
        self.moved = True
        # What a weight is made of is not moved by itself: g and v of weight_norm are no weights.
        inside = {id(source) for each in self._made for source in each.weight.sources}
        with torch.no_grad():
            for w, _ in self._before:
                if w.grad is not None and w.ndim > 1 and id(w) not in inside:
                    v = _perturbation(w, w.grad, gamma)
                    w.add_(v)
                    self._shifts.append((w, v))
            for each in self._made:
                each.shift = each.perturbation(gamma)
        self._bring_back()

    def end(self) -> None:
        """Move back by as much, so that whatever a step has done in between stays; or, without a move, bring back the gradients."""
        if not self.moved:
            self._bring_back()
        with torch.no_grad():
            for w, v in self._shifts:
                w.sub_(v)
        for each in self._made:
            each.leaf = each.shift = None

    def _bring_back(self) -> None:
        for w, gradient in self._before:
            w.grad = gradient


def _perturbation(w: Tensor, d: Tensor, gamma: float) -> Tensor:
    """Gamma ||w|| / ||d|| d. An overflow under fp16 scaling moves nothing; its step would be skipped, but the weights stay."""
    v = d * (gamma * safe_divide(w.norm(), d.norm()))
    return torch.where(v.isfinite().all(), v, torch.zeros_like(v))


@final
class _Watched:
    """A weight that is made in every pass: its own gradient by a leaf of zeros beside it, and the shift in the leaf's place."""

    def __init__(self, weight: Made) -> None:
        self.weight = weight
        self.leaf: Tensor | None = None
        self.shift: Tensor | None = None
        self.handle = weight.changing(self._changed)

    def listen(self) -> None:
        """From now on passes record the gradient."""
        self.leaf = torch.zeros_like(self.weight.value()).requires_grad_()

    def perturbation(self, gamma: float) -> Tensor | None:
        """That of the gradient that was recorded, with which recording ends; None where there was none."""
        leaf, self.leaf = self.leaf, None
        if leaf is None or leaf.grad is None or leaf.ndim < 2:
            return None
        if grouped():  # it is no parameter, so nobody else adds up the ranks'
            dist.all_reduce(leaf.grad)
        return _perturbation(self.weight.value(), leaf.grad, gamma)

    def _changed(self, w: Tensor) -> Tensor:
        if self.shift is not None:
            return w + self.shift
        # In a probe the parameters are frozen, and so is what is made of them.
        return w if self.leaf is None or not w.requires_grad else w + self.leaf
