"""Networks of other libraries by name; stand-ins with the interfaces of timm and torchvision, which need another torch."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from layerwise.errors import ConfigError
from layerwise.models import build


def flat(channels: int, num_classes: int, side: int = 8) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, num_classes))


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    timm, torchvision, models = ModuleType("timm"), ModuleType("torchvision"), ModuleType("torchvision.models")

    def create_model(name: str, *, num_classes: int, in_chans: int, **options: Any) -> nn.Module:
        return flat(in_chans, num_classes, **options)

    def get_model(name: str, *, num_classes: int, **options: Any) -> nn.Module:
        return flat(3, num_classes, **options)

    vars(timm).update(create_model=create_model, list_models=lambda: ["flat"], is_model=lambda name: name == "flat")
    vars(models).update(get_model=get_model, list_models=lambda: ["flat"])
    for module in (timm, torchvision, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize(("name", "channels"), [("timm:flat", 1), ("torchvision:flat", 3)])
def test_a_network_of_a_library(name: str, channels: int) -> None:
    network = build(name, trust=True, num_classes=4, shape=(channels, 6, 6), mean=0.5, side=6)
    assert network(torch.rand(2, channels, 6, 6)).shape == (2, 4)
    # What was imported once, because the user typed it, is known to runs that name it.
    assert build(name, num_classes=2, shape=(channels, 8, 8)) is not None


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_what_is_not_there_is_told(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=f"{library} has no network 'flt'; did you mean 'flat'"):
        build(f"{library}:flt", trust=True)
    with pytest.raises(ConfigError, match=f"'{library}:unknown', which would be executed; add --trust"):
        build(f"{library}:unknown")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=f"needs {library} .*; type pip install {library}"):
        build(f"{library}:flat", trust=True)
