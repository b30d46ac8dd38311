"""Networks of timm and torchvision by their names there: `timm:resnet10t`, `torchvision:vit_b_16`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import nn

from layerwise.errors import ConfigError, did_you_mean


def _timm(timm: ModuleType, name: str) -> Callable[..., nn.Module]:
    if not timm.is_model(name):
        raise ConfigError(f"timm has no network {name!r}; {did_you_mean(name, timm.list_models())}")

    def build(*, num_classes: int, shape: tuple[int, ...], **options: Any) -> nn.Module:
        made: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=shape[0], **options)
        return made

    return build


def _torchvision(torchvision: ModuleType, name: str) -> Callable[..., nn.Module]:
    models = import_module("torchvision.models")
    if name not in models.list_models():
        raise ConfigError(f"torchvision has no network {name!r}; {did_you_mean(name, models.list_models())}")

    def build(*, num_classes: int, **options: Any) -> nn.Module:
        made: nn.Module = models.get_model(name, num_classes=num_classes, **options)
        return made

    return build


LIBRARIES: dict[str, Callable[[ModuleType, str], Callable[..., nn.Module]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
}
"""What makes a builder of a name in a library."""


def from_library(library: str, name: str) -> Callable[..., nn.Module]:
    """What makes a library's network; it takes the library's own options.

    Raises:
        ConfigError: the library is not installed, with the command that installs it, or has no such network.
    """
    try:
        module = import_module(library)
    except ImportError as error:
        raise ConfigError(f"'{library}:{name}' needs {library} ({error}); type pip install {library}") from None
    return LIBRARIES[library](module, name)
