"""Fixed networks that a method looks at beside the one that it trains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, final

import torch
from torch import nn

from layerwise.core.calling import Inputs, examples
from layerwise.errors import ConfigError
from layerwise.methods.base import Method

M = TypeVar("M", bound=Method)

NETWORKS = {"networks": True}
"""Metadata of a method's field that holds networks: modules in Python, in a recipe the runs and recipes that they come from."""


@final
class Sources:
    """Copies of networks in evaluation mode, without gradients, of the type and on the device of the batch.

    The networks that are given stay as they are, and belong to no checkpoint.

    Args:
        networks: modules that take what the trained network takes.
        where: the field that they come from, for messages.
    """

    def __init__(self, networks: Sequence[Any], *, where: str) -> None:
        self._given, self._where = networks, where
        self._ready: list[nn.Module] = []
        self._kind: tuple[torch.device, torch.dtype] | None = None

    def like(self, x: Inputs) -> list[nn.Module]:
        """The copies, ready for a batch.

        Raises:
            ConfigError: what was given is no network.
        """
        kind = (examples(x).device, examples(x).dtype)
        if self._kind != kind:
            self._ready = [self._copied(network).to(*kind) for network in self._given]
            self._kind = kind
        return self._ready

    def _copied(self, network: Any) -> nn.Module:
        if not isinstance(network, nn.Module):
            raise ConfigError(
                f"{self._where} holds {network!r}, which is no network; give a torch.nn.Module, or name the run in a recipe"
            )
        return copy.deepcopy(network).eval().requires_grad_(False)


def with_networks(method: M, find: Callable[[str], nn.Module]) -> M:
    """The method, and those inside it, with networks in place of the names that its fields hold (see `NETWORKS`).

    Args:
        method: stays as it is.
        find: the network of a name.
    """
    assert is_dataclass(method)
    changes: dict[str, Any] = {}
    for f in fields(method):
        value = getattr(method, f.name)
        if isinstance(value, Method):
            changes[f.name] = with_networks(value, find)
        elif f.metadata.get("networks"):
            changes[f.name] = [_found(v, find) for v in value] if isinstance(value, list) else _found(value, find)
    return replace(method, **changes) if changes else method


def _found(value: Any, find: Callable[[str], nn.Module]) -> Any:
    return find(value) if isinstance(value, str) else value
