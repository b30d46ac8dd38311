"""What the processes of one run agree on; without a process group everything is the own value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from layerwise.core.shards import grouped
from layerwise.errors import LayerwiseError


def total(values: Tensor) -> Tensor:
    """The sum over ranks."""
    if grouped():
        values = values.clone()
        dist.all_reduce(values)
    return values


def smallest(value: int, device: torch.device) -> int:
    """The smallest over ranks."""
    if not grouped():
        return value
    found = torch.tensor(value, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MIN)
    return int(found)


def from_the_first(tensors: Iterable[Tensor]) -> None:
    """Give all ranks the values of rank 0, in place and in one message a type."""
    if not grouped():
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor.detach())
    for found in by_type.values():
        flat = torch.cat([tensor.flatten() for tensor in found])
        dist.broadcast(flat, 0)
        for tensor, value in zip(found, torch.split(flat, [tensor.numel() for tensor in found]), strict=True):
            tensor.copy_(value.view_as(tensor))


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank; every rank has to ask."""
    if not grouped():
        return flag
    value = torch.tensor(int(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value)


def together(
    act: Callable[[], object], *, rank: int, device: torch.device, alone: bool = False
) -> OSError | LayerwiseError | None:
    """Let every rank act (`alone`: rank 0 only), and tell all of them what went wrong on any."""
    failure: OSError | LayerwiseError | None = None
    try:
        if rank == 0 or not alone:
            act()
    except (OSError, LayerwiseError) as error:
        failure = error
    failed = any_rank(failure is not None, device)
    return (failure or LayerwiseError("another rank failed; its message says why")) if failed else None


@contextmanager
def survived(advice: Callable[[], str]) -> Iterator[None]:
    """Say in a sentence that another process of the group has ended: the others learn it by a connection that is closed.

    Args:
        advice: what to type, asked for only then.

    Raises:
        LayerwiseError: another process has ended.
    """
    try:
        yield
    except Exception as error:
        if not _is_lost(error):
            raise
        # All but the first two processes leave it to them, and the first one may be the one that is gone.
        cause = ConnectionResetError() if not grouped() or dist.get_rank() < 2 else error
        raise LayerwiseError(
            f"another of the processes has ended, killed perhaps, or out of memory, and none can go on alone; {advice()}"
        ) from cause


def _is_lost(error: Exception) -> bool:
    """Whether an error says that a process of the group is gone; gloo has no class of its own for it."""
    if type(error).__name__ == "ProcessExitedException":  # the parent's of processes that were spawned
        return True
    lost = ("gloo", "Connection reset by peer", "Connection closed by peer")
    return grouped() and (isinstance(error, dist.DistError) or any(sign in str(error) for sign in lost))
