"""What is known about data and network before the first step, so that no work is lost to it later."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from layerwise.core.calling import logits
from layerwise.core.contract import norm_of_one_row
from layerwise.core.modes import evaluation_mode
from layerwise.data import ImageData, batches
from layerwise.data.checks import check_several
from layerwise.errors import ConfigError
from layerwise.methods.base import Method
from layerwise.training.canary import ENOUGH
from layerwise.training.session import Place
from layerwise.training.settings import Training


def first_images(raw: nn.Module, data: ImageData, place: Place) -> tuple[Tensor, Tensor]:
    """A few training images that the network has been seen to take, and their labels."""
    found = next(batches(data.train, ENOUGH, device=place.device, memory_format=place.layout), None)
    if found is None:
        raise ConfigError(f"the data set {data.name} has no training images")
    check_several(data.name, data.train.labels, data.num_classes)
    x, y = found[0].to(place.dtype), found[1]
    try:
        with evaluation_mode(raw), torch.no_grad():
            shape = tuple(logits(raw, x.clone()).shape)  # which a network may write into
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the network does not take images of shape {data.shape}: {reason}") from error
    if len(shape) != 2 or shape[1] < data.num_classes:
        raise ConfigError(
            f"the network gives {shape} for {len(x)} images; for the {data.num_classes} classes of {data.name} it has to give "
            f"logits of shape ({len(x)}, {data.num_classes})"
        )
    return x, y


def checked(
    raw: nn.Module,
    methods: Sequence[Method],
    x: Tensor,
    y: Tensor,
    *,
    data: ImageData,
    settings: Training,
    world: int,
) -> tuple[list[str], bool]:
    """Sentences about what the methods find strange in the first images and the network in training mode.

    And whether an epoch's last batch, too small for batch norm, has to be joined to the one before.

    Raises:
        ConfigError: what would fail in the first step, at the first validation, or in an epoch's last batch.
    """
    attacked = bool(settings.eval_every and settings.eval_steps) and data.value_range is not None
    said = [sentence for method in methods for sentence in method.check(raw, x, y, moves_inputs=attacked)]
    left = 0 if settings.drop_last else len(data.train) % settings.batch_size
    short = [size for size in (settings.batch_size, left) if _smallest_part(size, settings.accumulate, world) == 1]
    reached = settings.max_steps is None or settings.max_steps * settings.batch_size > len(data.train) - left
    if short == [left] and not reached:
        short = []
    whole = settings.batch_norm == "synchronised" and world > 1
    norm = norm_of_one_row(raw, x) if short and not whole else None
    join = norm is not None and short == [left] and len(data.train) > settings.batch_size
    if join:
        said.append(
            f"the last {left} of {len(data.train)} training images, too few for the batch statistics of '{norm}', belong to the batch "
            "before them; training.drop_last=true leaves them out"
        )
    elif norm is not None:
        raise ConfigError(
            f"{len(data.train)} training images in batches of {settings.batch_size} come down to a pass of one image, too few for "
            f"the batch statistics of '{norm}': take fewer micro-batches or larger batches"
        )
    return list(dict.fromkeys(said)), join


def _smallest_part(size: int, accumulate: int, world: int) -> int:
    """Images of the smallest micro-batch of a batch; 0 where there is none."""
    return size // world // max(1, min(accumulate, size // world)) if size >= world else 0
