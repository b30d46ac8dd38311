"""The l1 norm of the loss gradient at every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from layerwise.core import norms
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.probe import Probe
from layerwise.core.registry import register
from layerwise.core.selection import Selection
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import PerSite
from layerwise.evaluation.measures.base import LAYERS, attached, batches, examining


@final
@dataclass(frozen=True)
class FeatureGradients(PerSite):
    """l1 norms of the gradients at the sites.

    Args:
        sites: their names, in the order of the forward pass.
        norms: at each, the mean over the images of ||dL/dz||_1, the sum over the site's entries.
        entries: of each site's activation, per image.
        images: how many the means are over.
    """

    title: ClassVar[str] = "Feature gradients"
    rank: ClassVar[int] = 31
    caption: ClassVar[str] = "To the left is good: the loss depends less on the layer's activation."

    sites: tuple[str, ...]
    norms: tuple[float, ...]
    entries: tuple[int, ...]
    images: int

    @property
    def values(self) -> tuple[float, ...]:
        return self.norms

    @property
    def quantity(self) -> str:
        return "mean l1 norm of dL/dz (nats per unit of z)"


@register("measure", "feature-gradients", passes=lambda size: 2 * size.images)
def _measure(target: Target, *, images: int = 250) -> FeatureGradients:
    """The l1 norm of the loss gradient at every layer (SLAT, figure 5)."""
    return feature_gradient_norms(*target.first(images))


def feature_gradient_norms(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    sites: Selection = LAYERS,
    criterion: Criterion | None = None,
    batch_size: int = 250,
) -> FeatureGradients:
    """Mean over the images of ||dL/dz||_1 at every site, L each image's own loss, z the site's activation.

    Args:
        model: any classifier.
        x: images, shape (N, ...), pixels in [0, 1].
        y: labels, shape (N,).
        sites: where; see `layerwise.core.tracing.select`.
        criterion: each image's loss; None is cross entropy.
        batch_size: images at a time; the result does not depend on it.

    Reference: SLAT, eq. 5 and figure 5 (which prints no values and does not say whether the norm is a sum or a mean over a layer).

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> feature_gradient_norms(net, torch.rand(8, 4), torch.zeros(8, dtype=torch.int64)).sites
    ('input', '0', '2')
    """
    loss = criterion or CrossEntropy()
    with examining(model, x, y) as network, attached(network, sites, x) as found:
        total = torch.zeros(len(found), dtype=torch.float64)
        for images, labels, _ in batches(network, x, y, batch_size=batch_size):
            _, g = Probe()(network, images, labels, criterion=loss, sites=found)
            total += torch.stack([norms.norm(gradient.double(), "l1").sum() for gradient in g.values()]).cpu()
        names, entries = tuple(map(str, found)), tuple(found.shape(site).numel() for site in found)
    return FeatureGradients(names, tuple((total / len(x)).tolist()), entries, len(x))
