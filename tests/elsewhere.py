"""A device that is not the CPU, on the CPU: tensors with numbers that say they are elsewhere, and mind it as a GPU's do.

PyTorch's device "meta" has guards and autograd, but no numbers; here each of its tensors holds one of the CPU. Kernels refuse to
mix the two devices where a GPU's would, and whatever makes the host wait for a GPU - a value read back, a copy from memory that
is not pinned - is counted.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, Self

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators.cpu import CPUAccelerator
from lightning_fabric.strategies.single_device import SingleDeviceStrategy
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from layerwise.experiments import experiment
from layerwise.training import optim

ELSEWHERE = torch.device("meta")
CPU = torch.device("cpu")
aten = torch.ops.aten

COPIES = {aten.copy_, aten._to_copy}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
"""With copies, where a GPU takes tensors of the CPU too."""
MIXED = COPIES | INDEXED
READS = {aten._local_scalar_dense, aten.equal, aten.is_nonzero}
READS |= {aten.nonzero, aten.masked_select, aten._unique2, aten.bincount}
"""What the host waits for, beside copies and masks as indices: numbers, and shapes that numbers decide."""


class Held(Tensor):
    """A tensor elsewhere.

    Args:
        here: its numbers.
    """

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Held:
        made: Held = Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            layout=here.layout,
            device=ELSEWHERE,
        )
        made.here = here
        return made

    @property
    def data(self) -> Tensor:
        """As a tensor's; modules are moved by setting it."""
        found: Tensor = Tensor.data.__get__(self)  # type: ignore[attr-defined]
        return found

    @data.setter
    def data(self, value: Tensor) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        assert isinstance(value, Held)
        self.here = value.here

    def data_ptr(self) -> int:
        """Where the numbers are."""
        return self.here.data_ptr()

    def tolist(self) -> Any:
        """Read the numbers."""
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refuse, as a GPU's tensor does."""
        if not force:
            raise TypeError("can't convert a tensor that is elsewhere to numpy; use Tensor.cpu() first")
        return self.detach().cpu().numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Copy the numbers too."""
        copied: Tensor = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Outside of `Place`."""
        raise AssertionError(f"{func} was called outside of the place")


class Place(TorchDispatchMode):
    """Kernels on tensors elsewhere.

    `waits` counts what makes the host wait, by name.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See `TorchDispatchMode`."""
        kwargs, kind = dict(kwargs or {}), func.overloadpacket
        tensors = [*tensors_of(args), *tensors_of(kwargs.values())]
        held = any(isinstance(v, Held) for v in tensors)
        asked = kwargs.get("device")
        goes = asked is not None and torch.device(asked).type == ELSEWHERE.type
        if not held and not goes:
            return func(*args, **kwargs)
        strangers = [v for v in tensors if not isinstance(v, Held) and v.ndim]
        if held and strangers and kind not in MIXED:
            raise RuntimeError(f"Expected all tensors to be on the same device: {func} was given one of the CPU")
        crosses = strangers or (asked is not None and not goes)
        masked = kind in INDEXED and any(v.dtype == torch.bool for v in tensors_of(args[1]))
        if kind in READS or masked or (kind in MIXED and crosses):
            self.waits[str(kind)] += 1
        if asked is not None:
            kwargs["device"] = CPU
        found = func(*(here(v) for v in args), **{name: here(v) for name, v in kwargs.items()})
        if (asked is not None and not goes) or (kind is aten.copy_ and not isinstance(args[0], Held)):
            return args[0] if kind is aten.copy_ else found
        wrapped = there(found)
        if not held or not aliases(func):
            return wrapped
        return return_and_correct_aliasing(func, args, kwargs, wrapped)  # type: ignore[no-untyped-call]


# A kernel's arguments are tensors and lists of them: PyTorch's walk through any tree takes longer than all kernels.


def tensors_of(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those among the values, and in the lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_of(value)


def here(value: Any) -> Any:
    """With numbers in place of tensors elsewhere."""
    if isinstance(value, list | tuple):
        return type(value)(here(v) for v in value)
    return value.here if isinstance(value, Held) else value


def there(value: Any) -> Any:
    """With tensors elsewhere in place of numbers."""
    if isinstance(value, list | tuple):
        return type(value)(there(v) for v in value)
    return Held(value) if isinstance(value, Tensor) else value


@cache
def aliases(func: Any) -> bool:
    """Whether a kernel gives what it was given, or a view of it."""
    return any(given.alias_info is not None for given in func._schema.returns)


class Generator(torch.Generator):
    """The CPU's, since "meta" has none."""

    def __new__(cls, device: Any = CPU) -> Self:
        """Make it."""
        return super().__new__(cls, CPU if torch.device(device).type == ELSEWHERE.type else device)  # type: ignore[call-arg]


@contextmanager
def elsewhere(patch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The device as long as it is open."""
    autocast, fused = torch.autocast, (*optim.FUSED, ELSEWHERE.type)

    def copying(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
            # On "meta" PyTorch leaves the numbers out.
            found = make(data, **options)
            return found if device is None else found.to(device)

        return made

    def without(kind: str, *arguments: Any, **options: Any) -> Any:
        return nullcontext() if kind == ELSEWHERE.type else autocast(kind, *arguments, **options)

    with patch.context() as patched, Place() as place:
        patched.setattr(torch, "Generator", Generator)
        patched.setattr(torch, "autocast", without)
        patched.setattr(torch, "tensor", copying(torch.tensor))
        patched.setattr(torch, "as_tensor", copying(torch.as_tensor))
        patched.setattr(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: fused)
        patched.setattr(optim, "FUSED", fused)
        yield place


@contextmanager
def training_there(patch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The device, and Fabric on it."""
    with elsewhere(patch) as place, patch.context() as patched:
        for kind, name in ((Fabric, "device"), (SingleDeviceStrategy, "root_device")):
            patched.setattr(kind, name, property(lambda self: ELSEWHERE))
        patched.setattr(CPUAccelerator, "setup_device", lambda self, device: None)
        patched.setattr(experiment, "best_device", lambda: ELSEWHERE)
        yield place
