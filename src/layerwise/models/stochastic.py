"""Inference with random numbers: the mean logits of several noisy passes, and images of random size and place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from layerwise.core.checks import at_least
from layerwise.core.latent import spread
from layerwise.core.registry import register
from layerwise.core.selection import Selection
from layerwise.core.sites import Sites
from layerwise.errors import ConfigError


class NoisyAverage(nn.Module):
    """The mean logits of `passes` passes with Gaussian noise at the sites, as LAD's stochastic variant infers.

    Args:
        model: the trained network.
        sites: where; LAD's are the residual-block outputs.
        std: deviation of the noise, in the unit of the activation.
        relative: std is a share of the deviation that each example's activation has over its entries, as in `PNI`.
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
        relative: bool = False,
        passes: int = 100,
        attack_passes: int = 1,
    ) -> None:
        super().__init__()
        at_least("passes", passes, 1)
        at_least("attack_passes", attack_passes, 1)
        at_least("std", std, 0)
        self.model, self.std, self.passes, self.attack_passes = model, std, passes, attack_passes
        self.sites = Sites(model, sites)
        self.constraint = _in_proportion if relative else None

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
        with self.sites.perturb(noise, constraint=self.constraint):
            logits: Tensor = self.model(x)
            return logits


def _in_proportion(r: Tensor, z: Tensor) -> Tensor:
    """Noise in units of the deviation of each example's entries."""
    return spread(z) * r


class Rand(nn.Module):
    """The network's logits of images at a random size, put at a random place among zeros: random resizing and padding.

    Every image has its own size, uniform from its own to `largest`, and its own place; pixels are repeated (nearest neighbour). Its
    gradient is that of one draw: attacks should average over several, `eot-10:pgd-50`.

    Args:
        model: the trained network; it has to take images of side `largest`.
        largest: the longer side of what it gets.

    Raises:
        ConfigError: in the forward pass, the images are larger than that.

    Reference: Xie et al. 2018, Mitigating adversarial effects through randomization; ANP's "Rand" (32 to 36, 224 to 254).
    """

    def __init__(self, model: nn.Module, *, largest: int) -> None:
        super().__init__()
        at_least("largest", largest, 1)
        self.model, self.largest = model, largest

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, C), of pixels in [0, 1], shape (B, C, H, W)."""
        room = self.largest - max(x.shape[2:])
        if room < 0:
            raise ConfigError(
                f"largest={self.largest} is smaller than images of {tuple(x.shape[2:])}; type a larger one"
            )
        extra = torch.randint(room + 1, (len(x),), device=x.device)
        logits: Tensor = self.model(_placed(_placed(x, extra, room, dim=2), extra, room, dim=3))
        return logits


def _placed(x: Tensor, extra: Tensor, room: int, *, dim: int) -> Tensor:
    """Each image grown by `extra` (B,) pixels along a side, at a random place of the `room` pixels more that the result has."""
    side = x.shape[dim]
    start = (torch.rand(len(x), device=x.device) * (room - extra + 1)).long()
    place = torch.arange(side + room, device=x.device) - start[:, None]
    size = (side + extra)[:, None]
    index = (place * side // size).clamp(0, side - 1)
    shape = [len(x), 1, 1, 1]
    shape[dim] = side + room
    wanted = list(x.shape)
    wanted[dim] = side + room
    taken = x.gather(dim, index.view(shape).expand(wanted))
    return taken * ((place >= 0) & (place < size)).view(shape)


class Inference(ABC):
    """How a trained network is evaluated where it is not simply called, as a setting."""

    @abstractmethod
    def wrap(self, model: nn.Module) -> nn.Module:
        """The module that is evaluated."""


@register("inference")
@final
@dataclass(frozen=True, kw_only=True)
class NoisyAveraging(Inference):
    """The mean logits of noisy passes, see `NoisyAverage`.

    Args:
        sites: where the noise is added.
        std: its deviation, in the unit of the activation.
        relative: std is a share of the deviation of each example's activation.
        passes: of a prediction.
        attack_passes: of a gradient.
    """

    sites: str | list[str] = "residual-block outputs"
    std: float = 0.1
    relative: bool = False
    passes: int = 100
    attack_passes: int = 1

    def wrap(self, model: nn.Module) -> nn.Module:
        """See `Inference.wrap`."""
        return NoisyAverage(
            model,
            sites=self.sites,
            std=self.std,
            relative=self.relative,
            passes=self.passes,
            attack_passes=self.attack_passes,
        )


@register("inference")
@final
@dataclass(frozen=True, kw_only=True)
class RandomResizing(Inference):
    """Images of random size and place, see `Rand`.

    Args:
        largest: the longer side of what the network gets; 36 for CIFAR-10 in ANP.
    """

    largest: int

    def wrap(self, model: nn.Module) -> nn.Module:
        """See `Inference.wrap`."""
        return Rand(model, largest=self.largest)
