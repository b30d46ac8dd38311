"""The references of accelerated training, MART and AWP tested by themselves: special cases, and what they do to single examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.networks import TinyConv, TinyMLP
from tests.reference.awp import Loss, awp
from tests.reference.ckpt import ckpt
from tests.reference.common import mean_loss, pixels
from tests.reference.fgsm import fgsm, fgsm_rs
from tests.reference.fixtures import BATCHES, EPS, LR, UNIFORM, apart, net, same
from tests.reference.free import free
from tests.reference.grad_align import grad_align, misalignment
from tests.reference.mart import example_loss
from tests.reference.nets import Net
from tests.reference.standard import standard
from tests.reference.yopo import yopo


def test_without_its_weight_gradient_alignment_is_fgsm() -> None:
    plain = fgsm(net(TinyMLP), BATCHES, eps=EPS, lr=LR)
    assert apart(grad_align(net(TinyMLP), BATCHES, uniform=UNIFORM, eps=EPS, weight=0.0, lr=LR), plain) < 1e-14
    assert apart(grad_align(net(TinyMLP), BATCHES, uniform=UNIFORM, eps=EPS, lr=LR), plain) > 1e-4
    rs = fgsm_rs(net(TinyMLP), BATCHES, uniform=UNIFORM, eps=EPS, lr=LR)
    on_rs = grad_align(net(TinyMLP), BATCHES, uniform=UNIFORM, starts=UNIFORM, eps=EPS, weight=0.0, lr=LR)
    assert apart(on_rs, rs) < 1e-14


def test_misalignment_goes_from_0_to_2_an_example() -> None:
    g = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    assert misalignment(g, 2 * g).item() == pytest.approx(0)
    assert misalignment(g, -g).item() == pytest.approx(4)
    assert misalignment(g, torch.tensor([[4.0, -3.0], [1.0, 1.0], [1.0, 0.0]])).item() == pytest.approx(2 - 0.5**0.5)


def test_one_replay_of_the_first_batch_is_standard_training() -> None:
    once, delta = free(net(TinyConv), BATCHES[:1], eps=EPS, m=1, lr=LR)
    assert same(once, standard(net(TinyConv), BATCHES[:1], lr=LR))
    assert bool(((delta.abs() == EPS) | (delta == 0)).all())
    twice, _ = free(net(TinyConv), BATCHES[:1], eps=EPS, m=2, lr=LR)
    x, y = BATCHES[0]
    assert apart(twice, standard(once, [(pixels(x + delta), y)], lr=LR)) < 1e-14


def test_checkpoints_of_a_network_that_is_always_right_or_wrong() -> None:
    """The last bias decides: right trains at FGSM-RS's example unless a checkpoint fools, wrong trains clean."""
    ones = [(x, torch.full_like(y, 1)) for x, y in BATCHES]
    for bias, expected in ((1e3, {3}), (-1e3, {0})):
        sure, taken = net(TinyMLP), list[int]()
        with torch.no_grad():
            sure.weights["fc3.bias"][1] = bias
        ckpt(sure, ones, uniform=UNIFORM, eps=EPS, taken=taken, lr=0.0)
        assert set(taken) == expected


def test_one_propagation_of_yopo_is_standard_training_at_its_start() -> None:
    options: dict[str, Any] = {"eps": EPS, "alpha": EPS / 2, "lr": LR}
    moved = [(pixels(x + EPS * u), y) for (x, y), u in zip(BATCHES, UNIFORM, strict=True)]
    one = yopo(net(TinyMLP), BATCHES, uniform=UNIFORM, site="fc1", m=1, **options)
    assert same(one, standard(net(TinyMLP), moved, lr=LR))
    twice = yopo(net(TinyMLP), BATCHES[:1], uniform=UNIFORM[:1], site="fc1", m=1, adjoint_update=True, **options)
    only_first = standard(net(TinyMLP), moved[:1], lr=LR)
    assert all(torch.equal(twice.weights[k], w) == (not k.startswith("fc1")) for k, w in only_first.weights.items())


def test_yopo_at_a_linear_first_layer_takes_the_whole_networks_first_step() -> None:
    """D(p . z)/dx is dL/dx itself at the point where p was taken."""
    zero = [torch.zeros_like(x) for x, _ in BATCHES[:1]]
    options: dict[str, Any] = {"eps": EPS, "alpha": EPS, "lr": LR}
    found = yopo(net(TinyMLP), BATCHES[:1], uniform=zero, site="fc1", m=2, n=1, **options)
    both = standard(net(TinyMLP), BATCHES[:1], lr=LR), fgsm(net(TinyMLP), BATCHES[:1], eps=EPS, lr=LR)
    start = net(TinyMLP)
    for name, w in found.weights.items():
        added = sum((each.weights[name] - start.weights[name] for each in both), start.weights[name])
        torch.testing.assert_close(w, added, rtol=1e-12, atol=1e-14)


def test_mart_is_boosted_cross_entropy_where_both_inputs_agree() -> None:
    z = torch.tensor([2.0, 0.0, -1.0]).double()
    p = z.softmax(0)
    assert example_loss(z, z, 0, 5.0).item() == pytest.approx((-p[0].log() - (1.0001 - p[1]).log()).item())
    sure, unsure = (example_loss(torch.tensor([a, 0.0, 0.0]).double(), z, 0, 5.0).item() for a in (20.0, 0.0))
    assert unsure > sure == pytest.approx(example_loss(z, z, 0, 5.0).item(), abs=1e-6)


def test_awp_without_size_is_its_base_and_with_it_raises_the_loss() -> None:
    seen: list[tuple[float, float]] = []

    def clean(net: Net, x: Tensor, y: Tensor, index: int) -> Loss:
        values: dict[str, float] = {}

        def loss(bn: str) -> Tensor:
            found = mean_loss(net, x, y, bn=bn)
            values[bn] = found.item()
            if bn == "train":
                seen.append((values["frozen"], values["train"]))
            return found

        return loss

    plain = standard(net(TinyConv), BATCHES, lr=LR)
    assert same(awp(net(TinyConv), BATCHES, find=clean, gamma=0.0, lr=LR), plain)
    seen.clear()
    assert apart(awp(net(TinyConv), BATCHES, find=clean, gamma=0.05, lr=LR), plain) > 1e-3
    assert all(after > before for before, after in seen)
