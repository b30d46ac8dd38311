"""Nested state as flat tensors and back, so that checkpoints need no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from layerwise.errors import CheckpointError

STRUCTURE = "structure"
"""The name of the tensor that holds what is not a tensor: JSON, as bytes."""


def flatten(state: Any) -> dict[str, Tensor]:
    """Tensors that `rebuild` makes the same state of.

    Args:
        state: tensors, numbers, texts, booleans and None, in lists, tuples and mappings whose keys are any of these but tensors.

    Raises:
        CheckpointError: it holds something else.

    >>> rebuild(flatten({"lr": 0.1, 3: (torch.ones(2), None)}))
    {'lr': 0.1, 3: (tensor([1., 1.]), None)}
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, list):
            return [plain(v) for v in value]
        if isinstance(value, tuple):
            return {"tuple": [plain(v) for v in value]}
        if isinstance(value, Mapping):
            return {"dict": [[plain(k), plain(v)] for k, v in value.items()]}
        raise CheckpointError(
            f"a checkpoint cannot store a {type(value).__name__}; keep tensors, numbers and texts in the state of optimiser and method"
        )

    structure = json.dumps(plain(state)).encode()
    return {**tensors, STRUCTURE: torch.frombuffer(bytearray(structure), dtype=torch.uint8)}


def rebuild(tensors: Mapping[str, Tensor]) -> Any:
    """The state that was flattened.

    Raises:
        CheckpointError: these are not the tensors of a state.
    """

    def whole(value: Any) -> Any:
        if isinstance(value, list):
            return [whole(v) for v in value]
        if not isinstance(value, dict):
            return value
        ((kind, held),) = value.items()
        if kind == "tensor":
            return tensors[held]
        if kind == "tuple":
            return tuple(whole(v) for v in held)
        return {whole(k): whole(v) for k, v in held}

    try:
        return whole(json.loads(bytes(tensors[STRUCTURE].tolist())))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError("it does not hold the state of a run") from error
