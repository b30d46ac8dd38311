"""Parametric noise injection at activations: noise in proportion to their own spread."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from torch import Tensor, nn

from layerwise.core.calling import Inputs
from layerwise.core.checks import NonNegative
from layerwise.core.cost import Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.latent import drawn, spread
from layerwise.core.random import normal
from layerwise.core.registry import register
from layerwise.core.sites import Sites, block_sites
from layerwise.core.tracing import Site
from layerwise.methods.base import InputMethod, LayerMethod, Losses
from layerwise.methods.standard import Standard


@register("method")
@final
@dataclass(kw_only=True)
class PNI(LayerMethod):
    """Noise at layers in training as in inference: z + scale std(z) N(0, 1), std over each example's entries.

    Evaluate with the same noise, averaged: `NoisyAverage(model, std=scale, relative=True)`, in a recipe
    `evaluation: {inference: {name: NoisyAveraging, std: 0.25, relative: true}}`, and with gradients averaged too
    (`evaluation.eot`), without which random noise looks like robustness.

    Args:
        sites: None takes batch-norm outputs, or convolution outputs without batch norm, or affine outputs.
        scale: of the noise; 0.25 is where the authors start.
        base: what perturbs the input and gives the loss, with the noise off in its probes.
        criterion: each example's loss (of the default base).

    Reference: He et al. 2019, Parametric noise injection, eq. 1, at activations (PNI-A). The authors learn scale
    for each layer and take std over the batch; here it is fixed, and the examples' own.
    """

    sites: str | list[str] | tuple[str, ...] | None = None
    scale: NonNegative = 0.25
    base: InputMethod | None = None
    criterion: Criterion = field(default_factory=CrossEntropy)

    _goes_on = False

    def make_sites(self, model: nn.Module, example: Inputs) -> Sites:
        return block_sites(model, example, self.sites)

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """One descent at noisy layers."""
        sites = self.sites_on(model, x)
        base = self.base or Standard(criterion=self.criterion)
        x_adv, _ = base.batch_perturb(model, x, y, step)

        def numbers(site: Site, z: Tensor) -> Tensor:
            n = normal(z, step.generator, key=str(site))
            return self.sized(n, z) if site.is_input else n

        with sites.perturb(drawn(sites, x_adv, step.generator, numbers, constraint=self.sized)):
            yield base.loss(model, x, x_adv, y)

    def sized(self, numbers: Tensor, z: Tensor) -> Tensor:
        """The noise at an activation."""
        return self.scale * spread(z) * numbers

    @property
    def passes(self) -> Passes:
        """Those of the base."""
        return (self.base or Standard()).passes
