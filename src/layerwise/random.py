"""Random numbers whose values do not depend on ranks, micro-batches or restarts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stream:
    """Draws for one step, keyed by (seed, step, what for), of which this process uses some rows.

    Noise is drawn for the whole global batch and cut to `rows`, so that a run gives the same numbers on one device, on many,
    with gradient accumulation and after a restart (the price: every rank draws all the rows).

    Args:
        seed: the run's seed.
        step: index of the optimiser step.
        start: first row of the global batch that this (micro-)batch holds.
        total: rows of the global batch; None when this batch is all of it.
        own_start: first row that this process holds, over all its micro-batches.
        own_total: rows that this process holds; None when it holds all.
    """

    seed: int
    step: int = 0
    start: int = 0
    total: int | None = None
    own_start: int = 0
    own_total: int | None = None

    def generator(self, key: str, device: torch.device) -> torch.Generator:
        """A fresh generator for one purpose: equal keys give equal numbers."""
        digest = hashlib.blake2b(f"{self.seed}/{self.step}/{key}".encode(), digest_size=7).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))


Source: TypeAlias = Stream | torch.Generator | None
"""Where random numbers come from: a `Stream`, a plain generator on the right device, or PyTorch's own (None)."""


def uniform(like: Tensor, source: Source = None, *, key: str = "") -> Tensor:
    """Independent U(-1, 1) entries of the shape, type and device of `like` (B, ...)."""
    return _draw(like, source, key, torch.rand) * 2 - 1


def normal(like: Tensor, source: Source = None, *, key: str = "") -> Tensor:
    """Independent N(0, 1) entries of the shape, type and device of `like` (B, ...)."""
    return _draw(like, source, key, torch.randn)


def for_the_batch(count: int, source: Source = None, *, key: str = "") -> Tensor:
    """Independent U(0, 1) numbers that belong to the batch, not to its rows: the same in all its micro-batches and on all ranks.

    They are on the generator's device, with a `Stream` on the CPU.
    """
    generator = source.generator(key, torch.device("cpu")) if isinstance(source, Stream) else source
    return torch.rand(count, generator=generator, device="cpu" if generator is None else generator.device)


def _draw(like: Tensor, source: Source, key: str, fill: object) -> Tensor:
    assert callable(fill)
    options = {"dtype": like.dtype, "device": like.device}
    if not isinstance(source, Stream):
        drawn: Tensor = fill(like.shape, generator=source, **options)
        return drawn
    total = len(like) if source.total is None else source.total
    drawn = fill((total, *like.shape[1:]), generator=source.generator(key, like.device), **options)
    return drawn[source.start : source.start + len(like)]
