"""In which order images and weights lie in memory: row by row of a channel, or the channels of each pixel together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from layerwise.training import fsdp

if TYPE_CHECKING:
    from layerwise.training.settings import Training


def layout_for(settings: Training, network: nn.Module, device: torch.device) -> torch.memory_format:
    """What `training.channels_last` means for a network on a device.

    `"auto"` is on where two-dimensional convolutions run in float32 or bfloat16 on a CPU or with CUDA.

    >>> from layerwise.training import Training
    >>> layout_for(Training(), nn.Sequential(nn.Conv2d(3, 8, 3)), torch.device("cpu"))
    torch.channels_last
    >>> layout_for(Training(), nn.Sequential(nn.Linear(3, 8)), torch.device("cpu"))
    torch.contiguous_format
    """
    if settings.channels_last != "auto":
        return torch.channels_last if settings.channels_last else torch.contiguous_format
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    pays = (
        bool(convolutions)
        and device.type in ("cpu", "cuda")
        and settings.precision != "64-true"  # which the fast kernels of CPUs do not have
        and settings.strategy != fsdp.NAME  # shards lie one after the other
        and not (device.type == "cpu" and any(map(_overruns, convolutions)))
    )
    return torch.channels_last if pays else torch.contiguous_format


def _overruns(convolution: nn.Conv2d) -> bool:
    """Whether oneDNN's weight gradient writes past its memory: with channels last, on processors without AVX-512 (torch 2.13)."""
    return (
        all(size == 1 for size in convolution.kernel_size)
        and any(step > 1 for step in convolution.stride)
        and convolution.groups == 1
        and convolution.in_channels < 8
    )


@contextmanager
def laid_out(network: nn.Module, settings: Training, layout: torch.memory_format) -> Iterator[None]:
    """Weights in a layout for the duration; they stay in one that was asked for by name."""
    if layout is not torch.channels_last or settings.strategy == fsdp.NAME:
        yield
        return
    moved = [t for t in (*network.parameters(), *network.buffers()) if t.ndim == 4 and t.is_contiguous()]
    network.to(memory_format=layout)  # type: ignore[call-overload]
    try:
        yield
    finally:
        # Others' code may take views of weights as they were, such as `weight.view(-1)`.
        for tensor in moved if settings.channels_last == "auto" else ():
            tensor.data = tensor.data.contiguous()
