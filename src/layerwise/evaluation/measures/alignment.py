"""Gradient alignment: does the input gradient point the same way nearby?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from layerwise.attacks.base import raw_gradient
from layerwise.core import norms
from layerwise.core.checks import Radius
from layerwise.core.random import uniform
from layerwise.core.registry import register
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import Curves, Look, Panels
from layerwise.evaluation.measures.base import batches, examining
from layerwise.evaluation.style import pixels


@final
@dataclass(frozen=True)
class Alignment(Curves):
    """How well the input gradients at x and nearby agree.

    Args:
        mean: mean cosine over the images that count, in [-1, 1]; None where none counts.
        cosines: of each image that counts.
        dropped: images without a direction: their gradient is zero, or not finite, at one of the two points.
        eps: how far away the second point lies at most, pixel units.
    """

    title: ClassVar[str] = "Gradient alignment"
    rank: ClassVar[int] = 30
    caption: ClassVar[str] = (
        "Far to the right is good: the gradient points the same way nearby. Near 0, attacks and training by a single step fail."
    )
    alike: ClassVar[tuple[str, ...]] = ("eps",)

    mean: float | None
    cosines: tuple[float, ...]
    dropped: int
    eps: float

    @property
    def total(self) -> int:
        """Also the images without a direction."""
        return len(self.cosines) + self.dropped

    def draw(self, panels: Panels, look: Look) -> None:
        """The share of images up to each cosine."""
        values = sorted(self.cosines)
        share = [100 * (k + 1) / len(values) for k in range(len(values))]
        panels[0].step([*values, 1.0], [*share, 100.0], where="post", **{**look, "marker": None})

    def finish(self, panels: Panels) -> None:
        """Label the axes."""
        where = f"cosine of the gradients at x and x + U(-eps, eps), {pixels(self.eps)}"
        panels[0].set(xlabel=where, ylabel="images up to this cosine (%)")
        panels[0].set_ylim(0, 102)

    def sentence(self) -> str:
        """Mean, and what was left out."""
        mean = "no image has a gradient" if self.mean is None else f"mean cosine {self.mean:.3f}"
        left_out = f", {self.dropped} without a gradient left out" if self.dropped else ""
        return f"{mean} over {len(self.cosines)} images at {pixels(self.eps)}{left_out}."


@register("measure", "alignment", passes=lambda size: 4 * size.images)
def _measure(target: Target, *, images: int = 250) -> Alignment:
    """Cosine of the input gradients at an image and nearby (SLAT, figure 6)."""
    return gradient_alignment(*target.first(images), eps=target.eps, seed=target.seed)


def gradient_alignment(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: Radius = 8 / 255, seed: int = 0, batch_size: int = 250
) -> Alignment:
    """Mean cos(dL/dx at x, dL/dx at x + u), u ~ U(-eps, eps) in every pixel, without clipping.

    1 where the loss is linear around the images; it falls when a network overfits to single-step attacks.

    Args:
        model: any classifier.
        x: images, shape (N, ...), pixels in [0, 1].
        y: labels, shape (N,).
        eps: pixel units.
        seed: of the second points.
        batch_size: images at a time; the result does not depend on it.

    Reference: Andriushchenko and Flammarion 2020; SLAT, figure 6.

    >>> net = nn.Linear(4, 2)
    >>> found = gradient_alignment(net, torch.rand(8, 4), torch.zeros(8, dtype=torch.int64))
    >>> round(found.mean, 4), found.dropped
    (1.0, 0)
    """
    parts = []
    with examining(model, x, y) as network:
        for images, labels, source in batches(network, x, y, batch_size=batch_size, seed=seed):
            here = raw_gradient(network, images, labels)
            nearby = images + eps * uniform(images, source, key="alignment")
            parts.append(cosine(here, raw_gradient(network, nearby, labels)))
    found = torch.cat(parts)
    kept = found[found.isfinite()].tolist()
    mean = sum(kept) / len(kept) if kept else None
    return Alignment(mean, tuple(kept), len(found) - len(kept), float(eps))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of each pair of rows, shape (B,), NaN where one has no direction.

    In float64 and normalised first: gradients of 1e-12 are common on well-learnt images, where `torch.cosine_similarity` with its
    added 1e-8 gives 0.

    >>> cosine(torch.tensor([[1e-12, 0.0], [0.0, 0.0]]), torch.tensor([[1e-12, 0.0], [1.0, 0.0]]))
    tensor([1., nan], dtype=torch.float64)
    """
    a, b = a.flatten(1).double(), b.flatten(1).double()
    usable = (norms.norm(a) > 0) & (norms.norm(b) > 0)
    return torch.where(usable, (norms.normalize(a) * norms.normalize(b)).sum(dim=1), torch.nan)
