"""Inference with noise: the mean logits of several noisy passes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerwise.methods.base import at_least
from layerwise.sites import Sites
from layerwise.tracing import Selection


class NoisyAverage(nn.Module):
    """The mean logits of `passes` passes with Gaussian noise at the sites, as LAD's stochastic variant infers.

    Args:
        model: the trained network.
        sites: where; LAD's are the residual-block outputs.
        std: deviation of the noise, in the unit of the activation.
        passes: noisy passes of a prediction, 100 in the paper.
        attack_passes: passes when a gradient with respect to the input is asked for; the paper does not say how its attacks treat the
            noise. More passes make a stronger attack: report the number.

    Reference: LAD, section 4.4.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sites: Selection = "residual-block outputs",
        std: float = 0.1,
        passes: int = 100,
        attack_passes: int = 1,
    ) -> None:
        super().__init__()
        at_least("passes", passes, 1)
        at_least("attack_passes", attack_passes, 1)
        at_least("std", std, 0)
        self.model, self.std, self.passes, self.attack_passes = model, std, passes, attack_passes
        self.sites = Sites(model, sites)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, C), of pixels in [0, 1], shape (B, C, H, W)."""
        passes = self.attack_passes if x.requires_grad else self.passes
        self.sites.resolve(x)
        total = self._noisy(x)
        for _ in range(passes - 1):
            total = total + self._noisy(x)
        return total / passes

    def _noisy(self, x: Tensor) -> Tensor:
        shapes = {site: (len(x), *self.sites.shape(site)) for site in self.sites}
        noise = {site: self.std * torch.randn(shape, device=x.device, dtype=x.dtype) for site, shape in shapes.items()}
        with self.sites.perturb(noise):
            logits: Tensor = self.model(x)
            return logits
