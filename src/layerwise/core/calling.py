"""How a network is called and what it gives: the only place that knows it.

Inputs are one tensor (`model(x)`), a mapping of arguments by name (`model(**x)`) or a tuple of them (`model(*x)`). Outputs are a tensor,
a tuple or list whose first is meant, or an object or mapping with `logits` (`out` in segmentation networks of torchvision).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from layerwise.errors import ConfigError

Inputs: TypeAlias = Tensor | Mapping[str, Any] | tuple[Any, ...] | list[Any]
"""A batch as a network takes it; every tensor whose first dimension is the batch has a row for each example."""

MEANT = ("inputs_embeds", "pixel_values", "input_values", "input_features", "input_ids")
"""Arguments by name that hold the examples themselves, the first that is there; transformers calls them so."""

MASK = "attention_mask"
"""The argument by name that says which positions are real."""


def call(model: Callable[..., Any], x: Inputs) -> Any:
    """What the network gives, as it gives it.

    >>> call(nn.Linear(2, 3), (torch.zeros(4, 2),)).shape
    torch.Size([4, 3])
    """
    if isinstance(x, Tensor):
        return model(x)
    return model(**x) if isinstance(x, Mapping) else model(*x)


def logits(model: nn.Module, x: Inputs) -> Tensor:
    """The logits (or whatever tensor the criterion takes) that the network gives.

    Raises:
        ConfigError: it gives no tensor.
    """
    return logits_of(call(model, x))


def logits_of(output: Any) -> Tensor:
    """The tensor that is meant among what a network gives.

    >>> logits_of({"loss": None, "logits": torch.zeros(1)}), logits_of((torch.ones(1), torch.zeros(1)))
    (tensor([0.]), tensor([1.]))

    Raises:
        ConfigError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    found: Any = None
    if isinstance(output, Mapping):
        found = output.get("logits", output.get("out"))
    elif hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, tuple | list) and output:
        found = output[0]
    if isinstance(found, Tensor):
        others = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
        if heads := [v for v in others if isinstance(v, Tensor) and v is not found and v.shape == found.shape]:
            found.auxiliary = heads  # type: ignore[attr-defined]  # for `AuxiliaryHeads`, and gone with the tensor
        return found
    holds = f" of {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    raise ConfigError(
        f"the network gives a {type(output).__name__}{holds}, and no logits; wrap it in a module that returns them as a tensor"
    )


def key_of(x: Inputs) -> int | str | None:
    """Which argument holds the examples, by position or name; None where x is a tensor.

    >>> key_of({"attention_mask": torch.ones(2, 3), "input_ids": torch.ones(2, 3)})
    'input_ids'

    Raises:
        ConfigError: x holds no tensor.
    """
    if isinstance(x, Tensor):
        return None
    if isinstance(x, Mapping):
        named = {name: value for name, value in x.items() if isinstance(value, Tensor) and value.ndim}
        known = [name for name in MEANT if name in named]
        if found := known or [name for name in named if "mask" not in name] or list(named):
            return found[0]
    elif isinstance(x, tuple | list):
        for position, value in enumerate(x):
            if isinstance(value, Tensor):
                return position
    raise ConfigError(
        f"the network's input is a {type(x).__name__} without a tensor; give a tensor, a mapping {{name: tensor}} or a tuple of tensors"
    )


def examples(x: Inputs) -> Tensor:
    """The tensor that holds the examples themselves, shape (B, ...)."""
    if isinstance(x, Tensor):
        return x
    found: Tensor = x[key_of(x)]  # type: ignore[index]
    return found


def rows(x: Inputs) -> int:
    """How many examples the batch has."""
    return len(x) if isinstance(x, Tensor) else len(examples(x))


def shape_of(x: Inputs) -> Hashable:
    """The shape of one example, of every tensor in it: equal keys mean equal shapes inside a network."""
    if isinstance(x, Tensor):
        return x.shape[1:]
    items = x.items() if isinstance(x, Mapping) else enumerate(x)
    return tuple((key, value.shape[1:]) for key, value in items if isinstance(value, Tensor))


