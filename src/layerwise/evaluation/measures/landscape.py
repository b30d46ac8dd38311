"""The loss around the images, along the adversarial and a random direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.attacks.base import is_correct, loss_gradient
from layerwise.core.checks import Radius
from layerwise.core.random import Source, uniform
from layerwise.core.registry import register
from layerwise.errors import ConfigError
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.measures.base import batches, examining
from layerwise.evaluation.style import MAP, canvas, describe, pixels, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRID = tuple(k / 10 for k in range(-10, 11))


@final
@dataclass(frozen=True)
class Landscape(Measurement):
    """Loss and accuracy at x + a eps sign(g) + b eps r.

    Args:
        adversarial: the values of a.
        random: the values of b.
        loss: mean cross entropy in nats, `loss[i][j]` at adversarial[i], random[j].
        accuracy: share of the images that are correct, the same order.
        eps: pixel units.
        images: how many the means are over.
    """

    title: ClassVar[str] = "Loss landscape"
    rank: ClassVar[int] = 29
    caption: ClassVar[str] = (
        "Smooth and flat is good. A jagged loss, or one that rises more along the random direction, is a sign of gradient masking."
    )

    shared: ClassVar[bool] = True
    alike: ClassVar[tuple[str, ...]] = ("eps", "adversarial", "random")

    adversarial: tuple[float, ...]
    random: tuple[float, ...]
    loss: tuple[tuple[float, ...], ...]
    accuracy: tuple[tuple[float, ...], ...]
    eps: float
    images: int

    def figure(self, *, name: str = "", others: Mapping[str, Landscape] | None = None) -> Figure:
        """Loss and accuracy as surfaces from above, a row a network, all on the same two scales.

        Args:
            name: what to call this network.
            others: {name: what was found for it}, on the same grid.
        """
        shown: dict[str, Landscape] = {name: self, **(others or {})}
        most = max(value for found in shown.values() for row in found.loss for value in row)
        with styled():
            figure, panels = canvas(len(shown), 2, height=2.7)
            for index, (label, found) in enumerate(shown.items()):
                title = label or f"{self.title}, mean of {found.images} images"
                percent = [[100 * value for value in row] for row in found.accuracy]
                found._surface(panels[2 * index], found.loss, title, "cross entropy (nats)", most)
                found._surface(panels[2 * index + 1], percent, label or "Accuracy", "accuracy (%)", 100.0)
        said = " ".join(f"{label}: {found.sentence()}" if label else found.sentence() for label, found in shown.items())
        return describe(figure, f"{self.title}: {said}")

    def sentence(self) -> str:
        """The ranges."""
        loss = [value for row in self.loss for value in row]
        percent = [100 * value for row in self.accuracy for value in row]
        return (
            f"mean cross entropy of {self.images} images runs from {min(loss):.3g} to {max(loss):.3g} nats and accuracy "
            f"from {min(percent):.1f} to {max(percent):.1f} % over the adversarial and a random direction at {pixels(self.eps)}."
        )

    def _surface(self, axes: Axes, values: Sequence[Sequence[float]], title: str, unit: str, most: float) -> None:
        rows = [list(column) for column in zip(*values, strict=True)]
        grid = list(self.adversarial), list(self.random), rows
        look: dict[str, Any] = {"cmap": MAP, "vmin": 0.0, "vmax": most}
        shown = axes.pcolormesh(*grid, shading="gouraud", rasterized=True, **look)
        levels = [most * k / 8 for k in range(1, 8)]
        if min(map(min, rows)) < levels[-1] and max(map(max, rows)) > levels[0]:
            # Light lines on the dark half of the map, dark ones on the light half.
            axes.contour(*grid, levels, colors=["white" if k < 4 else "black" for k in range(7)], linewidths=0.7)
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.colorbar(shown, ax=axes, label=unit)
        axes.set(
            title=title,
            xlabel=f"adversarial direction (units of {pixels(self.eps)})",
            ylabel="random direction (same units)",
        )
        axes.grid(False)


@register("measure", "landscape", passes=lambda size: size.images * size.points**2)
def _measure(target: Target, *, images: int = 50, points: int = 11) -> Landscape:
    """Loss and accuracy along an adversarial and a random direction (SLAT, figure 4)."""
    grid = torch.linspace(-1, 1, points).tolist()
    return loss_landscape(*target.first(images), eps=target.eps, adversarial=grid, random=grid, seed=target.seed)


def loss_landscape(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: Radius = 8 / 255,
    adversarial: Sequence[float] = GRID,
    random: Sequence[float] = GRID,
    clip: bool = True,
    seed: int = 0,
    batch_size: int = 250,
) -> Landscape:
    """Mean loss and accuracy at clip(x + a eps sign(dL/dx) + b eps r), r of Rademacher entries (+1 or -1, each image its own).

    (0, 0) is the image, (1, 0) FGSM's. Give one image for the landscape around that one.

    Args:
        model: any classifier.
        x: images, shape (N, ...), pixels in [0, 1].
        y: labels, shape (N,).
        eps: pixel units.
        adversarial: values of a; a forward pass over all images for each pair (441 by default).
        random: values of b.
        clip: to [0, 1], as FGSM does.
        seed: of the random directions.
        batch_size: images at a time; the result does not depend on it.

    Reference: SLAT, figure 4.

    >>> found = loss_landscape(nn.Linear(4, 2), torch.rand(8, 4), torch.zeros(8, dtype=torch.int64), random=[0.0])
    >>> len(found.loss), len(found.loss[0])
    (21, 1)
    """
    if not adversarial or not random:
        raise ConfigError("a landscape needs at least one value along each direction, for example adversarial=[0, 1]")
    loss = torch.zeros(len(adversarial), len(random), dtype=torch.float64)
    correct = torch.zeros_like(loss)
    with examining(model, x, y) as network:
        for images, labels, source in batches(network, x, y, batch_size=batch_size, seed=seed):
            uphill, sideways = loss_gradient(network, images, labels).sign(), rademacher(images, source)
            for i, a in enumerate(adversarial):
                for j, b in enumerate(random):
                    point = images + a * eps * uphill + b * eps * sideways
                    with torch.no_grad():
                        logits = network(point.clamp(0, 1) if clip else point)
                    loss[i, j] += F.cross_entropy(logits.double(), labels, reduction="sum").cpu()
                    correct[i, j] += is_correct(logits, labels).sum().cpu()
    return Landscape(
        tuple(map(float, adversarial)),
        tuple(map(float, random)),
        tuple(map(tuple, (loss / len(x)).tolist())),
        tuple(map(tuple, (correct / len(x)).tolist())),
        float(eps),
        len(x),
    )


def rademacher(like: Tensor, source: Source, *, key: str = "rademacher") -> Tensor:
    """Independent entries +1 or -1, each with probability 1/2, of the shape of `like`."""
    return torch.where(uniform(like, source, key=key) < 0, -torch.ones_like(like), torch.ones_like(like))
