"""Random crops and mirror images, for a whole batch at once where it lives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from layerwise.core.checks import one_of
from layerwise.errors import ConfigError


@final
@dataclass(frozen=True, kw_only=True)
class Augment:
    """Crop after padding, then mirror every second image on average: the papers' augmentation of CIFAR.

    Args:
        crop: pixels of padding on each side, and so the largest shift; 0 for no crop.
        flip: whether half of the images are mirrored left to right.
        padding: `"zeros"`, or `"reflect"`, the image mirrored at its edges, as LAT's wide residual networks are trained.

    >>> augment = Augment(crop=1, flip=False)
    >>> draws = torch.tensor([[0], [1], [0]])  # one row up is one padded row in: shifted down by one
    >>> augment(torch.tensor([[[[1, 2], [3, 4]]]]), draws)
    tensor([[[[0, 0],
              [1, 2]]]])
    """

    crop: int = 4
    flip: bool = True
    padding: Literal["zeros", "reflect"] = "zeros"

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise ConfigError(f"Augment: crop is {self.crop}; give the padding in pixels, 0 or more")
        one_of("Augment: padding", self.padding, ("zeros", "reflect"))

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Row offset, column offset (0 to 2 crop) and mirror (0 or 1) of `size` images: int64, shape (3, size), CPU."""
        # Both are always drawn, so that switching one off leaves the other as it was.
        offsets = torch.randint(0, 2 * self.crop + 1, (2, size), generator=generator)
        mirror = torch.randint(0, 2, (1, size), generator=generator) * int(self.flip)
        return torch.cat((offsets, mirror))

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """The images (B, C, H, W) of any type, cropped and mirrored as `draws` (3, B) says."""
        batch, channels, height, width = images.shape
        if not 0 <= self.crop < min(height, width) and self.padding == "reflect":
            size = f"{height} x {width}"
            raise ConfigError(
                f"Augment: images of {size} cannot be mirrored by {self.crop} pixels; give a smaller crop"
            )
        padded = self._padded(images) if self.crop else images
        down, right, mirror = draws.to(images.device, non_blocking=True)
        rows = down[:, None] + torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device)
        columns = right[:, None] + torch.where(mirror[:, None] > 0, width - 1 - columns, columns)
        # One gather over flattened pixels: three times as fast on a CPU as one gather a dimension.
        index = (rows[:, :, None] * padded.shape[-1] + columns[:, None, :]).view(batch, 1, height * width)
        return padded.flatten(2).gather(2, index.expand(-1, channels, -1)).view(images.shape)

    def _padded(self, images: Tensor) -> Tensor:
        """The images with `crop` pixels more on every side."""
        around = (self.crop,) * 4
        if self.padding == "zeros":
            return pad(images, around)
        # Mirroring knows no uint8, which float32 holds exactly.
        values = images if images.is_floating_point() else images.float()
        return pad(values, around, mode="reflect").to(images.dtype)