def carrier(x: Inputs) -> Tensor | None:
    """The tensor that carries the gradient of the input, if one can: token ids cannot."""
    found = examples(x)
    return found if found.is_floating_point() else None


def with_examples(x: Inputs, tensor: Tensor) -> Inputs:
    """The same batch with other examples in it.

    >>> with_examples({"pixel_values": torch.zeros(1), "n": 2}, torch.ones(1))
    {'pixel_values': tensor([1.]), 'n': 2}
    """
    if isinstance(x, Tensor):
        return tensor
    key = key_of(x)
    if isinstance(x, Mapping):
        return {**x, key: tensor}  # type: ignore[dict-item]
    return tuple(tensor if position == key else value for position, value in enumerate(x))


def twice(x: Inputs, x_adv: Inputs) -> Inputs:
    """The rows of a batch and those of one that differs from it in its examples, one after the other.

    >>> twice({"pixel_values": torch.zeros(1, 2), "n": 3}, {"pixel_values": torch.ones(1, 2), "n": 3})
    {'pixel_values': tensor([[0., 0.],
            [1., 1.]]), 'n': 3}
    """
    count = rows(x)
    doubled = each_tensor(x, lambda value: torch.cat([value, value]) if value.ndim and len(value) == count else value)
    return with_examples(doubled, torch.cat([examples(x), examples(x_adv)]))


def real_positions(x: Inputs) -> Tensor | None:
    """Which positions of a sequence are real, booleans (B, L); None where nothing says so."""
    mask = x.get(MASK) if isinstance(x, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) else None


def take(x: Inputs, chosen: slice | Tensor) -> Inputs:
    """Some rows of a batch, by a slice or by their numbers; what has no row for each example stays whole.

    >>> take((torch.arange(3), "same"), slice(1, 3))
    (tensor([1, 2]), 'same')
    """
    if isinstance(x, Tensor):
        return x[chosen]
    count = rows(x)
    return each_tensor(x, lambda value: value[chosen] if value.ndim and len(value) == count else value)


def parts_of(size: int, count: int) -> list[slice]:
    """The rows of `count` contiguous parts, as equal as can be.

    >>> parts_of(10, 3)
    [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
    """
    return [slice(size * i // count, size * (i + 1) // count) for i in range(count)]


def move(x: Inputs, device: torch.device | str) -> Inputs:
    """The batch on a device."""
    return each_tensor(x, lambda value: value.to(device, non_blocking=True))


def each_tensor(x: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The batch with every tensor changed."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, Mapping):
        return {name: change(value) if isinstance(value, Tensor) else value for name, value in x.items()}
    return tuple(change(value) if isinstance(value, Tensor) else value for value in x)


def count_classes(network: nn.Module, example: Tensor) -> int:
    """How many logits the network gives.

    Raises:
        ConfigError: what it gives are not finite logits (B, C).
    """
    shape = tuple(example.shape[1:])
    try:
        with torch.no_grad():
            logits: Any = network(example)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise ConfigError(f"the network does not take images of shape {shape}: {reason}") from error
    if not isinstance(logits, Tensor):
        raise ConfigError(
            f"the network gives a {type(logits).__name__}, not logits (B, C); wrap it in a module that returns them"
        )
    if not logits.is_floating_point():
        raise ConfigError(f"the network gives {logits.dtype}, predictions perhaps, where its logits are needed")
    if logits.ndim != 2 or len(logits) != len(example) or logits.shape[1] < 2:
        raise ConfigError(
            f"the network gives {tuple(logits.shape)} for {len(example)} images; logits are (B, C), C >= 2"
        )
    if not logits.isfinite().all():
        raise ConfigError("the network's logits are not finite on clean images; its weights have probably diverged")
    return logits.shape[1]
