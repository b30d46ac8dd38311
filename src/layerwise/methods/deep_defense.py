"""Deep Defense: train with the DeepFool perturbation's size as a regulariser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from layerwise.core.calling import Inputs, examples
from layerwise.core.checks import Count, NonNegative
from layerwise.core.cost import Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.deepfool import deepfool
from layerwise.core.driving import Step
from layerwise.core.modes import evaluation_mode, twice_differentiable
from layerwise.core.registry import register
from layerwise.core.sites import unwrap
from layerwise.errors import ConfigError, did_you_mean
from layerwise.methods.base import InputMethod, Losses, Method
from layerwise.methods.standard import Standard

LARGEST_EXPONENT = 80.0
"""exp(88.7) overflows in float32."""


@register("method")
@final
@dataclass(kw_only=True)
class DeepDefense(Method):
    """CE + (lambda / B) [sum over correct of exp(-c rho) + sum over wrong of exp(d rho)], rho = ||Delta_x||_p / ||x||_p.

    Delta_x is DeepFool's perturbation, unrolled and differentiated through (double backward, any network); for a wrong example it leads
    from the current prediction to the label. The regulariser runs in evaluation mode, in float32, without autocast, on the unwrapped
    network; the loss goes through the network as given.

    Args:
        weight: lambda.
        c: exponent of the correct examples (25; 70 for NIN; 500 for ImageNet).
        d: exponent of the wrong examples.
        num_steps: DeepFool steps unrolled.
        num_classes: DeepFool's candidate classes, those with the largest logits; None is all.
        overshoot: DeepFool's.
        p: norm of the perturbation, above 1 or inf.
        regulariser: R of eq. 3, `"exp"` or `"linear"` (R(z) = z, tried and rejected in the paper).
        treat_wrong: `"separately"` (eq. 6) or `"alike"`: R(-c rho) for every example, from its prediction (eq. 3).
        layer: only this module's parameters are moved by the regulariser; None is all (section 4.2, layer-wise regularisation).
        base: what gives the loss: `FGSMRS()`, `FGSOrig()`, ... combine with adversarial training; None is the criterion at x.
        criterion: each example's loss (of the default base).

    Reference: Yan et al. 2018, eqs. 1-3 and 6; settings of the authors' code. Exponents are clamped at 80, counted in `warnings`.
    """

    weight: NonNegative = 15.0
    c: float = 25.0
    d: float = 5.0
    num_steps: Count = 5
    num_classes: int | None = None
    overshoot: float = 0.02
    p: float = 2.0
    regulariser: Literal["exp", "linear"] = "exp"
    treat_wrong: Literal["separately", "alike"] = "separately"
    layer: str | None = None
    base: InputMethod | None = None
    criterion: Criterion = field(default_factory=CrossEntropy)

    needs_classes = second_order = True

    _goes_on = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.p > 1:
            raise ConfigError(f"p={self.p} has no smooth DeepFool step; type a number above 1, or inf")
        self._clamped: Tensor | None = None
        self._blank: Tensor | None = None

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """One descent on the loss and the regulariser."""
        base = self.base or Standard(criterion=self.criterion)
        x_adv, _ = base.batch_perturb(model, x, y, step)
        yield base.loss(model, x, x_adv, y) + self.weight * self.penalty(model, x, y)

    def penalty(self, model: nn.Module, x: Inputs, y: Tensor) -> Tensor:
        """The regulariser's mean over the batch, without lambda (0-dim); differentiable in the parameters."""
        raw, given = unwrap(model), examples(x)
        labels = y if self.treat_wrong == "separately" else None
        with evaluation_mode(raw), twice_differentiable(given.device):
            found = deepfool(
                self._network(raw),
                x,
                labels=labels,
                num_steps=self.num_steps,
                num_classes=self.num_classes,
                overshoot=self.overshoot,
                p=self.p,
                create_graph=True,
            )
        rho, counted = found.rho(given, self.p)
        wrong = found.prediction != y if labels is not None else torch.zeros_like(counted)
        # exp(-c rho) falls as a right example's boundary moves away, exp(d rho) as a wrong one's comes nearer.
        z = torch.where(wrong, self.d * rho, -self.c * rho)
        over = z > LARGEST_EXPONENT
        value = z if self.regulariser == "linear" else z.clamp(max=LARGEST_EXPONENT).exp()
        self._clamped = _add(self._clamped, over & counted) if self.regulariser == "exp" else None
        self._blank = _add(self._blank, ~counted)
        return (value * counted).sum() / len(given)

    def _network(self, raw: nn.Module) -> Callable[..., Any]:
        """The network as a function, with the parameters of the other layers held constant if one layer is named."""
        if self.layer is None:
            return raw
        names = dict(raw.named_modules())
        if self.layer not in names:
            raise ConfigError(f"layer={self.layer!r} is no module of the network; {did_you_mean(self.layer, names)}")
        held = {n: v if n.startswith(self.layer + ".") else v.detach() for n, v in raw.named_parameters()}
        return lambda *args, **kwargs: functional_call(raw, held, args, kwargs)

    def warnings(self) -> list[str]:
        """How many exponents were clamped and how many blank images were left out."""
        said = []
        if self._clamped is not None and (count := int(self._clamped)):
            said.append(
                f"Deep Defense clamped {count} exponents at {LARGEST_EXPONENT:g}: the wrong examples' weight d={self.d} is too large"
            )
        if self._blank is not None and (count := int(self._blank)):
            said.append(f"Deep Defense left out {count} blank images, which have no relative perturbation size")
        self._clamped = self._blank = None
        return said

    @property
    def passes(self) -> Passes:
        """The loss; per DeepFool step two forwards, one backward a candidate class, and their double backward."""
        return (self.base or Standard()).passes + self._regulariser

    @property
    def losses_alone(self) -> Passes:
        """See `Method.losses_alone`: DeepFool's steps are differentiated, so they are made again."""
        return (self.base or Standard()).losses_alone + self._regulariser

    @property
    def _regulariser(self) -> Passes:
        classes = self.num_classes or 10  # who knows how many there are asks `among`
        return Passes(2 * self.num_steps + 1, (classes + 2) * self.num_steps, 2 * self.num_steps, 0)


def _add(count: Tensor | None, mask: Tensor) -> Tensor:
    return mask.sum() if count is None else count + mask.sum()
