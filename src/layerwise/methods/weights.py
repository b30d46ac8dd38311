"""A network's weights as its layers use them: parameters, and what parametrisations make of parameters.

`weight_norm` keeps g and v where the layer multiplies by g v / ||v||, `spectral_norm` divides by the
largest singular value. A method that means the weight (Parseval, AWP) moves neither g nor v by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from layerwise.core.modes import evaluation_mode
from layerwise.core.shards import divided, local, sharded, whole
from layerwise.errors import ConfigError

Change: TypeAlias = Callable[[Tensor], Tensor]
"""What a pass uses in place of a weight that it has just made."""


class Weight(ABC):
    """A weight as its layer uses it."""

    name: str

    @property
    @abstractmethod
    def sources(self) -> Sequence[Tensor]:
        """The parameters that it is made of."""

    @abstractmethod
    def value(self) -> Tensor:
        """What the layer multiplies by, without gradient; nothing is moved by asking."""

    @abstractmethod
    def assign(self, value: Tensor) -> None:
        """Move the parameters so that the layer multiplies by this, or by what its parametrisation makes of it."""


class Made(Weight):
    """A weight that is made anew in every pass."""

    @abstractmethod
    def changing(self, change: Change) -> Any:
        """Let every pass use `change(weight)`, until the handle that is returned is removed."""


@final
@dataclass(frozen=True)
class Direct(Weight):
    """A parameter."""

    name: str
    parameter: Tensor

    @property
    def sources(self) -> Sequence[Tensor]:
        """Itself."""
        return (self.parameter,)

    def value(self) -> Tensor:
        """The parameter, put together where processes share it."""
        return whole(self.parameter)

    def assign(self, value: Tensor) -> None:
        """Write it; what `value` gave of an undivided parameter has been written already."""
        if value is not self.parameter:
            local(self.parameter).copy_(local(divided(value, self.parameter)))


@final
@dataclass(frozen=True)
class Parametrized(Made):
    """A weight of `torch.nn.utils.parametrize`: `parametrizations.weight_norm`, `spectral_norm`, `orthogonal`, one's own."""

    name: str
    made_by: Any

    @property
    def sources(self) -> Sequence[Tensor]:
        """Its originals."""
        if self.made_by.is_tensor:
            return (self.made_by.original,)
        return [getattr(self.made_by, f"original{i}") for i in range(self.made_by.ntensors)]

    def value(self) -> Tensor:
        """What the parametrisations make; in evaluation mode, so that no power iteration goes on."""
        with evaluation_mode(self.made_by):
            found: Tensor = self.made_by().detach()
        return found

    def assign(self, value: Tensor) -> None:
        """Through the parametrisations' own inverses.

        Raises:
            ConfigError: one of them has none.
        """
        found: Any = value
        for each in reversed(self.made_by):
            if not hasattr(each, "right_inverse"):
                raise ConfigError(
                    f"{self.name} is made by {type(each).__name__}, which has no right_inverse: no parameters give a wanted weight; "
                    "take the parametrisation off (torch.nn.utils.parametrize.remove_parametrizations)"
                )
            found = each.right_inverse(found)
        for original, part in zip(self.sources, [found] if self.made_by.is_tensor else found, strict=True):
            original.copy_(part)

    def changing(self, change: Change) -> Any:
        return self.made_by.register_forward_hook(lambda module, args, output: change(output))


@final
@dataclass(frozen=True)
class Hooked(Made):
    """A weight of the older `torch.nn.utils.weight_norm` and `spectral_norm`, made by a hook before its layer's forward pass."""

    name: str
    module: nn.Module
    hook: Any

    @property
    def sources(self) -> Sequence[Tensor]:
        """G and v, or what is divided."""
        ends = ("_g", "_v") if isinstance(self.hook, WeightNorm) else ("_orig",)
        return [getattr(self.module, self.hook.name + end) for end in ends]

    def value(self) -> Tensor:
        """What the hook makes, without a power iteration."""
        options = {} if isinstance(self.hook, WeightNorm) else {"do_power_iteration": False}
        found: Tensor = self.hook.compute_weight(self.module, **options).detach()
        return found

    def assign(self, value: Tensor) -> None:
        """W = g v / ||v|| with v = W; spectral_norm divides the new weight again by its largest singular value."""
        *scale, direction = self.sources
        for g in scale:
            g.copy_(torch.norm_except_dim(value, 2, self.hook.dim))
        direction.copy_(value)

    def changing(self, change: Change) -> Any:
        """See `Made.changing`; this hook comes after the one that makes the weight."""

        def exchange(module: nn.Module, args: Any) -> None:
            setattr(module, self.hook.name, change(getattr(module, self.hook.name)))

        return self.module.register_forward_pre_hook(exchange)


def made_weights(raw: nn.Module) -> Iterator[Made]:
    """The weights that are made anew in every pass; each once, also where layers share what it is made of."""
    seen: set[int] = set()
    for path, module in raw.named_modules():
        prefix = f"{path}." * bool(path)
        found: list[Made] = []
        if parametrize.is_parametrized(module):
            lists: Any = module.parametrizations
            found += [Parametrized(prefix + name, made_by) for name, made_by in lists.items()]
        hooks: list[Any] = [h for h in module._forward_pre_hooks.values() if isinstance(h, WeightNorm | SpectralNorm)]
        found += [Hooked(prefix + hook.name, module, hook) for hook in hooks]
        for weight in found:
            if not any(id(source) in seen for source in weight.sources):
                seen |= {id(source) for source in weight.sources}
                yield weight


def effective_weights(raw: nn.Module) -> list[Weight]:
    """Every trained weight of more than one dimension as its layer uses it, each once."""
    made = list(made_weights(raw))
    inside = {id(source) for weight in made for source in weight.sources}
    plain = [Direct(name, p) for name, p in raw.named_parameters() if id(p) not in inside]
    matrices: list[Weight] = [w for w in plain if w.parameter.ndim > 1]
    matrices += [w for w in made if w.value().ndim > 1]
    return [w for w in matrices if any(source.requires_grad for source in w.sources)]


def check_reachable(raw: nn.Module, *, of: str) -> None:
    """Complain about weights of which no parameters are the weight that the layer uses.

    Args:
        raw: the network.
        of: the method, for the message.

    Raises:
        ConfigError: adapters beside frozen weights (LoRA), pruned weights, parametrised weights that processes share.
    """
    for path, module in raw.named_modules():
        if hasattr(module, "lora_A"):
            raise ConfigError(
                f"{of} moves weights, and '{path}' adds an adapter's product to its own, which no parameter is: merge the adapter first "
                "(merge_and_unload), or train it with another method"
            )
        if hasattr(module, "weight_mask"):
            raise ConfigError(
                f"{of} moves weights, and that of '{path}' is pruned anew in every pass; type "
                "torch.nn.utils.prune.remove(module, 'weight') first"
            )
    for weight in made_weights(raw):
        if any(sharded(source) for source in weight.sources):
            raise ConfigError(
                f"{of} moves weights, and of '{weight.name}', which is made of others, every process has a part only; type "
                "training.strategy=ddp"
            )
