"""In which order images and weights lie in memory: row by row of a channel, or the channels of each pixel together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.core.calling import call
from layerwise.core.modes import evaluation_mode


def fastest(network: nn.Module, x: Tensor) -> torch.memory_format:
    """Channels last where two-dimensional convolutions run in float32 or bfloat16 on a CPU or with CUDA, and the network takes it.

    A network takes it if one pass does: code such as `h.view(len(h), -1)` needs values that lie row by row.

    Args:
        network: on its device.
        x: a few images (B, C, H, W), on that device.

    >>> images = torch.zeros(2, 3, 8, 8)
    >>> fastest(nn.Conv2d(3, 8, 3), images)
    torch.channels_last
    >>> fastest(nn.Sequential(nn.Flatten(), nn.Linear(192, 8)), images)
    torch.contiguous_format
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    pays = (
        bool(convolutions)
        and x.device.type in ("cpu", "cuda")
        and x.dtype != torch.float64  # which the fast kernels of CPUs do not have
        and not (x.device.type == "cpu" and any(map(_overruns, convolutions)))
    )
    return torch.channels_last if pays and _taken(network, x) else torch.contiguous_format


def _overruns(convolution: nn.Conv2d) -> bool:
    """Whether oneDNN's weight gradient writes past its memory: with channels last, on processors without AVX-512 (torch 2.13)."""
    return (
        all(size == 1 for size in convolution.kernel_size)
        and any(step > 1 for step in convolution.stride)
        and convolution.groups == 1
        and convolution.in_channels < 8
    )


def _taken(network: nn.Module, x: Tensor) -> bool:
    cuda = [x.device] if x.is_cuda else []
    with evaluation_mode(network), torch.no_grad(), torch.random.fork_rng(cuda), laid_out(network, torch.channels_last):
        try:
            call(network, x.contiguous(memory_format=torch.channels_last))
        except RuntimeError:
            return False
    return True


@contextmanager
def laid_out(network: nn.Module, layout: torch.memory_format, *, keep: bool = False) -> Iterator[None]:
    """Weights in a layout, for the duration or, with `keep`, for good."""
    if layout is not torch.channels_last:
        yield
        return
    moved = [t for t in (*network.parameters(), *network.buffers()) if t.ndim == 4 and t.is_contiguous()]
    network.to(memory_format=layout)  # type: ignore[call-overload]
    try:
        yield
    finally:
        # Others' code may take views of weights as they were, such as `weight.view(-1)`.
        for tensor in () if keep else moved:
            tensor.data = tensor.data.contiguous()


@contextmanager
def gradients_by_rows(network: nn.Module) -> Iterator[None]:
    """Gradients of images row by row, however the weights lie: attacks of others take views of them."""

    def facing(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not (args and isinstance(args[0], Tensor) and args[0].requires_grad):
            return None
        x = args[0].view_as(args[0])
        x.register_hook(lambda g: None if g is None else g.contiguous())  # type: ignore[no-untyped-call]
        return (x, *args[1:])

    # A script takes no hooks; its convolutions are not seen, so that it lies by rows.
    if isinstance(network, torch.jit.ScriptModule):
        yield
        return
    handle = network.register_forward_pre_hook(facing)
    try:
        yield
    finally:
        handle.remove()
