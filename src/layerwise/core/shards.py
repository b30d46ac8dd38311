"""Several processes, and weights that FSDP2 has cut into shards, one a process; what is not cut is left as it is.

Only torch's own classes are asked for by what they can do: importing them costs half a second that most programs need not pay.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn


def grouped() -> bool:
    """Whether this process belongs to a group."""
    return dist.is_available() and dist.is_initialized()


def sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of it."""
    return hasattr(tensor, "full_tensor")


def cut_by_fsdp(raw: nn.Module) -> bool:
    """Whether FSDP2 has cut the network; if so, it is told to let go of gathered weights after every pass, the root's too.

    After a pass without a backward pass (a probe, a check) they would stay gathered, and `parameters()` would give others than the
    optimiser has: a method would freeze and move the wrong ones, silently.
    """
    let_go: Any = getattr(type(raw), "set_reshard_after_forward", None)
    if let_go is not None:
        let_go(raw, True)
    return let_go is not None


def local(tensor: Tensor) -> Tensor:
    """The part that lies here, sharing memory; a tensor that is not cut is its own part.

    >>> w = nn.Linear(2, 2).weight
    >>> local(w) is w, whole(w) is w
    (True, True)
    """
    cut: Any = tensor.detach()
    return cut.to_local() if sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor put together; every process has to ask."""
    cut: Any = tensor
    return cut.detach().full_tensor() if sharded(tensor) else tensor


def joined(part: Tensor, like: Tensor) -> Tensor:
    """The whole of which this process has `part`, cut as `like` is; every process has to ask."""
    if not sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    cut: Any = like
    found = DTensor.from_local(part, cut.device_mesh, cut.placements, shape=like.shape, stride=like.stride())
    return found.full_tensor()


def divided(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, cut as `like` is."""
    if not sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    cut: Any = like
    return distribute_tensor(value.to(like.device), cut.device_mesh, cut.placements, src_data_rank=None)


def weights_of(raw: nn.Module) -> dict[str, Tensor]:
    """The network's `state_dict` with whole tensors; every process has to ask."""
    return {name: whole(value) for name, value in raw.state_dict().items()}
