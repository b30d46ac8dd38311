"""Manifold mixup and noisy feature mixup: examples mixed at a random layer."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from layerwise.core.calling import Inputs, logits
from layerwise.core.checks import NonNegative, Positive
from layerwise.core.cost import DESCENT, Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.latent import Drawn, likes
from layerwise.core.random import Source, for_the_batch, normal, uniform
from layerwise.core.registry import register
from layerwise.core.sites import Sites, choose_sites
from layerwise.methods.base import LayerMethod, Losses


@register("method")
@dataclass(kw_only=True)
class ManifoldMixup(LayerMethod):
    """At one site, drawn for the batch, z <- lam z + (1 - lam) z[perm]; the loss is mixed likewise, lam from Beta(alpha, alpha).

    Args:
        sites: one of which is drawn for each batch; None takes the input, where it holds numbers, and the blocks' outputs.
        alpha: of the Beta distribution; 2 for CIFAR in the paper.
        additive: after mixing, add so much times Beta(2, 5) N(0, 1) (noisy feature mixup).
        multiplicative: before that, multiply by 1 + so much times Beta(2, 5) N(0, 1).
        criterion: each example's loss.

    Reference: Verma et al. 2019, Manifold mixup, section 2. Rows are mixed within a micro-batch.
    """

    sites: str | list[str] | tuple[str, ...] | None = None
    alpha: Positive = 2.0
    additive: NonNegative = 0.0
    multiplicative: NonNegative = 0.0
    criterion: Criterion = field(default_factory=CrossEntropy)

    _goes_on = False

    def make_sites(self, model: nn.Module, example: Inputs) -> Sites:
        if self.sites is not None:
            return Sites(model, self.sites, example=example)
        return choose_sites(model, example, ["input", "block outputs"], "block outputs", ["input", "affine outputs"])

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """One descent on mixed examples."""
        sites = list(attached := self.sites_on(model, x))
        # Numbers of the batch, drawn on the CPU, where reading them waits for nothing.
        drawn = for_the_batch(4, step.generator, key="mixup").tolist()
        site = sites[int(drawn[0] * len(sites))]
        lam = beta(self.alpha, self.alpha, drawn[1])
        perm = uniform(y.new_empty(len(y), dtype=torch.float32), step.generator, key="partners").argsort()
        noise = self._factors(step.generator, beta(2, 5, drawn[2]), beta(2, 5, drawn[3]))
        like = likes(attached, x, step.generator).get(site)
        mixed = partial(
            self._mixed,
            perm=perm,
            lam=torch.tensor(lam, dtype=torch.float64),  # a number would be part of a compiled network's graph
            noise=tuple(factor.ahead(like) for factor in noise),
        )
        with attached.perturb({site: mixed}):
            output = logits(model, x)
            yield lam * self.criterion.mean(output, y) + (1 - lam) * self.criterion.mean(output, y[perm])

    def _factors(self, source: Source, more: float, times: float) -> tuple[Drawn, Drawn]:
        """Additive and multiplicative noise, the same in a recomputation."""
        return (
            Drawn(lambda z: self.additive * more * normal(z, source, key="additive")),
            Drawn(lambda z: self.multiplicative * times * normal(z, source, key="multiplicative")),
        )

    def _mixed(self, z: Tensor, *, perm: Tensor, lam: Tensor, noise: tuple[Drawn, ...]) -> Tensor:
        """What the network continues with."""
        z = z * lam + z[perm] * (1 - lam)  # in this order a tensor is not rounded to the type of z first
        additive, multiplicative = noise
        if self.multiplicative:
            z = z * multiplicative(torch.ones_like(z))
        return additive(z) if self.additive else z

    @property
    def passes(self) -> Passes:
        """One descent."""
        return DESCENT


@register("method")
@dataclass(kw_only=True)
class NFM(ManifoldMixup):
    """Noisy feature mixup: manifold mixup, after which z <- (1 + multiplicative Beta(2, 5) N) z + additive Beta(2, 5) N.

    Reference: Lim et al. 2022, Noisy feature mixup, eqs. 1-5. Their code draws the factor's noise from U(-1, 1).
    """

    alpha: Positive = 1.0
    additive: NonNegative = 0.4
    multiplicative: NonNegative = 0.2


def beta(a: float, b: float, number: float) -> float:
    """A number from Beta(a, b) that a number from U(0, 1) chooses."""
    return random.Random(number).betavariate(a, b)
