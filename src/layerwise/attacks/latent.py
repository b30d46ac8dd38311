"""The layer-wise attack at test time: noise at hidden layers instead of at the input."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor, nn

from layerwise.attacks.base import Attack, Batch, is_correct
from layerwise.core.ascent import scaled_signs
from layerwise.core.checks import Count, NonNegative
from layerwise.core.criteria import CrossEntropy
from layerwise.core.driving import AUTOGRAD
from layerwise.core.modes import frozen
from layerwise.core.passes import Gradients, Noise
from layerwise.core.registry import register
from layerwise.core.sites import Sites, block_sites
from layerwise.core.threat import ThreatModel


@final
@register("attack", "latent")
@dataclass(frozen=True)
class LatentAttack(Attack):
    """Perturb every layer by the gradients of the previous mini-batch: z + eps sign(g of the batch before, row by row).

    The gradients are recorded in the perturbed passes themselves. The first batch follows the last one, moved on by a row (so that a
    single batch meets its neighbours and not itself). Labels are needed, and the accuracy depends on the order of the images and on
    the batch size: this is a measure of what hidden noise does, outside every threat model on pixels.

    Args:
        eps: size of the noise in the unit of the activations; None is the threat model's radius, as in table 1 of the paper.
        sites: where; None takes batch-norm outputs, or convolution outputs without batch norm, or affine outputs.
        relative: eps is LAT's 10, 20 or 30, divided by `reference_batch` and multiplied by the range of the site's gradients.
        reference_batch: batch size that such an eps is stated for.

    Reference: Sankaranarayanan et al. 2018, algorithm 1 and table 1.
    """

    resumable: ClassVar[bool] = False

    eps: NonNegative | None = None
    sites: str | tuple[str, ...] | None = None
    relative: bool = False
    reference_batch: Count = 128

    @property
    def in_threat_model(self) -> bool:
        """Never."""
        return False

    def resolved(self, threat: ThreatModel) -> Self:
        """With its radius."""
        return replace(self, eps=threat.eps if self.eps is None else self.eps)

    def outcomes(self, model: nn.Module, batches: Iterable[Batch], threat: ThreatModel) -> Iterator[Tensor]:
        """Each batch under the noise of the one before."""
        x, y, _ = deque(batches, maxlen=1)[0]
        with block_sites(model, x, self.sites) as sites:
            _, g = _pass(model, sites, x, y, {})
            g = {site: gradient.roll(1, dims=0) for site, gradient in g.items()}
            for x, y, _ in batches:
                logits, g = _pass(model, sites, x, y, self._noise(g, len(x), threat))
                yield is_correct(logits, y)

    def _noise(self, g: Gradients, rows: int, threat: ThreatModel) -> Noise:
        """Row i gets the noise of row i of the batch before, which starts over where it is shorter."""
        eps = threat.eps if self.eps is None else self.eps
        noise = scaled_signs(g, eps=eps, reference_batch=self.reference_batch, relative=self.relative)
        return {site: r[torch.arange(rows, device=r.device) % len(r)] for site, r in noise.items()}


def _pass(model: nn.Module, sites: Sites, x: Tensor, y: Tensor, noise: Noise) -> tuple[Tensor, Gradients]:
    """Logits of a pass with noise, and the gradients that it records at the sites."""
    with frozen(model), sites.record(x, noise) as recorded:
        logits = model(x)
        AUTOGRAD(CrossEntropy()(logits, y).sum(), inputs=recorded.leaves)
    return logits.detach(), recorded.gradients()
