"""Every method gives a network that is called by name the weights that it gives the same network called with a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerwise
from layerwise.core.random import Stream
from tests.methods.cases import ROWS, SETTINGS, make, optimizer_of
from tests.networks import TinyResNet, batch


class Network(nn.Module):
    """The same names of modules in both."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.network = TinyResNet(seed).double()


class Plain(Network):
    def forward(self, x: Tensor) -> Any:
        return self.network(x)


class ByName(Network):
    """Called as networks of transformers are: pixels and more by name, logits among other things out."""

    def forward(self, *, scale: Tensor, pixel_values: Tensor, note: str) -> Mapping[str, Any]:
        assert note == "as it is"
        return {"loss": None, "logits": self.network(pixel_values) * scale[:, None]}


def trained(row: str, kind: type[Network]) -> tuple[list[Tensor], dict[str, Tensor]]:
    name = row.partition(" ")[0]
    others: dict[str, Any] = {"sources": [kind(7)], "network": kind(7)}
    method = make(row, **{field: others[field] for field in SETTINGS.get(name, {}) if field in others})
    model, losses = kind(), []
    optimizer = optimizer_of(model)
    for step in range(3):
        pixels, y = batch(4, seed=step)
        x = {"scale": torch.ones(4, dtype=torch.float64), "pixel_values": pixels, "note": "as it is"}
        given = x if kind is ByName else pixels
        losses.append(layerwise.step(method, model, given, y, optimizer, generator=Stream(0, step), parts=2))
    return losses, model.state_dict()


@pytest.mark.parametrize("row", ROWS)
def test_a_network_that_is_called_by_name_gets_the_same_weights(row: str) -> None:
    losses, weights = trained(row, ByName)
    expected, same = trained(row, Plain)
    assert losses == expected
    assert all(torch.equal(value, same[name]) for name, value in weights.items())
