"""The odd networks, and the functional ones against the modules that they follow."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.networks import NETWORKS, Checkpointed, TinyConv, TinyMLP, TinyResNet, batch
from tests.reference.common import gradients, mean_loss
from tests.reference.fixtures import BATCHES, LR, X, Y, net, same
from tests.reference.nets import Net
from tests.reference.standard import standard

TWINS: dict[str, Callable[[], nn.Module]] = {
    "mlp": TinyMLP,
    "conv": TinyConv,
    "conv without batch norm": lambda: TinyConv(batch_norm=False),
    "resnet": TinyResNet,
    "resnet without batch norm": lambda: TinyResNet(batch_norm=False),
}


def test_nothing_here_imports_the_package() -> None:
    here = Path(__file__).parent
    files = [here.parent / "networks.py", *here.glob("*.py")]
    assert len(files) > 10
    assert [f.name for f in files if re.search(r"^\s*(from|import) layerwise", f.read_text(), re.M)] == []


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: str(network.__name__))
def test_networks_repeat_and_run_in_both_precisions(network: type[nn.Module]) -> None:
    for dtype in (torch.float32, torch.float64):
        first, again, other = network().to(dtype), network().to(dtype), network(1).to(dtype)
        x, _ = batch(4, dtype=dtype)
        assert first(x).shape == (4, 5)
        assert first(x).dtype == dtype
        assert torch.equal(network().to(dtype)(x), again(x))
        assert not torch.equal(other(x), again(x))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_nothing_without_noise(use_reentrant: bool) -> None:
    found = []
    for module in (Checkpointed(use_reentrant=use_reentrant).double(), Checkpointed(enabled=False).double()):
        torch.autograd.backward(nn.functional.cross_entropy(module(X), Y))
        found.append([p.grad for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None and b is not None)
    assert all(g is not None for grads in found for g in grads)


@pytest.mark.parametrize("twin", TWINS)
def test_training_equals_the_module_under_torch_sgd(twin: str) -> None:
    module = TWINS[twin]().double()
    ours = standard(Net.of(module), BATCHES, lr=LR, momentum=0.9, weight_decay=0.01)
    assert ours.distance(module) > 1e-2
    optimiser = torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9, weight_decay=0.01)
    for x, y in BATCHES:
        optimiser.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(module(x), y))
        optimiser.step()
    assert ours.distance(module) < 1e-12
    module.eval()
    assert torch.allclose(ours.logits(X, bn="eval"), module(X), atol=1e-12)


def test_frozen_statistics_normalise_by_the_batch_and_do_not_move() -> None:
    reference = net(TinyConv)
    before = reference.clone()
    frozen = reference.logits(X, bn="frozen")
    assert same(reference, before)
    assert torch.equal(frozen, reference.logits(X, bn="train"))
    assert not same(reference, before)
    assert not torch.allclose(frozen, reference.logits(X, bn="eval"), atol=1e-3)


def test_weights_copied_out_and_in_are_the_same() -> None:
    trained = standard(net(TinyConv), BATCHES, lr=LR)
    module = TinyConv(1).double()
    assert trained.distance(module) > 1e-2
    trained.copy_to(module)
    assert trained.distance(module) == 0
    assert same(Net.of(module), trained)


def test_gradient_at_a_site_is_that_of_its_noise_and_of_each_examples_own_loss() -> None:
    reference = net(TinyConv, batch_norm=False)
    g = gradients(reference, X, Y, ["conv1"])["conv1"]
    v = torch.randn(g.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rise = [mean_loss(reference, X, Y, {"conv1": h * v}).item() * len(X) for h in (1e-5, -1e-5)]
    assert (rise[0] - rise[1]) / 2e-5 == pytest.approx(float((g * v).sum()), rel=1e-6)
    alone = gradients(reference, X[2:3], Y[2:3], ["conv1"])["conv1"]
    assert torch.allclose(g[2:3], alone, atol=1e-14)
