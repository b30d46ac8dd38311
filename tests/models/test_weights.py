"""Weights from elsewhere: wherever a checkpoint holds them, under whatever parts in front of the names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerwise as lw
from layerwise.errors import CheckpointError
from layerwise.models.weights import pack_tensors
from layerwise.training.run import put_weights
from tests.networks import TinyConv

State = dict[str, Tensor]


def state() -> State:
    return TinyConv(seed=3).state_dict()


def prefixed(start: str) -> State:
    return {start + name: value for name, value in state().items()}


FORMS: dict[str, Callable[[], Any]] = {
    "bare": state,
    "of DataParallel": lambda: prefixed("module."),
    "of RobustBench": lambda: {"state_dict": prefixed("module."), "epoch": 3},
    "of Lightning": lambda: {"state_dict": prefixed("model._orig_mod."), "global_step": 5},
    "of a script": lambda: {"net": state(), "acc": 0.5},
    "without counts": lambda: {k: v for k, v in state().items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalized", [False, True])
def test_weights_of_others(form: str, normalized: bool, tmp_path: Path) -> None:
    torch.save(FORMS[form](), tmp_path / "w.pt")
    inner = TinyConv(seed=0)
    model = lw.Normalized(inner, mean=0.5, std=0.25) if normalized else inner
    assert lw.load_weights(model, tmp_path / "w.pt") is model
    assert all(torch.equal(value, inner.state_dict()[name]) for name, value in state().items())


def test_safetensors_and_a_wrapped_network(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(pack_tensors(prefixed("module.")))
    model = nn.DataParallel(TinyConv(seed=0))
    lw.load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(value, model.module.state_dict()[name]) for name, value in state().items())


def changed(name: str, value: Tensor | None) -> State:
    found = {**state(), name: torch.zeros(1)}
    return {k: v for k, v in found.items() if k != name} if value is None else {**found, name: value}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (changed("fc.weight", None), "w.pt lacks 'fc.weight': these are the weights of another network"),
        (changed("fc.more", torch.zeros(1)), "w.pt has beside the network's 'fc.more'"),
        (changed("fc.weight", torch.zeros(2, 2)), "w.pt has in another shape 'fc.weight'"),
        ({"epoch": 3}, "holds no weights: no mapping of names to tensors, by itself or under state_dict"),
        ({"state_dict": nn.Linear(1, 1)}, "cannot be read .*give safetensors, or a file of tensors alone"),
    ],
)
def test_weights_of_another_network_are_refused(value: Any, message: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "w.pt")
    model = TinyConv(seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        lw.load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_codes_of_a_quantised_network_are_no_weights(tmp_path: Path, kind: torch.dtype) -> None:
    weights = {k: v.to(kind) if k == "fc.weight" else v for k, v in state().items()}
    (tmp_path / "w.safetensors").write_bytes(pack_tensors(weights))
    net = TinyConv()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"^w.safetensors has in codes, as a quantised network, 'fc.weight'"):
        lw.load_weights(net, tmp_path / "w.safetensors")
    with pytest.raises(
        CheckpointError, match=rf"'fc.weight' holds {kind} numbers, as a quantised network has, the network's"
    ):
        put_weights(net, weights, where="w")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    for wider in (torch.float16, torch.bfloat16, torch.float64):
        wide = {k: v.to(wider) if v.is_floating_point() else v for k, v in state().items()}
        (tmp_path / "w.safetensors").write_bytes(pack_tensors(wide))
        lw.load_weights(net, tmp_path / "w.safetensors")
