"""Random numbers that belong to an image: the same in any batch, in any subset and on any device."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FACTORS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


@final
@dataclass(frozen=True)
class Draws:
    """Draws keyed by (seed, key, number of the image, what for): SplitMix64 in counter mode, integer arithmetic on tensors.

    PyTorch's generators give numbers in the order of asking, so that an image's would depend on its batch and device.

    Args:
        seed: the run's seed.
        key: the corruption and severity.
        rows: the images' numbers in their data set, int64, shape (B,).

    Reference: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".

    >>> both, second = (Draws(0, "snow/1", torch.tensor(rows)) for rows in ([3, 7], [7]))
    >>> torch.equal(both.uniform("angle", 4)[1], second.uniform("angle", 4)[0])
    True
    """

    seed: int
    key: str
    rows: Tensor

    def uniform(self, what: str, *shape: int) -> Tensor:
        """Numbers in [0, 1), multiples of 2^-24, float32, shape (B, *shape)."""
        bits = self._bits(what, math.prod(shape))
        return _top(bits, 24).to(torch.float32).mul_(2.0**-24).view(len(bits), *shape)

    def normal(self, what: str, *shape: int) -> Tensor:
        """N(0, 1) numbers by Box and Muller's transform, float32, shape (B, *shape)."""
        count = math.prod(shape)
        bits = self._bits(what, (count + 1) // 2)
        # At most 6.8: u is no smaller than 2^-33.
        length = _top(bits, 32).to(torch.float32).add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = (bits & 0xFFFFFFFF).to(torch.float32).mul_(2 * math.pi * 2.0**-32)
        both = torch.cat([length * angle.cos(), length * angle.sin()], dim=1)
        return both[:, :count].reshape(len(bits), *shape)

    def integers(self, what: str, bound: Tensor | int, *shape: int) -> Tensor:
        """Whole numbers in [0, bound), int64, shape (B, *shape); a tensor `bound` broadcasts to it."""
        return (self.uniform(what, *shape) * bound).long()

    def _bits(self, what: str, count: int) -> Tensor:
        digest = hashlib.blake2b(f"{self.seed}/{self.key}/{what}".encode(), digest_size=8).digest()
        start = _mix((self.rows + 1) * _GOLDEN + int.from_bytes(digest, "little", signed=True))
        counters = torch.arange(1, count + 1, device=self.rows.device) * _GOLDEN
        return _mix(start[:, None] + counters)


def _top(z: Tensor, bits: int) -> Tensor:
    return (z >> (64 - bits)).bitwise_and_((1 << bits) - 1)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's output function, a bijection on 64 bits; products wrap."""
    z = (z ^ _top(z, 34)).mul_(_FACTORS[0])
    z = (z ^ _top(z, 37)).mul_(_FACTORS[1])
    return z ^ _top(z, 33)
