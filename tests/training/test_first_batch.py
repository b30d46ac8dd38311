"""What would fail late, or never be told, is told before the first step."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerwise.core.probe import Probe
from layerwise.errors import ConfigError
from layerwise.methods import ANP, FGSM, LAD, LAT, SLAT, FreeAT, Method, Standard
from layerwise.training import Phase
from tests.methods.cases import unchecked
from tests.networks import AuxiliaryHead, TinyConv, TinyMLP
from tests.training.fakes import Scripted, cheap, pictures, same, train, weights


class Flat(nn.Sequential):
    """Statistics of a batch at a place without space, where one image has none."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5))


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (40, {"batch_size": 1}, r"batches of 1 come down to a pass of one image.*: take fewer micro-batches or larger"),
        (40, {"accumulate": 8}, r"^40 training images in batches of 8 .*: take fewer micro-batches or larger batches$"),
        (41, {"accumulate": 8}, r"take fewer micro-batches or larger batches$"),
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


@pytest.mark.parametrize(
    ("images", "options", "sizes"),
    [
        (41, {}, [8, 8, 8, 8, 9]),
        (41, {"drop_last": True}, [8] * 5),
        (42, {"accumulate": 2}, [4] * 8 + [5, 5]),
        (42, {}, [8] * 5 + [2]),
        (9, {}, [9]),
    ],
)
def test_a_last_batch_too_small_for_batch_norm_is_joined_to_the_one_before(
    images: int, options: dict[str, Any], sizes: list[int]
) -> None:
    net, seen = Flat(), list[int]()
    net[2].register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    found = train(net, unchecked(Scripted()), cheap(epochs=1, **options), pictures(images))
    assert seen[-len(sizes) :] == sizes
    joined = sum(sizes) == images and max(sizes) * (options.get("accumulate", 1)) > 8
    assert found.steps == len(sizes) // options.get("accumulate", 1)
    assert any("belong to the batch before them" in message for message in found.messages) == joined


@pytest.mark.parametrize(
    "method",
    [
        lambda: FGSM(eps=0.1),
        lambda: LAT(sites=["1"]),
        lambda: ANP(k=2, layers=1),
        lambda: FreeAT(m=2, eps=0.1),
        lambda: LAD(base=FGSM(eps=0.1), sites=["1"], eta=1.0, probe=Probe(batch_norm="eval")),
        lambda: SLAT(sites=["1"], base=FGSM(eps=0.1, probe=Probe(batch_norm="eval"))),
    ],
    ids=["FGSM", "LAT", "ANP", "FreeAT", "LAD", "SLAT"],
)
def test_joined_batches_train_and_a_run_goes_on_in_the_midst_of_them(method: Any, tmp_path: Path) -> None:
    """An epoch is five batches of 8, 8, 8, 8 and 9; the run is broken off in the last of the second epoch."""
    settings, data = cheap(epochs=3, checkpoint_every=0.2), pictures(41)

    def run(net: Flat, **options: Any) -> list[int]:
        seen: list[int] = []

        def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.append(len(args[0]))
            if options.get("breaks") and seen.count(9) == options["breaks"]:
                raise KeyboardInterrupt

        net[2].register_forward_pre_hook(note)
        train(net, method(), settings, data, run=tmp_path / options["run"], resume=True)
        return seen

    whole = Flat()
    halves, again = copy.deepcopy(whole), copy.deepcopy(whole)
    sizes = run(whole, run="whole")
    assert {8, 9} <= set(sizes)
    with pytest.raises(KeyboardInterrupt):
        run(halves, run="halves", breaks=sizes.count(9) // 3 + 1)
    assert 9 in run(again, run="halves")
    assert same(weights(whole), weights(again))


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
