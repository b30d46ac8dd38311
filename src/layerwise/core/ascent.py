"""Ascent rules: pure functions from a site's gradient to its next perturbation, folded with `chain`.

Every method and every attack here is a chain of these rules at some sites; the gradient `g` is always that of the *sum* of the
examples' losses, so row i is the gradient of example i's own loss.

    FGSM            chain(sign(), scale(eps))
    PGD             chain(sign(), scale(alpha), accumulate(), project("linf", eps))
    MI-FGSM         momentum = chain(normalize("l1"), accumulate(mu)); step = the chain of PGD, fed with the momentum
    ANP, eq. 2      chain(normalize("l2"), scale(eps / k), accumulate(1 - eta))
    LAT, eqs. 5-6   chain(sign(), scale_by_range(eps))
    LAD, eq. 4      chain(scale(eta))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from layerwise.core import norms
from layerwise.core.norms import Norm
from layerwise.core.passes import Gradients, Noise
from layerwise.core.random import Source, normal, uniform
from layerwise.core.shards import grouped

Scalar: TypeAlias = float | Tensor
"""A number, or a 0-dim tensor when it changes from step to step inside a captured step."""


class Rule(Protocol):
    """One stage of a chain."""

    def __call__(self, update: Tensor, gradient: Tensor, previous: Tensor | None, /) -> Tensor:
        """Give the next update.

        Args:
            update: what the stages before made of the gradient; the first stage gets the gradient itself.
            gradient: the site's gradient, shape (B, ...), untouched.
            previous: the site's current perturbation, the same shape; None stands for zero.
        """
        ...


Ascent: TypeAlias = Callable[..., Tensor]
"""A folded chain: `ascent(gradient, previous=None) -> next perturbation`."""


def chain(*stages: Rule) -> Ascent:
    """Fold rules, first to last, into one function of (gradient, previous perturbation).

    >>> import torch
    >>> step = chain(sign(), scale(0.1), accumulate(), project("linf", 0.15))
    >>> r = step(torch.tensor([[2.0, -3.0, 0.0]]))
    >>> step(torch.tensor([[1.0, 1.0, 0.0]]), r)
    tensor([[0.1500, 0.0000, 0.0000]])
    """

    def ascent(gradient: Tensor, previous: Tensor | None = None) -> Tensor:
        update = gradient
        for stage in stages:
            update = stage(update, gradient, previous)
        return update

    return ascent


def sign() -> Rule:
    """Keep the sign of each entry; sign(0) = 0."""
    return lambda update, gradient, previous: update.sign()


def normalize(p: Norm = "l2", *, batch: bool = False) -> Rule:
    """Divide each example by its p-norm (`batch=True`: the whole tensor by its own norm); zero stays zero."""
    if batch:
        return lambda update, gradient, previous: norms.normalize(update.unsqueeze(0), p).squeeze(0)
    return lambda update, gradient, previous: norms.normalize(update, p)


def scale(factor: Scalar) -> Rule:
    """Multiply by a step size, in the unit of the activation."""
    return lambda update, gradient, previous: update * factor


def scale_by_range(factor: Scalar, *, span: Tensor | None = None) -> Rule:
    """Multiply by factor (max g - min g), max and min over the site's whole batch tensor (LAT, appendix).

    Args:
        factor: LAT's eps, divided by the batch size that it was stated for.
        span: max g - min g where the caller knows better than this tensor: reduced over ranks, or over present rows.
    """
    return lambda update, gradient, previous: (
        update * (factor * (gradient.amax() - gradient.amin() if span is None else span))
    )


def accumulate(decay: Scalar = 1.0) -> Rule:
    """Add the update to decay times the current perturbation."""
    if not isinstance(decay, Tensor) and decay == 1:  # a product less on every step of PGD
        return lambda update, gradient, previous: update if previous is None else previous + update
    return lambda update, gradient, previous: update if previous is None else decay * previous + update


def project(p: Norm, eps: Scalar) -> Rule:
    """Project each example's perturbation on the ball of radius eps."""
    return lambda update, gradient, previous: norms.project(update, p, eps)


def iterate(
    x: Tensor,
    start: Tensor,
    *,
    steps: int,
    alpha: float,
    eps: float,
    norm: norms.Norm,
    gradient: Callable[[Tensor, bool], Tensor],
) -> Tensor:
    """Projected gradient ascent: x_t+1 = clip(x + project(x_t - x + alpha step(g_t))), sign steps for linf, unit steps for l2.

    Args:
        x: centre of the ball, shape (B, ...), pixels in [0, 1].
        start: first iterate, inside the ball and the pixel range.
        steps: how many.
        alpha: step size.
        eps: radius.
        norm: which ball.
        gradient: gives dL/dx at an iterate, told whether it is the last.
    """
    direction = sign() if norm == "linf" else normalize(norm)
    step = chain(direction, scale(alpha), accumulate(), project(norm, eps))
    x_adv = start
    for t in range(steps):
        g = gradient(x_adv, t == steps - 1)
        x_adv = (x + step(g, x_adv - x)).clamp_(0, 1)
    return x_adv


def random_start(x: Tensor, eps: float, norm: norms.Norm, generator: Source) -> Tensor:
    """A point drawn uniformly from the ball around each example, clipped to [0, 1]."""
    if norm == "linf":
        return (x + eps * uniform(x, generator, key="start")).clamp_(0, 1)
    direction = norms.normalize(normal(x, generator, key="start"), "l2")
    share = (uniform(x[:, :1].flatten(1)[:, 0], generator, key="radius") + 1) / 2
    return (x + eps * norms.rows(share ** (1 / x[0].numel()), x) * direction).clamp_(0, 1)


def scaled_signs(g: Gradients, *, eps: float, reference_batch: int, relative: bool) -> Noise:
    """R = (eps / reference_batch)(max g - min g) sign(g), or eps sign(g), at every site.

    Max and min are over the site's whole batch tensor, reduced over ranks.

    Args:
        g: gradients of the sum of the examples' losses.
        eps: the paper's 10, 20 or 30 for a mean loss over `reference_batch` examples; without range, in the activation's unit.
        reference_batch: that batch size.
        relative: multiply by the range.

    Reference: Sankaranarayanan et al. 2018, eqs. 5-6 and the appendix on epsilon.
    """
    if not relative:
        return {site: chain(sign(), scale(eps))(gradient) for site, gradient in g.items()}
    spans = _ranges(list(g.values()))
    return {
        site: chain(sign(), scale_by_range(eps / reference_batch, span=span))(gradient)
        for (site, gradient), span in zip(g.items(), spans, strict=True)
    }


def _ranges(tensors: list[Tensor]) -> list[Tensor]:
    """Max - min of each tensor over all ranks, one reduction for all."""
    extremes = torch.stack([bound for t in tensors for bound in (t.amax(), -t.amin())])
    if grouped():
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    return list(extremes.reshape(-1, 2).sum(dim=1))
