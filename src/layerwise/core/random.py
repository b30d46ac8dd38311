"""Random numbers whose values do not depend on ranks, micro-batches or restarts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from layerwise.errors import CaptureError


@final
class Bank:
    """Generators that stay the same objects from step to step, for a step that is recorded once and replayed.

    A step takes them in the same order each time. Before a replay `seed` gives each the numbers of that step.
    """

    def __init__(self) -> None:
        self._taken: list[tuple[str, torch.Generator]] = []
        self._position = 0

    @property
    def generators(self) -> list[torch.Generator]:
        """All of them, in the order in which a step takes them."""
        return [generator for _, generator in self._taken]

    def seed(self, seed: int, step: int) -> None:
        """Set every generator to the numbers of one step, and begin with the first."""
        self._position = 0
        for key, generator in self._taken:
            generator.manual_seed(_seed_of(seed, step, key))

    def take(self, seed: int, step: int, key: str, device: torch.device) -> torch.Generator:
        """The next generator, made if there is none yet.

        Raises:
            CaptureError: the step asks for another one than the first time.
        """
        if self._position == len(self._taken):
            self._taken.append((key, torch.Generator(device).manual_seed(_seed_of(seed, step, key))))
        known, generator = self._taken[self._position]
        if known != key:
            raise CaptureError(f"it draws random numbers for {key!r} where it drew some for {known!r} before")
        self._position += 1
        return generator


def _seed_of(seed: int, step: int, key: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{step}/{key}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


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
        bank: where generators come from in a step that is recorded; None makes a fresh one for each draw.
    """

    seed: int
    step: int = 0
    start: int = 0
    total: int | None = None
    own_start: int = 0
    own_total: int | None = None
    bank: Bank | None = field(default=None, compare=False, repr=False)

    def generator(self, key: str, device: torch.device) -> torch.Generator:
        """A fresh generator for one purpose: equal keys give equal numbers."""
        if self.bank is not None:
            return self.bank.take(self.seed, self.step, key, device)
        return torch.Generator(device).manual_seed(_seed_of(self.seed, self.step, key))


Source: TypeAlias = Stream | torch.Generator | None
"""Where random numbers come from: a `Stream`, a plain generator on the right device, or PyTorch's own (None)."""


def repeatable(source: Source) -> Stream:
    """A source whose second reading gives the same numbers, and whose rows can be shared out."""
    if isinstance(source, Stream):
        return source
    device = torch.device("cpu") if source is None else source.device
    return Stream(int(torch.randint(2**62, (), generator=source, device=device)))


def uniform(like: Tensor, source: Source = None, *, key: str = "") -> Tensor:
    """Independent U(-1, 1) entries of the shape, type and device of `like` (B, ...)."""
    return _draw(like, source, key, torch.rand).mul_(2).sub_(1)


def normal(like: Tensor, source: Source = None, *, key: str = "") -> Tensor:
    """Independent N(0, 1) entries of the shape, type and device of `like` (B, ...)."""
    return _draw(like, source, key, torch.randn)


def between(like: Tensor, reach: float, source: Source = None, *, key: str = "") -> Tensor:
    """Independent U(-reach, reach) entries of the shape, type and device of `like`, with the bits of `Tensor.uniform_`."""

    def fill(shape: tuple[int, ...], *, generator: torch.Generator | None, **options: Any) -> Tensor:
        return torch.empty(shape, **options).uniform_(-reach, reach, generator=generator)

    return _draw(like, source, key, fill)


def for_the_batch(count: int, source: Source = None, *, key: str = "") -> Tensor:
    """Independent U(0, 1) numbers that belong to the batch, not to its rows: the same in all its micro-batches and on all ranks.

    They are on the generator's device, with a `Stream` on the CPU.

    Raises:
        CaptureError: in a step that is recorded, which numbers on the CPU are no part of.
    """
    if isinstance(source, Stream) and source.bank is not None:
        raise CaptureError("it draws numbers for the whole batch on the CPU")
    generator = source.generator(key, torch.device("cpu")) if isinstance(source, Stream) else source
    return torch.rand(count, generator=generator, device="cpu" if generator is None else generator.device)


def own_rows(source: Source, count: int) -> tuple[int, int]:
    """First row and number of rows that this process holds of a batch of `count`, (0, count) unless a stream says otherwise."""
    if isinstance(source, Stream) and source.total is not None:
        return source.start - source.own_start, source.own_total or source.total
    return 0, count


def _draw(like: Tensor, source: Source, key: str, fill: Callable[..., Tensor]) -> Tensor:
    options = {"dtype": like.dtype, "device": like.device}
    if not isinstance(source, Stream):
        return fill(like.shape, generator=source, **options)
    total = len(like) if source.total is None else source.total
    drawn = fill((total, *like.shape[1:]), generator=source.generator(key, like.device), **options)
    return drawn if total == len(like) else drawn[source.start : source.start + len(like)]
