"""Random numbers that belong to an image: the same in any batch, in any subset and on any device."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np
import torch
from torch import Tensor


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FACTORS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))

BLOCK = 1 << 15
"""Numbers that are made at a time on the CPU."""


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
        return self.uniforms({what: shape})[0]

    def uniforms(self, shapes: Mapping[str, tuple[int, ...]]) -> list[Tensor]:
        """Likewise for several purposes at once, {what: shape}, which spares the calls that many small draws consist of."""
        counts = [math.prod(shape) for shape in shapes.values()]
        numbers = torch.empty(len(self.rows), sum(counts), device=self.rows.device)
        for some, bits, scratch in self._bits(tuple(shapes), tuple(counts)):
            numbers[:, some].copy_(_top(bits, 24, scratch)).mul_(2.0**-24)
        parts = zip(torch.split(numbers, counts, dim=1), shapes.values(), strict=True)
        return [part.reshape(len(numbers), *shape) for part, shape in parts]

    def normal(self, what: str, *shape: int) -> Tensor:
        """N(0, 1) numbers by Box and Muller's transform, float32, shape (B, *shape)."""
        count = math.prod(shape)
        half = (count + 1) // 2
        both = torch.empty(len(self.rows), 2, half, device=self.rows.device)
        for some, bits, scratch in self._bits((what,), (half,)):
            # At most 6.8: u is no smaller than 2^-33.
            length = _top(bits, 32, scratch).to(torch.float32).add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
            bits.bitwise_xor_(_top(bits, 33, scratch)).bitwise_and_(_low(32))
            angle = bits.to(torch.float32).mul_(2 * math.pi * 2.0**-32)
            torch.mul(length, angle.cos(), out=both[:, 0, some])
            torch.mul(length, angle.sin_(), out=both[:, 1, some])
        return both.flatten(1)[:, :count].reshape(len(both), *shape)

    def integers(self, what: str, bound: Tensor | int, *shape: int) -> Tensor:
        """Whole numbers in [0, bound), int64, shape (B, *shape); a tensor `bound` broadcasts to it."""
        return (self.uniform(what, *shape) * bound).long()

    def _bits(self, whats: tuple[str, ...], counts: tuple[int, ...]) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Random bits for so many numbers for each purpose, some columns of (B, sum of counts) after the other.

        SplitMix64's are these with their highest 33 bits put upon the lowest; who needs low bits does that. With the columns and the
        bits comes a tensor like the bits to work in.
        """
        device = self.rows.device
        keys = [hashlib.blake2b(f"{self.seed}/{self.key}/{what}".encode(), digest_size=8).digest() for what in whats]
        numbers = torch.tensor([int.from_bytes(key, "little", signed=True) for key in keys], device=device)
        start, scratch = _stir((self.rows[:, None] + 1) * _GOLDEN + numbers)
        start.bitwise_xor_(_top(start, 33, scratch))
        if len(counts) > 1:
            start = start.repeat_interleave(torch.tensor(counts, device=device), dim=1)
        counters = _counters(counts, device)
        # What costs is memory's traffic, a dozen passes over numbers of eight bytes: on the CPU they are few enough for its cache.
        size = max(1, BLOCK // max(1, len(start))) if device.type == "cpu" else max(1, len(counters))
        for begin in range(0, len(counters), size):
            some = slice(begin, begin + size)
            yield some, *_stir((start[:, some] if len(counts) > 1 else start) + counters[some])


@lru_cache(maxsize=4)
def _counters(counts: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.cat([torch.arange(1, count + 1, device=device) for count in counts]).mul_(_GOLDEN)


def _low(bits: int) -> int:
    return (1 << bits) - 1


def _top(z: Tensor, bits: int, out: Tensor) -> Tensor:
    """The highest bits as a number; the shift alone would copy the sign."""
    return torch.bitwise_right_shift(z, 64 - bits, out=out).bitwise_and_(_low(bits))


def _stir(z: Tensor) -> tuple[Tensor, Tensor]:
    """SplitMix64's output function but for its last step, in place, and a tensor to work in; products wrap."""
    scratch = torch.empty_like(z)
    (_stir_here if z.device.type == "cpu" else _stir_anywhere)(z, scratch)
    return z, scratch


def _stir_anywhere(z: Tensor, scratch: Tensor) -> None:
    z.bitwise_xor_(_top(z, 34, scratch)).mul_(_FACTORS[0])
    z.bitwise_xor_(_top(z, 37, scratch)).mul_(_FACTORS[1])


def _stir_here(z: Tensor, scratch: Tensor) -> None:
    """The same on a CPU by NumPy, which has unsigned numbers, whose shifts copy no sign, and takes half the time."""
    bits, shifted = (tensor.numpy().view(np.uint64) for tensor in (z, scratch))
    for places, factor in zip((30, 27), _FACTORS, strict=True):
        np.right_shift(bits, np.uint64(places), out=shifted)
        np.bitwise_xor(bits, shifted, out=bits)
        np.multiply(bits, np.uint64(factor % (1 << 64)), out=bits)
