from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from layerwise.errors import ConfigError
from layerwise.training import SGD, Adam, AdamW, Optimizer, Training
from tests.networks import TinyConv

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (SGD(lr=0.1), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}),
        (
            SGD(lr=0.1, nesterov=True),
            torch.optim.SGD,
            {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
        ),
        (Adam(lr=0.01), torch.optim.Adam, {"lr": 0.01}),
        (AdamW(lr=0.01, weight_decay=0.1), torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    ],
)
def test_each_is_pytorch_s(ours: Optimizer, theirs: Any, options: dict[str, Any]) -> None:
    nets = [nn.Linear(3, 2, dtype=torch.float64) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [ours.build(nets[0].parameters(), CPU), theirs(nets[1].parameters(), **options)]
    for step in range(3):
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            net(torch.full((1, 3), step + 1.0, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(nets[0].weight, nets[1].weight, rtol=0, atol=1e-12)


def test_the_rate_is_a_tensor_that_is_filled_in_place() -> None:
    net = nn.Linear(1, 1)
    optimizer = SGD(lr=0.1, momentum=0, weight_decay=0).build(net.parameters(), CPU)
    optimizer.param_groups[0]["lr"].fill_(0.0)
    before = net.weight.clone()
    net(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert torch.equal(net.weight, before)


def test_weight_decay_can_spare_norms_and_biases() -> None:
    net = TinyConv()
    everywhere = SGD().build(net.parameters(), CPU)
    assert [g["weight_decay"] for g in everywhere.param_groups] == [5e-4]
    spared = SGD(decay_norms=False).build(net.parameters(), CPU)
    found = {g["weight_decay"]: {p.ndim for p in g["params"]} for g in spared.param_groups}
    assert found == {5e-4: {2, 4}, 0.0: {1}}


def test_a_network_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match="no trainable parameter"):
        SGD().build(nn.Linear(1, 1).requires_grad_(False).parameters(), CPU)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(lr=-1), "lr=-1 is too small"),
        (lambda: Adam(lr=float("nan")), "lr=nan is too small"),
        (lambda: SGD(nesterov=True, momentum=0), "nesterov=True needs momentum"),
        (lambda: Training(epochs=0), "epochs=0 is too small"),
        (lambda: Training(accumulate=200), "accumulate=200 cuts a batch of 128 into nothing"),
        (lambda: Training(clip_norm=0), "clip_norm=0 is not a norm"),
        (lambda: Training(ema_decay=1.0), "ema_decay=1.0 is not a decay"),
        (lambda: Training(checkpoint_every=0), "checkpoint_every=0 is not a time"),
        (
            lambda: Training(precision="16-mixed"),  # type: ignore[arg-type]
            "precision='16-mixed' is unknown; type one of '32-true', 'bf16-mixed'",
        ),
        (lambda: Training(eval_step=-1), "eval_step=-1 is too small; type a number of at least 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1)},
            r"^optimizer is a torch.optim.sgd.SGD; give settings .*, optimizer=layerwise.training.SGD\(lr=0.1\)$",
        ),
        ({"optimizer": torch.optim.SGD}, r"^optimizer is a torch.optim.sgd.SGD; give settings"),
        ({"schedule": "cosine"}, r"^schedule is 'cosine'; give settings .*, schedule=layerwise.training.Cosine\(\)$"),
    ],
)
def test_torchs_own_objects_are_told_from_settings(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Training(**given)


def test_a_weight_that_is_used_late_trains_under_fused_momentum() -> None:
    """Torch's fused SGD fails where some weights have momentum and some have none yet: blocks that are left out at random."""
    late, early = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SGD(lr=0.1, momentum=0.9, weight_decay=0.0).build([early, late], torch.device("cpu"))
    early.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(late, torch.ones(2))
    late.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(late.detach(), torch.full((2,), 0.9))
    torch.testing.assert_close(early.detach(), torch.full((2,), 1 - 0.1 - 0.19))
