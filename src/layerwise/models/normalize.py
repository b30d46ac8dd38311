"""Normalisation as a layer, so that attacks and radii stay in pixel units."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.errors import ConfigError

Statistics = float | Iterable[float]
"""One number for every channel, or one number a channel."""


class Normalize(nn.Module):
    """Subtract each channel's mean and divide by its standard deviation: `(x - mean) / std`.

    Both are persistent buffers of shape (C, 1, 1): they travel in the `state_dict`, so a checkpoint is complete.

    Args:
        mean: one number a channel, or one for all, in units of pixels in [0, 1].
        std: the same for the standard deviation, above 0 and at most 1.

    Raises:
        ConfigError: the statistics are in units of 0 to 255, are not positive, differ in length, or (in the forward pass)
            do not fit the images' channels.

    >>> Normalize(mean=0.5, std=0.25)(torch.ones(1, 1, 1, 2))
    tensor([[[[2., 2.]]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Statistics, std: Statistics) -> None:
        super().__init__()
        means, stds = per_channel("mean", mean), per_channel("std", std)
        if len(means) != len(stds) and 1 not in (len(means), len(stds)):
            raise ConfigError(f"mean has {len(means)} values and std has {len(stds)}; give one a channel in both.")
        self.register_buffer("mean", torch.tensor(means).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(stds).view(-1, 1, 1))
        self.channels = max(len(means), len(stds))

    def forward(self, x: Tensor) -> Tensor:
        """The images (..., C, H, W), normalised."""
        # Without this check (N, C) inputs would broadcast against (C, 1, 1) to a wrong shape, silently.
        if x.dim() < 3 or (self.channels != 1 and x.shape[-3] != self.channels):
            found = tuple(x.shape)
            raise ConfigError(
                f"Normalize has statistics of {self.channels} channels, but its input has the shape {found}."
            )
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """The statistics' shape; their values may be on a device, and reading them would synchronise."""
        return f"channels={self.channels}"


class Normalized(nn.Module):
    """A network of your own behind a normalisation layer: pixels in [0, 1] go in, whatever `model` returns comes out.

    The network's submodules keep their names under `model.`, for instance `model.conv1`.

    Args:
        model: any module that expects normalised images as its first argument.
        mean: as in `Normalize`.
        std: as in `Normalize`.

    Raises:
        ConfigError: as in `Normalize`.

    >>> network = Normalized(nn.Conv2d(1, 4, 3), mean=0.5, std=0.25)
    >>> [name for name, _ in network.named_children()]
    ['normalize', 'model']
    """

    def __init__(self, model: nn.Module, mean: Statistics, std: Statistics) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.model = model

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """`model` on the normalised images; further arguments pass through."""
        return self.model(self.normalize(x), *args, **kwargs)


def per_channel(name: str, values: Statistics) -> list[float]:
    """The statistics as a checked list: means in [-1, 1], standard deviations in (0, 1].

    >>> per_channel("mean", 0.5)
    [0.5]
    """
    numbers = [float(v) for v in (values if isinstance(values, Iterable) else [values])]
    if not numbers:
        raise ConfigError(f"{name} is empty; give one number a channel.")
    for number in numbers:
        if not (abs(number) <= 1 and (number > 0 or name == "mean")):
            limits = "between -1 and 1" if name == "mean" else "above 0 and at most 1"
            raise ConfigError(
                f"{name} holds {number:g}, but pixels are in [0, 1], so give {limits} (divide 0-to-255 units by 255)."
            )
    return numbers
