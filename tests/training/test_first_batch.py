"""What would fail late, or never be told, is told before the first step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerwise.errors import ConfigError
from layerwise.methods import FGSM, LAT, Method, Standard
from layerwise.training import Phase
from tests.networks import AuxiliaryHead, TinyConv, TinyMLP
from tests.training.fakes import Scripted, cheap, pictures, train


class Flat(nn.Sequential):
    """Statistics of a batch at a place without space, where one image has none."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5))


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (41, {}, r"^41 training images in batches of 8 .* batch statistics of '2': set training.drop_last=true$"),
        (41, {"max_steps": 6}, r"set training.drop_last=true$"),
        (40, {"batch_size": 1}, r"batches of 1 come down to a pass of one image.*: take fewer micro-batches or larger"),
        (40, {"accumulate": 8}, r"^40 training images in batches of 8 .*: take fewer micro-batches or larger batches$"),
        (41, {"accumulate": 8}, r"take fewer micro-batches or larger batches$"),
        (42, {"accumulate": 2}, r"set training.drop_last=true$"),
    ],
)
def test_a_pass_of_one_image_is_foreseen(images: int, options: dict[str, Any], message: str) -> None:
    method = Scripted()
    with pytest.raises(ConfigError, match=message):
        train(Flat(), method, cheap(**options), pictures(images))
    assert method.calls == 0


@pytest.mark.parametrize(
    ("net", "images", "options"),
    [
        (Flat, 41, {"drop_last": True}),
        (Flat, 41, {"max_steps": 5}),
        (Flat, 40, {}),
        (Flat, 42, {}),
        (TinyConv, 41, {}),
        (TinyMLP, 41, {"batch_size": 1, "max_steps": 2}),
    ],
)
def test_where_none_comes_or_one_is_enough_it_trains(net: Any, images: int, options: dict[str, Any]) -> None:
    assert train(net(), Standard(), cheap(epochs=1, **options), pictures(images)).steps > 0


def test_what_validation_could_not_attack_is_told_before_an_epoch_is_lost() -> None:
    class Cut(TinyMLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach())

    method = Scripted()
    with pytest.raises(ConfigError, match=r"^no gradient flows from the network's output to its input"):
        train(Cut(), method, cheap(eval_every=1))
    assert method.calls == 0
    assert train(Cut(), method, cheap(eval_every=1, eval_steps=0)).steps == method.calls


def test_what_is_suspected_is_told_once_whatever_the_phases() -> None:
    net = nn.Sequential(TinyMLP(), nn.Softmax(1))
    phases = [Phase(epochs=1), Phase(epochs=1, method=FGSM())]
    found = train(net, Standard(), cheap(), phases=phases)
    assert [m for m in found.messages if "look like probabilities" in m] == [found.messages[0]]


@pytest.mark.parametrize("method", [Standard, FGSM, lambda: LAT(sites=["relu#0"])])
def test_a_network_with_an_auxiliary_head_trains(method: Any) -> None:
    one: Method = method()
    found = train(AuxiliaryHead(), one, cheap(eval_every=1, epochs=3))
    assert found.history[-1]["clean"] >= 0
    assert torch.tensor([line["loss"] for line in found.history]).isfinite().all()
