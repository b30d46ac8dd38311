"""The network as it trains where Fabric has nothing to add: the same weights, and a wrapper that nothing shows of."""

from __future__ import annotations

import importlib

import pytest

from layerwise.core.sites import unwrap
from layerwise.methods import PGD, SLAT
from layerwise.training.bare import Bare, suffices
from layerwise.training.engine import engine
from tests.networks import TinyConv, TinyMLP
from tests.training.fakes import cheap, pictures, same, train, weights


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"clip_norm": 0.1}])
def test_training_without_the_wrapper_is_training_with_it(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    module, found = importlib.import_module("layerwise.training.fit"), []
    for alone in (True, False):
        monkeypatch.setattr(module, "suffices", lambda fabric, settings, alone=alone: alone)
        for method in (PGD(eps=0.1, steps=2, step=0.5), SLAT(sites=["conv1", "bn2"], eta=0.05)):
            net = TinyConv()
            result = train(net, method, cheap(**options), pictures(28))
            found.append((weights(net), [line["loss"] for line in result.history], net._forward_hooks))
    assert all(same(a[0], b[0]) and a[1] == b[1] for a, b in zip(found[:2], found[2:], strict=True))
    assert not any(hooks for *_, hooks in found)


def test_the_wrapper_hides_nothing() -> None:
    net = TinyMLP()
    assert unwrap(Bare(net)) is net
    assert list(Bare(net).parameters()) == list(net.parameters())


@pytest.mark.parametrize(("precision", "alone"), [("32-true", True), ("64-true", False), ("bf16-mixed", False)])
def test_where_fabric_has_nothing_to_add(precision: str, alone: bool) -> None:
    settings = cheap(precision=precision)
    assert suffices(engine(settings), settings) is alone
