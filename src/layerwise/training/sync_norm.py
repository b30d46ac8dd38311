"""Batch norm over the rows of all processes, differentiable as often as wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from layerwise.core.shards import grouped


@contextmanager
def synchronised(model: nn.Module) -> Iterator[None]:
    """Let the batch norms of `model` take their batch statistics over all processes, for the duration.

    The modules, their parameters, buffers and hooks stay the same objects; each has another `forward` meanwhile. What makes them use
    running statistics (`layerwise.core.modes`, evaluation mode) is asked at every call. Every process has to make the same passes. Without
    a process group nothing changes; torch's own `SyncBatchNorm` modules are left alone.

    Reference: Ioffe and Szegedy 2015, with the batch of all processes.

    >>> norm = nn.BatchNorm1d(2)
    >>> with synchronised(norm):
    ...     norm(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))[:, 0].round(decimals=3).tolist()
    [-1.0, 1.0]
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]
    kept = {norm: norm.__dict__.get("forward") for norm in norms}
    if grouped() and dist.get_world_size() > 1:
        for norm in norms:
            norm.__dict__["forward"] = partial(_forward, norm)
    try:
        yield
    finally:
        for norm, before in kept.items():
            norm.__dict__.pop("forward", None)
            if before is not None:
                norm.__dict__["forward"] = before


def _forward(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Gamma (x - mean) / sqrt(var + eps) + beta, mean and variance over the rows of all processes."""
    if not norm.training and norm.running_mean is not None:
        result: Tensor = type(norm).forward(norm, x)
        return result
    norm._check_input_dim(x)  # type: ignore[no-untyped-call]
    # Low precision in, low precision out, as torch's: the statistics are taken in float32.
    h = x if x.dtype == torch.float64 else x.float()
    mean, var, count = _statistics(h)
    if norm.training and norm.track_running_stats:
        _track(norm, mean.detach(), var.detach(), count)
    scale = (var + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    shift = -mean * scale
    if norm.affine:
        shift = shift + norm.bias
    shape = (1, -1, *[1] * (x.ndim - 2))
    # One product and one sum, which keep x only: a centred copy would be memory of another activation.
    return torch.addcmul(shift.to(h.dtype).view(shape), h, scale.to(h.dtype).view(shape)).to(x.dtype)


def _statistics(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and number of entries of each channel over all processes.

    Each process's own mean and variance are gathered and joined: sums of squares would cancel.
    """
    own_var, own_mean = torch.var_mean(h, [0, *range(2, h.ndim)], correction=0)
    entries = own_mean.new_full((1,), h.numel() // h.shape[1])
    rank, world = dist.get_rank(), dist.get_world_size()
    row = torch.cat([own_mean, own_var, entries])
    table: Tensor = _Sum.apply(torch.stack([row if r == rank else torch.zeros_like(row) for r in range(world)]))  # type: ignore[no-untyped-call]
    means, variances = table[:, :-1].chunk(2, dim=1)
    counts = table[:, -1:].detach()
    shares = counts / counts.sum()
    mean = (shares * means).sum(dim=0)
    var = (shares * (variances + (means - mean) ** 2)).sum(dim=0)
    return mean, var, counts.sum()


@torch.no_grad()
def _track(norm: _BatchNorm, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Move the running statistics, the variance unbiased."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if norm.running_mean is None or norm.running_var is None:
        return
    steps: Any = norm.num_batches_tracked
    share = norm.momentum if norm.momentum is not None else 1 / steps.to(mean)
    unbiased = var * (count / (count - 1).clamp(min=1))
    norm.running_mean += share * (mean.to(norm.running_mean) - norm.running_mean)
    norm.running_var += share * (unbiased.to(norm.running_var) - norm.running_var)


@final
class _Sum(torch.autograd.Function):
    """The sum over processes; so is its gradient, of any order."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        del ctx
        found = value.clone()
        dist.all_reduce(found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        del ctx
        return _Sum.apply(gradients[0].contiguous())  # type: ignore[no-untyped-call]
