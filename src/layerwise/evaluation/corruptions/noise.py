"""The noises: Gaussian, shot, impulse, speckle."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from layerwise.evaluation.corruptions.scene import Scene
from layerwise.evaluation.corruptions.severities import Constants


def gaussian_noise(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """The image plus c n, n ~ N(0, 1)."""
    return x + c[0] * scene.draws.normal("noise", *x.shape[1:])


def speckle_noise(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """The image plus c x n, n ~ N(0, 1)."""
    return x + x * c[0] * scene.draws.normal("noise", *x.shape[1:])


def shot_noise(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """Poisson(c x) / c."""
    return poisson(x, c[0], scene.draws.uniform("noise", *x.shape[1:])) / c[0]


def impulse_noise(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """A share c of the values becomes 0 or 1, each with probability 1/2."""
    u = scene.draws.uniform("noise", *x.shape[1:])
    return torch.where(u < c[0], (u < c[0] / 2).to(x.dtype), x)


def poisson(x: Tensor, photons: float, u: Tensor) -> Tensor:
    """The u-quantiles of Poisson(photons x).

    PyTorch's own sampler takes as many random numbers as it happens to need, which would tie an image's noise to its neighbours;
    there are only 256 distributions, so their tables are searched.

    Args:
        x: multiples of 1/255 in [0, 1].
        photons: expected count of a white pixel.
        u: numbers in [0, 1), shape of x.

    Returns:
        Counts, shape and type of x.

    >>> poisson(torch.tensor([0.0, 1.0, 1.0]), 2.0, torch.tensor([0.9, 0.13, 0.14]))
    tensor([0., 0., 1.])
    """
    first, table = _poisson_table(photons, x.device)
    level = (x * 255).round().long()
    found = torch.searchsorted(table.flatten(), (level + u.double()).contiguous(), right=True)
    return (found - level * table.shape[1] + first[level]).to(x.dtype)


@lru_cache(maxsize=16)
def _poisson_table(photons: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each level the first count in the table, and level + P(count or fewer) for that and the next ones, sorted throughout.

    Seven deviations around the mean hold all that u, a multiple of 2^-24, can ask for; a wider table no longer fits the cache.
    """
    rate = torch.arange(256, dtype=torch.float64, device=device)[:, None] / 255 * photons
    reach = 7 * math.sqrt(photons) + 20
    first = (rate - reach).floor().clamp(min=0)
    count = first + torch.arange(math.ceil(2 * reach), dtype=torch.float64, device=device)
    probability = (count.xlogy(rate) - rate - (count + 1).lgamma()).exp()
    level = torch.arange(256, dtype=torch.float64, device=device)[:, None]
    return first.long().squeeze(1), level + probability.cumsum(1).clamp_(max=1)
