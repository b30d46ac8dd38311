"""The size of the first residual state beside that of its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor, nn

from layerwise.core.registry import register
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import Curves, Look, Panels
from layerwise.evaluation.measures.base import batches, examining
from layerwise.methods.lad import LAD


@final
@dataclass(frozen=True)
class StateRatio(Curves):
    """Eq. 16's ratio; the figure takes `others` for other epochs or networks.

    Args:
        ratio: mean over the batches, units of x_0 squared per nat.
        ratios: of each batch.
        reference_batch: images of the mean loss that the gradient is of.
    """

    title: ClassVar[str] = "State over gradient"
    caption: ClassVar[str] = "It tells which eta of LAD is large enough to move the states."
    alike: ClassVar[tuple[str, ...]] = ("reference_batch",)
    legend: ClassVar[bool] = False

    ratio: float
    ratios: tuple[float, ...]
    reference_batch: int

    def draw(self, panels: Panels, look: Look) -> None:
        """Every batch, and the mean."""
        panels[0].plot([look["label"]] * len(self.ratios), self.ratios, "_", color=look["color"])
        panels[0].plot([look["label"]], [self.ratio], **look)

    def finish(self, panels: Panels) -> None:
        """Label the axes."""
        panels[0].set(
            xlabel="network or epoch", ylabel="||x_1|| / ||dL/dx_0||\n(units of x_0 squared per nat)", yscale="log"
        )
        panels[0].margins(x=0.2)

    def sentence(self) -> str:
        """The mean."""
        return f"ratio {self.ratio:.3g}, mean of {len(self.ratios)} batches, for a mean loss over {self.reference_batch} images."


@register("measure", "state-ratio", passes=lambda size: 2 * size.images, special=True)
def _measure(target: Target, *, images: int = 128) -> StateRatio:
    """Size of the first residual state beside its gradient's (LAD, eq. 16); residual networks only."""
    return state_gradient_ratio(*target.first(images))


def state_gradient_ratio(
    model: nn.Module, x: Tensor, y: Tensor, *, reference_batch: int = 128, batch_size: int = 128
) -> StateRatio:
    """||x_0 + f(x_0)||_2 / ||dL/dx_0||_2, x_0 the first residual block's input, L the mean loss over `reference_batch` images.

    Norms are over a batch; the ratio tells which eta of LAD is large enough to move the states.

    Args:
        model: a network with blocks, see `layerwise.core.phrases`.
        x: images, shape (N, ...), pixels in [0, 1].
        y: labels, shape (N,).
        reference_batch: the batch size of the mean loss.
        batch_size: images of each ratio.

    Raises:
        SiteError: the network has no blocks.

    Reference: Layer-wise adversarial defense: an ODE perspective (Yang et al. 2021), eq. 16 and figure 2.

    >>> from layerwise.models import build
    >>> import torch
    >>> net = build("preact_resnet20", num_classes=2, shape=(3, 8, 8), width=2)
    >>> state_gradient_ratio(net, torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])).ratio > 0
    True
    """
    measured = LAD(reference_batch=reference_batch)
    with examining(model, x, y) as network:
        found = [
            measured.diagnose(network, images, labels)["eq16_ratio"]
            for images, labels, _ in batches(network, x, y, batch_size=batch_size)
        ]
    return StateRatio(sum(found) / len(found), tuple(found), reference_batch)
