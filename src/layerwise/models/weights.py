"""Weights as safetensors: no pickle, nothing in them can run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from layerwise.errors import CheckpointError


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as safetensors; each its own copy, since the format takes neither shared nor strided memory."""
    from safetensors.torch import save

    own = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    data: bytes = save(own)
    return data


def unpack_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(path.read_bytes())
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"the weights {path} cannot be read ({error})") from error
    return tensors
