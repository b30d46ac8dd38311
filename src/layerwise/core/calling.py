"""How a network is called and what it gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from layerwise.errors import ConfigError


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
    if logits.ndim != 2 or len(logits) != len(example) or logits.shape[1] < 2:
        raise ConfigError(
            f"the network gives {tuple(logits.shape)} for {len(example)} images; logits are (B, C), C >= 2"
        )
    if not logits.isfinite().all():
        raise ConfigError("the network's logits are not finite on clean images; its weights have probably diverged")
    return logits.shape[1]
