"""The noises: Gaussian, shot, impulse, speckle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import final

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
    table = _poisson_table(photons, x.device)
    bits = torch.mul(u, 1 << 24).int().flatten()
    cell = torch.mul(x, 255).round_().int().flatten().bitwise_left_shift_(CELLS).add_(bits >> (24 - CELLS))
    place = table.guide.index_select(0, cell)
    more = bits >= table.limits.index_select(0, place)
    place += more
    # Few: those whose cell holds several counts.
    rest = more.nonzero().squeeze(1)
    while len(rest):
        rest = rest[bits[rest] >= table.limits[place[rest]]]
        place[rest] += 1
    return table.counts.index_select(0, place).to(x.dtype).view_as(x)


CELLS = 8
"""u's highest bits, for each value of which the search knows where to begin."""


@final
@dataclass(frozen=True)
class PoissonTable:
    """The distribution functions of the 256 levels, one after the other.

    Args:
        limits: the u, in units of 2^-24, from which on the count is larger than the entry's; int32.
        counts: each entry's, float32.
        guide: the first entry that u may be found at, for each level and each value of u's highest bits; int32.
    """

    limits: Tensor
    counts: Tensor
    guide: Tensor


@lru_cache(maxsize=16)
def _poisson_table(photons: float, device: torch.device) -> PoissonTable:
    """Seven deviations around the mean, which hold all that u, a multiple of 2^-24, can ask for."""
    level = torch.arange(256, dtype=torch.float64, device=device)[:, None]
    rate, reach = level / 255 * photons, 7 * math.sqrt(photons) + 20
    first = (rate - reach).floor().clamp(min=0)
    count = first + torch.arange(math.ceil(2 * reach), dtype=torch.float64, device=device)
    probability = (count.xlogy(rate) - rate - (count + 1).lgamma()).exp()
    limits = (probability.cumsum(1) * (1 << 24)).ceil_().clamp_(max=1 << 24)
    limits[:, -1] = 1 << 24
    starts = torch.arange(1 << CELLS, dtype=torch.float64, device=device) * (1 << (24 - CELLS))
    guide = torch.searchsorted(limits, starts.expand(256, -1).contiguous(), right=True)
    guide += torch.arange(256, device=device)[:, None] * limits.shape[1]
    return PoissonTable(limits.int().flatten(), count.float().flatten(), guide.int().flatten())
