"""NEFTune: uniform noise at the embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from layerwise.core.calling import Inputs
from layerwise.core.checks import NonNegative
from layerwise.core.cost import Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.latent import drawn, embedding_sites
from layerwise.core.random import between
from layerwise.core.registry import register
from layerwise.core.sites import Sites
from layerwise.core.tracing import Site
from layerwise.methods.base import InputMethod, LayerMethod, Losses
from layerwise.methods.standard import Standard


@register("method")
@final
@dataclass(kw_only=True)
class NEFTune(LayerMethod):
    """One descent with embeddings + U(-1, 1) alpha / sqrt(L d), in training only.

    With a plain generator (or none) the numbers are those of trl and transformers, bit for bit: padding counts in
    L and gets noise too.

    Args:
        sites: where; None takes the embeddings, in networks of images the pixels.
        alpha: size of the noise; 5, 10 or 15 in the paper.
        base: what perturbs the input and gives the loss.
        criterion: each example's loss (of the default base).

    Reference: Jain et al. 2023, NEFTune: noisy embeddings improve instruction finetuning, algorithm 1.
    """

    sites: str | list[str] | tuple[str, ...] | None = None
    alpha: NonNegative = 5.0
    base: InputMethod | None = None
    criterion: Criterion = field(default_factory=CrossEntropy)

    _goes_on = False

    def make_sites(self, model: nn.Module, example: Inputs) -> Sites:
        return embedding_sites(model, example, self.sites)

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """One descent."""
        sites = self.sites_on(model, x)
        base = self.base or Standard(criterion=self.criterion)
        x_adv, _ = base.batch_perturb(model, x, y, step)

        def noise(site: Site, z: Tensor) -> Tensor:
            return between(z, self.reach(z), step.generator, key=f"{site}")

        with sites.perturb(drawn(sites, x_adv, step.generator, noise, masked=False)):
            yield base.loss(model, x, x_adv, y)

    def reach(self, z: Tensor) -> float:
        """The largest entry of the noise at an activation."""
        # With torch's own rounding in float32, as theirs; by numpy, since a recorded step reads no tensor.
        return float((self.alpha / torch.sqrt(torch.tensor(z[0].numel()))).numpy())

    @property
    def passes(self) -> Passes:
        """Those of the base."""
        return (self.base or Standard()).passes
