"""Batches of a split, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from layerwise.core.calling import parts_of
from layerwise.core.random import Stream
from layerwise.data.augment import Augment
from layerwise.data.splits import Split
from layerwise.errors import ConfigError


def num_batches(split: Split, batch_size: int, drop_last: bool = False, *, join_last: bool = False) -> int:
    """How many batches one epoch has: N / batch_size, rounded down with `drop_last` or `join_last`, else up.

    >>> from layerwise.data import load
    >>> test = load("digits").test
    >>> num_batches(test, 128), num_batches(test, 128, drop_last=True)
    (5, 4)
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; give 1 or more")
    if join_last:
        return max(1, len(split) // batch_size) if len(split) else 0
    return len(split) // batch_size if drop_last else -(-len(split) // batch_size)


def rank_rows(size: int, rows: tuple[int, int]) -> slice:
    """The contiguous rows of a global batch of `size` that rank `rows[0]` of `rows[1]` takes; none when there are too few.

    >>> [rank_rows(10, (rank, 3)) for rank in range(3)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
    """
    rank, world = rows
    return parts_of(size, world)[rank]


def epoch_order(size: int, *, shuffle: bool, seed: int, epoch: int) -> Tensor:
    """The rows 0 to size - 1 in the order in which epoch `epoch` visits them (int64, CPU)."""
    if not shuffle:
        return torch.arange(size)
    return torch.randperm(size, generator=Stream(seed, epoch).generator("order", torch.device("cpu")))


def batches(
    split: Split,
    batch_size: int,
    *,
    device: torch.device | str = "cpu",
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    start: int = 0,
    augment: Augment | None = None,
    drop_last: bool = False,
    join_last: bool = False,
    num_workers: int = 0,
    rows: tuple[int, int] | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of a split: pixels x in [0, 1] and class numbers y.

    The order is a function of (seed, epoch), the augmentation of batch b one of (seed, epoch, b); neither depends on `start`
    or `rows`, so a resumed run and a run on several ranks see the same images in the same batches.

    Args:
        split: what to go through.
        batch_size: images in a global batch, over all ranks; the last batch may be smaller.
        device: where the batches go; a `TensorSplit` that lives there costs no copy.
        shuffle: a new order each epoch.
        seed: the run's seed.
        epoch: which epoch, from 0.
        start: the batch to start at, from 0; earlier ones are not read.
        augment: random crops and flips, on the device.
        drop_last: leave out a last batch that is not full.
        join_last: its images belong to the batch before instead.
        num_workers: processes that read and decode a `StreamSplit`; a `TensorSplit` needs none.
        rows: (rank, world) gives this rank its contiguous rows of each global batch; a rank may get none of a last batch
            smaller than `world`.
        memory_format: of x, e.g. `torch.channels_last`.

    Returns:
        An iterator of x (float32, (B, C, H, W)) and y (int64, (B,)).

    Raises:
        ConfigError: a setting is out of range.
        DataError: a streamed image is unreadable or out of range; raised while iterating.

    >>> from layerwise.data import load
    >>> x, y = next(batches(load("digits").train, 32, shuffle=True, seed=1))
    >>> x.shape, x.dtype, y.dtype
    (torch.Size([32, 1, 8, 8]), torch.float32, torch.int64)
    """
    total = num_batches(split, batch_size, drop_last, join_last=join_last)
    if not 0 <= start <= total:
        raise ConfigError(f"start is {start}; the epoch has {total} batches, so give 0 to {total}")
    if rows is not None and not 0 <= rows[0] < rows[1] <= batch_size:
        raise ConfigError(f"rows is {rows}; give (rank, world) with 0 <= rank < world <= batch_size {batch_size}")
    if num_workers < 0:
        raise ConfigError(f"num_workers is {num_workers}; give 0 or more")
    order = epoch_order(len(split), shuffle=shuffle, seed=seed, epoch=epoch)
    ends = [len(split) if join_last and i + 1 == total else (i + 1) * batch_size for i in range(total)]
    whole = [order[i * batch_size : ends[i]] for i in range(start, total)]
    parts = [slice(0, len(batch)) if rows is None else rank_rows(len(batch), rows) for batch in whole]
    plan: Sequence[Tensor] = [batch[part] for batch, part in zip(whole, parts, strict=True)]
    stream, cpu, place = Stream(seed, epoch), torch.device("cpu"), torch.device(device)

    def iterate() -> Iterator[tuple[Tensor, Tensor]]:
        read = split.read(plan, device=place, num_workers=num_workers, generator=stream.generator("workers", cpu))
        # A tensor on the device: CUDA turns a division by a number into a product, which differs in the last bit.
        scale = torch.full((), 255.0, device=place)
        for i, (images, labels) in enumerate(read):
            if augment is not None:
                draws = augment.draw(len(whole[i]), stream.generator(f"augment/{start + i}", cpu))
                images = augment(images, draws[:, parts[i]])
            pixels = images.to(torch.float32).div_(scale) if images.dtype == torch.uint8 else images
            yield pixels.contiguous(memory_format=memory_format), labels

    return iterate()
