"""What batch norm does in a pass that only looks for perturbations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias, get_args

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from layerwise.errors import ConfigError

BatchNormMode: TypeAlias = Literal["batch", "train", "eval"]
"""`"batch"`: batch statistics, running ones untouched; `"train"`: as in training; `"eval"`: running statistics."""


@contextmanager
def batch_norm(model: nn.Module, mode: BatchNormMode = "batch") -> Iterator[None]:
    """Run the batch (and instance) norms of `model` that are in training mode as `mode` says, for the duration.

    Norms in evaluation mode are left alone. With `"batch"`, `track_running_stats` is off meanwhile: the layer then normalises
    by the batch and touches no buffer. Saving and restoring the buffers instead would break the backward of an earlier pass,
    because it changes in place what that pass saved.

    Args:
        model: any module.
        mode: see `BatchNormMode`.

    Raises:
        ConfigError: unknown mode.
    """
    if mode not in get_args(BatchNormMode):
        raise ConfigError(
            f"batch-norm mode {mode!r} is unknown; type one of {', '.join(map(repr, get_args(BatchNormMode)))}"
        )
    if mode == "train":
        yield
        return
    attribute, value = ("track_running_stats", False) if mode == "batch" else ("training", False)
    changed = [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    for module in changed:
        setattr(module, attribute, value)
    try:
        yield
    finally:
        for module in changed:
            setattr(module, attribute, True)
