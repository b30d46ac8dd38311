"""Diagnostics that judge: re-assigned layers, images of other networks, radii, and the ratio of eq. 16."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.attacks import FGSMAttack, PGDAttack, ThreatModel
from layerwise.core.random import Source
from layerwise.errors import ConfigError, SiteError
from layerwise.evaluation import evaluate
from layerwise.evaluation.measures import (
    accuracy_over_radius,
    degree_of_adversarialness,
    fgsm,
    layer_reassignment,
    reassigned,
    state_gradient_ratio,
)
from layerwise.evaluation.measures.reassignment import layer_tensors
from tests.networks import TinyConv, TinyMLP, TinyResNet, batch

X, Y = batch(40)


def networks() -> tuple[TinyResNet, TinyResNet]:
    """Two of the same architecture that differ in every parameter and buffer."""
    one, two = TinyResNet(0).double(), TinyResNet(1).double()
    for seed, net in enumerate((one, two)):
        net(batch(16, seed=seed)[0])
    return one.eval(), two.eval()


def logits(network: nn.Module) -> Tensor:
    with torch.no_grad():
        out: Tensor = network(X)
    return out


def test_no_layer_is_the_model_and_all_layers_are_the_other_one() -> None:
    one, two = networks()
    mine, theirs = logits(one), logits(two)
    every = [name for names in layer_tensors(one, X).values() for name in names]
    with reassigned(one, two, []):
        assert torch.equal(logits(one), mine)
    with reassigned(one, two, every):
        assert torch.equal(logits(one), theirs)
    assert torch.equal(logits(one), mine)
    assert torch.equal(logits(two), theirs)


def test_every_tensor_belongs_to_exactly_one_layer_and_batch_norm_to_the_layer_before_it() -> None:
    one, _ = networks()
    groups = layer_tensors(one, X)
    assert sorted(name for names in groups.values() for name in names) == sorted(one.state_dict())
    owner = {name: layer for layer, names in groups.items() for name in names}
    assert owner["blocks.block1.bn2.running_mean"] == "blocks.block1.conv1"
    assert owner["blocks.block2.bn1.running_mean"] == "blocks.block1.conv2"
    assert owner["bn.weight"] == "blocks.block4.conv2"
    assert owner["fc.bias"] == "fc"
    assert list(groups)[:2] == ["conv1", "blocks.block1.conv1"]


def test_what_comes_before_the_first_layer_and_what_is_never_called_belong_somewhere() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    net.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    net[1].add_module("never", nn.Linear(1, 1))
    groups = layer_tensors(net, torch.rand(2, 3))
    assert set(groups["1"]) == set(net.state_dict())


def test_one_layer_after_the_other_is_replaced() -> None:
    one, two = networks()
    found = layer_reassignment(one, two, X, Y, measure=lambda network, x, y: float(network(x).sum().sigmoid()))
    assert found.sites == tuple(layer_tensors(one, X))
    for layer, names in layer_tensors(one, X).items():
        mixed = copy.deepcopy(one)
        mixed.load_state_dict(one.state_dict() | {name: two.state_dict()[name] for name in names})
        assert found.accuracies[found.sites.index(layer)] == float(logits(mixed).sum().sigmoid())
    assert found.original == float(logits(one).sum().sigmoid())
    assert found.other == float(logits(two).sum().sigmoid())


def test_the_default_measure_is_clean_accuracy_and_layers_can_be_whole_blocks() -> None:
    one, two = networks()
    found = layer_reassignment(one, two, X, Y, layers=["blocks", "fc"])
    mixed = copy.deepcopy(one)
    mixed.blocks.load_state_dict(two.blocks.state_dict())
    expected = [float((logits(net).argmax(1) == Y).double().mean()) for net in (mixed, one, two)]
    assert found.sites == ("blocks", "fc")
    assert [found.accuracies[0], found.original, found.other] == expected


def test_weights_come_back_after_an_error() -> None:
    one, two = networks()
    mine = logits(one)
    calls = 0

    def measure(network: nn.Module, x: Tensor, y: Tensor) -> float:
        nonlocal calls
        calls += 1
        return 1 / (3 - calls)

    with pytest.raises(ZeroDivisionError):
        layer_reassignment(one, two, X, Y, measure=measure)
    assert torch.equal(logits(one), mine)


def test_only_alike_networks_and_layers_that_exist() -> None:
    one, two = networks()
    with pytest.raises(ConfigError, match=r"differ at 'bn1.weight': absent and \(6,\)"):
        layer_reassignment(TinyConv(batch_norm=False).double(), TinyConv().double(), X, Y)
    with pytest.raises(ConfigError, match="no layer 'block' with weights; did you mean"):
        layer_reassignment(one, two, X, Y, layers=["block"])
    with pytest.raises(ConfigError, match="no convolution and no linear layer"):
        layer_reassignment(nn.Flatten(), nn.Flatten(), X, Y)


def learnt(seed: int) -> nn.Module:
    """A network that has learnt the pictures, so that attacks have something to break."""
    network = TinyMLP(seed).double()
    x, y = batch(200, seed=9)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(30):
        optimiser.zero_grad()
        torch.autograd.backward(F.cross_entropy(network(x), y))
        optimiser.step()
    return network.eval()


def test_images_made_on_the_judge_itself_are_those_of_fgsm() -> None:
    one, two = learnt(0), learnt(1)
    radii = (0.0, 0.05, 0.15)
    found = degree_of_adversarialness(one, {"itself": one, "other": two}, X, Y, radii=radii)
    for name, maker in (("itself", one), ("other", two)):
        images = [FGSMAttack()(maker, X, Y, ThreatModel(eps=eps)) for eps in radii]
        expected = [float((one(x).argmax(1) == Y).double().mean()) for x in images]
        assert found.accuracies[name] == tuple(expected)
    assert (found.radii, found.images) == (radii, 40)
    assert found.accuracies["itself"] < found.accuracies["other"]


def test_a_judge_needs_something_to_judge() -> None:
    one, _ = networks()
    with pytest.raises(ConfigError, match="at least one network"):
        degree_of_adversarialness(one, {}, X, Y)
    with pytest.raises(ConfigError, match="type radii=8/255"):
        degree_of_adversarialness(one, {"it": one}, X, Y, radii=[8])


def test_accuracy_over_radius_agrees_with_evaluate() -> None:
    one = learnt(0)
    found = accuracy_over_radius(one, X, Y, fgsm, radii=[0.15, 0.0, 0.05])
    assert found.radii == (0.0, 0.05, 0.15)
    for eps, count in zip(found.radii, found.counts, strict=True):
        judged = evaluate(one, (X, Y), threat=ThreatModel(eps=eps), attacks=[FGSMAttack()], progress=False)
        assert count == judged["fgsm"].count
    assert found.counts[0].correct > found.counts[1].correct > found.counts[2].correct


def test_an_attack_of_the_evaluation_is_an_attack_here() -> None:
    one, attack = learnt(0), PGDAttack(steps=3, restarts=1)
    found = accuracy_over_radius(
        one, X, Y, lambda m, x, y, eps, s: attack(m, x, y, ThreatModel(eps=eps), generator=s), radii=[0.0, 0.15]
    )
    assert found.counts[1].correct < found.counts[0].correct


def test_at_radius_zero_no_attack_is_made() -> None:
    one, _ = networks()
    asked: list[float] = []

    def attack(network: nn.Module, x: Tensor, y: Tensor, eps: float, source: Source) -> Tensor:
        asked.append(eps)
        return fgsm(network, x, y, eps, source)

    accuracy_over_radius(one, X, Y, attack, radii=[0, 0.1])
    assert asked == [0.1]
    with pytest.raises(ConfigError, match="not negative"):
        accuracy_over_radius(one, X, Y, attack, radii=[-0.1])


def test_the_ratio_is_eq_16_by_hand() -> None:
    one, _ = networks()
    state = one.conv1(X).detach().requires_grad_()
    first = one.blocks[0](state)
    h = one.blocks[1:](first)
    out = one.fc(torch.relu(one.bn(h)).mean((2, 3)))
    (g,) = torch.autograd.grad(F.cross_entropy(out, Y, reduction="sum") / 32, state)
    found = state_gradient_ratio(one, X, Y, reference_batch=32, batch_size=40)
    assert found.ratio == pytest.approx(
        float(torch.linalg.vector_norm(first.detach()) / torch.linalg.vector_norm(g)), rel=1e-6
    )
    assert found.ratios == (found.ratio,)
    assert len(state_gradient_ratio(one, X, Y, batch_size=16).ratios) == 3


def test_the_ratio_needs_residual_blocks() -> None:
    with pytest.raises(SiteError, match="no block states"):
        state_gradient_ratio(TinyMLP().double(), X, Y)
