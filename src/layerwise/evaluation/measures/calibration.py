"""Whether a network is as sure as it is correct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn

from layerwise.core.registry import register
from layerwise.errors import ConfigError
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import Curves
from layerwise.evaluation.measures.base import batches, examining

if TYPE_CHECKING:
    from matplotlib.axes import Axes


FEW = 10
"""Bins of fewer images are marks beside the line: the accuracy of one or two images is mostly 0 or 100 %."""


@final
@dataclass(frozen=True)
class Calibration(Curves):
    """Accuracy over confidence, of unperturbed images, in bins of equal width.

    Args:
        images: in each bin.
        confidence: mean probability of the predicted class in each bin; 0 where the bin is empty.
        accuracy: share of correct images in each bin, likewise.
    """

    title: ClassVar[str] = "Calibration"
    rank: ClassVar[int] = 12
    caption: ClassVar[str] = (
        "A network on the dashed diagonal is correct as often as it is sure; below it, it is too sure. Larger marks hold more images; "
        f"the line leaves out bins of fewer than {FEW}."
    )

    images: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]

    @property
    def total(self) -> int:
        """Of all bins."""
        return sum(self.images)

    @property
    def error(self) -> float:
        """Expected calibration error: the mean over the images of |accuracy - confidence| of their bin.

        Reference: Guo et al. 2017, equation 3.
        """
        bins = zip(self.images, self.confidence, self.accuracy, strict=True)
        return sum(n * abs(a - c) for n, c, a in bins) / max(self.total, 1)

    def draw(self, panels: Sequence[Axes], look: Mapping[str, Any]) -> None:
        """A mark a bin, its area by the number of images, and a line through those of many."""
        bins = zip(self.images, self.confidence, self.accuracy, strict=True)
        found = [(n, 100 * c, 100 * a) for n, c, a in bins if n]
        line = [(x, y) for n, x, y in found if n >= FEW]
        panels[0].plot([x for x, _ in line], [y for _, y in line], **{**look, "marker": None})
        n, x, y = zip(*found, strict=True)
        panels[0].scatter(x, y, s=[12 + 90 * k / self.total for k in n], color=look["color"], marker=look["marker"])

    def finish(self, panels: Sequence[Axes]) -> None:
        """The diagonal, and the same scale on both axes."""
        panels[0].plot((0, 100), (0, 100), color="#808080", linestyle="--", linewidth=1)
        panels[0].set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 102), ylim=(0, 102))

    def sentence(self) -> str:
        """The error, and its direction."""
        sure = sum(n * c for n, c in zip(self.images, self.confidence, strict=True)) / max(self.total, 1)
        right = sum(n * a for n, a in zip(self.images, self.accuracy, strict=True)) / max(self.total, 1)
        return (
            f"expected calibration error {100 * self.error:.1f} % over {self.total} images: "
            f"{100 * sure:.1f} % sure and {100 * right:.1f} % correct on average."
        )


@register("measure", "calibration", passes=lambda size: size.images)
def _measure(target: Target, *, images: int = 1000) -> Calibration:
    """Confidence beside accuracy, on images as they are (Guo et al. 2017)."""
    return calibration(*target.first(images))


def calibration(model: nn.Module, x: Tensor, y: Tensor, *, bins: int = 15, batch_size: int = 250) -> Calibration:
    """Accuracy and mean confidence of the images in each bin of confidence.

    Args:
        model: any classifier that gives logits.
        x: images, shape (N, ...), pixels in [0, 1].
        y: labels, shape (N,).
        bins: of equal width over [0, 1].
        batch_size: images at a time; the result does not depend on it.

    Raises:
        ConfigError: no bin.

    Reference: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2.

    >>> found = calibration(nn.Linear(4, 2), torch.rand(8, 4), torch.zeros(8, dtype=torch.int64))
    >>> found.total, 0 <= found.error <= 1
    (8, True)
    """
    if bins < 1:
        raise ConfigError(f"bins={bins} is too small; type 1 or more")
    sums = torch.zeros(3, bins, dtype=torch.float64)
    with examining(model, x, y) as network, torch.no_grad():
        for images, labels, _ in batches(network, x, y, batch_size=batch_size):
            sure, predicted = network(images).double().softmax(dim=1).cpu().max(dim=1)
            where = (sure * bins).long().clamp(max=bins - 1)
            correct = (predicted == labels.cpu()).double()
            sums.index_add_(1, where, torch.stack([torch.ones_like(sure), sure, correct]))
    count, confidence, accuracy = sums
    means = [tuple((total / count.clamp(min=1)).tolist()) for total in (confidence, accuracy)]
    return Calibration(tuple(map(int, count.tolist())), *means)
