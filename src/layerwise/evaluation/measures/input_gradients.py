"""Pictures of the loss gradient at the pixels, scaled and clipped only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self, final

import torch
from torch import Tensor, nn

from layerwise.attacks.base import loss_gradient
from layerwise.core import norms
from layerwise.core.registry import register
from layerwise.errors import ConfigError, DataError
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.measures.base import batches, examining
from layerwise.evaluation.style import canvas, describe, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDEST = 10


@final
@dataclass(frozen=True, eq=False)
class InputGradients(Measurement):
    """Images and the pictures of their gradients.

    Args:
        images: shape (N, C, H, W), in [0, 1].
        pictures: the same shape, in [0, 1]; 1/2 is no gradient.
        labels: of the images.
        deviations: what lies so many standard deviations (of the image's own gradient, around 0) off is white or black.
    """

    title: ClassVar[str] = "Input gradients"
    rank: ClassVar[int] = 36
    caption: ClassVar[str] = "Gradients of robust networks look like the object, those of others like noise."
    shared: ClassVar[bool] = True
    alike: ClassVar[tuple[str, ...]] = ("deviations",)

    images: Tensor
    pictures: Tensor
    labels: tuple[int, ...]
    deviations: float

    def figure(self, *, name: str = "network", others: Mapping[str, Self] | None = None) -> Figure:
        """The first images, and below them the pictures of this network and of others for the same images."""
        shown = {
            "image": self.images,
            name: self.pictures,
            **{k: other.pictures for k, other in (others or {}).items()},
        }
        columns = min(len(self.images), WIDEST)
        with styled():
            names = 0.07 * max(map(len, shown))  # inches
            figure, panels = canvas(len(shown), columns, width=0.9 * columns + 0.4 + names, height=1.0)
            for row, (label, pictures) in enumerate(shown.items()):
                for column in range(columns):
                    _picture(panels[row * columns + column], pictures[column])
                panels[row * columns].set_ylabel(label, rotation="horizontal", ha="right", va="center")
            for column in range(columns):
                panels[column].set_title(f"class {self.labels[column]}", loc="center", fontsize=7)
            figure.suptitle(self.title, x=0.01, ha="left", fontsize=9)
            figure.supxlabel(
                f"gradient: grey 0, black and white -/+ {self.deviations:g} standard deviations", fontsize=8
            )
        return describe(
            figure,
            f"{self.title}: {columns} images and below each the gradient of the loss at its pixels for {', '.join(list(shown)[1:])}, "
            f"scaled by its standard deviation and clipped at {self.deviations:g}.",
        )

    @property
    def edges(self) -> tuple[float, ...]:
        """Of each image, the correlation of the gradient's size at a pixel with how much the image changes there, in [-1, 1]."""
        grey = torch.nn.functional.pad(self.images.double().mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        across, down = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2], grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
        pairs = zip((self.pictures.double() - 0.5).abs().mean(dim=1), torch.hypot(across, down)[:, 0], strict=True)
        return tuple(
            float(torch.corrcoef(torch.stack([g.flatten(), e.flatten()]))[0, 1].nan_to_num()) for g, e in pairs
        )

    def sentence(self) -> str:
        """What is drawn."""
        return f"{len(self.images)} images and the gradients of the loss at their pixels, clipped at {self.deviations:g} deviations."


def _picture(axes: Axes, pixels: Tensor) -> None:
    """One image; of colours other than one or three the mean is shown."""
    shown = pixels if pixels.shape[0] in (1, 3) else pixels.mean(dim=0, keepdim=True)
    # As text of colours, never as numbers of a map: a picture has to look like the pixels it holds.
    axes.imshow(shown.expand(3, -1, -1).permute(1, 2, 0).double().clamp(0, 1).numpy(), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.grid(False)


@register("measure", "input-gradients", passes=lambda size: 2 * size.images)
def _measure(target: Target, *, images: int = 8) -> InputGradients:
    """Pictures of the loss gradient at the pixels (ANP, figure 5)."""
    found = input_gradient_pictures(*target.first(images))
    # Far below what a screen shows: a record of numbers with all their digits is four times as long.
    rounded = {name: getattr(found, name).double().round(decimals=4) for name in ("images", "pictures")}
    return replace(found, **rounded)


def input_gradient_pictures(
    model: nn.Module, x: Tensor, y: Tensor, *, deviations: float = 3.0, batch_size: int = 250
) -> InputGradients:
    """1/2 + g / (2 k s), clipped to [0, 1]: g = dL/dx, s the root mean square of the image's own g, k deviations.

    Nothing else is done to the gradients: no smoothing, no absolute value. A gradient of zero gives a grey picture.

    Args:
        model: any classifier.
        x: images, shape (N, C, H, W), in [0, 1].
        y: labels, shape (N,).
        deviations: k, above 0.
        batch_size: images at a time; the result does not depend on it.

    Raises:
        DataError: x is not of images.
        ConfigError: deviations is not above 0.

    Reference: Liu et al. 2021 (ANP), figures 5 and 10 (how far they scale is our choice).

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> found = input_gradient_pictures(net, torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64))
    >>> tuple(found.pictures.shape)
    (8, 1, 2, 2)
    """
    if x.ndim != 4:
        raise DataError(f"x has shape {tuple(x.shape)}; pictures need images (N, C, H, W)")
    if not deviations > 0:
        raise ConfigError(f"deviations={deviations} cannot be; type a number above 0")
    parts = []
    with examining(model, x, y) as network:
        for images, labels, _ in batches(network, x, y, batch_size=batch_size):
            g = loss_gradient(network, images, labels).double()
            size = norms.norm(g) / g[0].numel() ** 0.5
            parts.append((0.5 + norms.safe_divide(g, norms.rows(2 * deviations * size, g))).clamp(0, 1).cpu())
    return InputGradients(x.detach().cpu(), torch.cat(parts), tuple(y.tolist()), float(deviations))
