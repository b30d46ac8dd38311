"""A CUDA graph's stand-in on the CPU: it records the kernels that a step launches and replays them on the same memory, without Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Kernels(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], Mapping[str, Any], list[Tensor | None]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        known = {memory(v) for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)}
        # What is a view, or was written in place, is there already.
        fresh = [v if isinstance(v, Tensor) and memory(v) not in known else None for v in tree_leaves(out)]
        self.calls.append((func, args, kwargs, fresh))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, recorded in self.calls:
            for ours, now in zip(recorded, tree_leaves(func(*args, **kwargs)), strict=True):
                if ours is not None:
                    ours.copy_(now)


def memory(tensor: Tensor) -> int:
    here: Tensor = getattr(tensor, "here", tensor)  # of a tensor that is elsewhere
    return here.untyped_storage().data_ptr()


class Recorder:
    """Counts what it is asked for."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def warm_up(self, step: Callable[[], None]) -> None:
        for _ in range(2):
            step()

    def record(self, step: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        kernels = Kernels()
        handle = register_optimizer_step_pre_hook(_refuse_to_be_recorded)
        try:
            with kernels:
                step()
        finally:
            handle.remove()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            kernels.replay()

        return replay


def _refuse_to_be_recorded(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """What Adam itself does while CUDA records."""
    if not all(group.get("capturable", True) for group in optimizer.param_groups):
        raise RuntimeError("Attempting CUDA graph capture of step() but param_groups' capturable is False.")
