"""Parting a set into what is learnt from and what is held out, and the mean and deviation of pixels."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from layerwise.data.splits import Split, StreamSplit, TensorSplit
from layerwise.errors import ConfigError


def held_count(total: int, amount: float, *, name: str = "validation") -> int:
    """How many of `total` images `amount` means: below 1 a fraction, from 1 on a count.

    >>> held_count(50_000, 0.1), held_count(50_000, 1000), held_count(50_000, 0)
    (5000, 1000, 0)
    """
    count = round(total * amount) if 0 <= amount < 1 else amount
    if not 0 <= count < total or count != int(count):
        raise ConfigError(
            f"{name} is {amount}; give a fraction below 1 or a whole number of images below the {total} that there are"
        )
    return int(count)


def hold_out(total: int, count: int, *, key: str, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows to keep and rows to hold out, both ascending: a fixed function of `key`, on every machine and version.

    Each class gives its share of `count`, rounded so that the shares add up (largest remainders first, then lower classes).
    Without labels the rows are drawn from all.

    Args:
        total: the number of rows.
        count: how many to hold out.
        key: names the permutation.
        labels: class numbers, shape (total,).

    >>> keep, held = hold_out(6, 2, key="a", labels=torch.tensor([0, 1, 0, 1, 0, 1]))
    >>> len(keep), len(held), int(held[0] + held[1]) % 2
    (4, 2, 1)
    """
    # Python promises that a seeded random() never changes between versions; torch.randperm promises nothing.
    draw = random.Random(f"layerwise/{key}").random
    priority = torch.tensor([draw() for _ in range(total)], dtype=torch.float64)
    groups = (
        [torch.arange(total)]
        if labels is None
        else [(labels == c).nonzero()[:, 0] for c in sorted(set(labels.tolist()))]
    )
    shares = [divmod(count * len(group), total) for group in groups]
    missing = count - sum(share for share, _ in shares)
    largest = sorted(range(len(groups)), key=lambda g: -shares[g][1])[:missing]
    quotas = [share + (g in largest) for g, (share, _) in enumerate(shares)]
    parts = [group[priority[group].argsort()][:quota] for group, quota in zip(groups, quotas, strict=True)]
    held = torch.zeros(total, dtype=torch.bool)
    held[torch.cat(parts)] = True
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def part(split: Split, amount: float, *, key: str, name: str = "validation") -> tuple[Split, Split]:
    """The split without what is held out, and what is held out of it: stratified where the labels are known."""
    count = held_count(len(split), amount, name=name)
    if not count:
        return split, split.subset([])
    labels = None if split.labels is None else split.labels.cpu()
    keep, held = hold_out(len(split), count, key=key, labels=labels)
    return split.subset(keep), split.subset(held)


def pixel_statistics(split: Split, *, limit: int = 500) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels in [0, 1], per channel.

    Over all images in memory; over `limit` of a `StreamSplit`, drawn by a fixed permutation, since reading all may take hours.

    >>> mean, std = pixel_statistics(TensorSplit(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), torch.tensor([0])))
    >>> mean, std
    ((0.5,), (0.5,))
    """
    if isinstance(split, StreamSplit):
        _, rows = hold_out(len(split), min(limit, len(split) - 1), key="statistics")
        chosen = split.subset(rows if len(rows) else [0])
        items = range(len(chosen)) if chosen.rows is None else chosen.rows.tolist()
        found = [split.item(i)[0] for i in items]
        # As bytes where they are bytes: 500 pictures of 224 pixels are 75 MB, and twelve times that as numbers.
        kinds = {image.dtype for image in found}
        images = torch.stack(found if len(kinds) == 1 else [_as_float(image) for image in found])
    else:
        assert isinstance(split, TensorSplit)
        images = split.images
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    moments = [_moments(images[:, channel]) for channel in range(images.shape[1])]
    return tuple(mean / scale for mean, _ in moments), tuple(std / scale for _, std in moments)


def _as_float(image: Tensor) -> Tensor:
    return image.float() / 255 if image.dtype == torch.uint8 else image


def _moments(values: Tensor) -> tuple[float, float]:
    """Mean and population deviation; exact for uint8, where they come from the 256 counts."""
    if values.dtype != torch.uint8:
        values = values.double()
        return float(values.mean()), float(values.std(correction=0))
    weights = values.flatten().bincount(minlength=256).double() / values.numel()
    levels = torch.arange(256, dtype=torch.float64, device=values.device)
    mean = (weights * levels).sum()
    return float(mean), float((weights * (levels - mean).square()).sum().sqrt())
