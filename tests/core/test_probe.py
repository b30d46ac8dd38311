"""A probe gives each example's own gradients and leaves nothing behind: no flag, no gradient, no statistic."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.modes import BatchNormMode, frozen
from layerwise.core.probe import Probe
from layerwise.core.sites import Sites
from layerwise.core.tracing import Site
from layerwise.errors import SiteError
from layerwise.methods.pgd import divergence
from tests.networks import Checkpointed, DeadBranch, TinyConv, TinyMLP, batch

X, Y = batch(4)
CE = CrossEntropy()
FC1 = Site("fc1")


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_gradients_are_those_of_each_examples_own_loss() -> None:
    model = TinyMLP().double()
    sites = Sites(model, ["fc1"], example=X)
    g_x, g = Probe()(model, X, Y, criterion=CE, sites=sites, wrt_input=True)
    for i in range(4):
        x = X[i : i + 1].clone().requires_grad_()
        hidden = model.fc1(x.flatten(1))
        logits = model.fc3(torch.relu(model.fc2(torch.relu(hidden))))
        own_x, own_h = torch.autograd.grad(F.cross_entropy(logits, Y[i : i + 1]), [x, hidden])
        torch.testing.assert_close(g_x[i : i + 1], own_x, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(g[FC1][i : i + 1], own_h, rtol=1e-12, atol=1e-15)


def test_gradients_at_noise_are_those_at_the_perturbed_pass() -> None:
    model = TinyMLP().double()
    sites = Sites(model, ["fc1"], example=X)
    r = torch.ones(4, 16).double()
    _, found = Probe()(model, X, Y, criterion=CE, sites=sites, noise={FC1: r}, constraint=lambda r, z: r / 2)
    hidden = (model.fc1(X.flatten(1)) + r / 2).detach().requires_grad_()
    loss = F.cross_entropy(model.fc3(torch.relu(model.fc2(torch.relu(hidden)))), Y, reduction="sum")
    torch.testing.assert_close(found[FC1], torch.autograd.grad(loss, hidden)[0], rtol=1e-12, atol=1e-15)


def test_without_the_input_its_gradient_is_zero_and_takes_no_memory() -> None:
    model = TinyMLP().double()
    g_x, g = Probe()(model, X, Y, criterion=CE, sites=Sites(model, ["fc1"], example=X))
    assert g_x.shape == X.shape
    assert not g_x.any()
    assert g_x.untyped_storage().nbytes() == 8
    assert list(g) == [FC1]


def test_without_sites_only_the_input_is_recorded() -> None:
    g_x, g = Probe()(TinyMLP().double(), X, Y, criterion=CE, wrt_input=True)
    assert bool(g_x.any())
    assert g == {}
    assert not g_x.requires_grad
    assert not X.requires_grad


def test_its_own_criterion_goes_before_the_descents() -> None:
    model = TinyMLP().double()

    def found(probe: Probe, criterion: CrossEntropy) -> Tensor:
        return probe(model, X, Y, criterion=criterion, wrt_input=True)[0]

    smooth = CrossEntropy(label_smoothing=0.3)
    assert torch.equal(found(Probe(criterion=smooth), CE), found(Probe(), smooth))
    assert not torch.equal(found(Probe(), CE), found(Probe(), smooth))


def test_label_smoothing_is_a_mixture_with_the_uniform_target() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_p = logits.log_softmax(1)
    expected = -0.9 * log_p[torch.arange(4), Y] - 0.1 * log_p.mean(1)
    torch.testing.assert_close(CrossEntropy(label_smoothing=0.1)(logits, Y), expected)


@pytest.mark.parametrize("mode", ["batch", "train", "eval"])
def test_a_probe_leaves_weights_flags_and_gradients_alone(mode: BatchNormMode) -> None:
    model = TinyConv().double()
    model.conv1.weight.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    flags, before = [p.requires_grad for p in model.parameters()], state(model)
    sites = Sites(model, ["bn1"], example=X)
    Probe(batch_norm=mode)(model, X, Y, criterion=CE, sites=sites, wrt_input=True)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["fc.weight"]
    assert bool((model.fc.weight.grad == 1).all())
    moved = [k for k, v in state(model).items() if not torch.equal(v, before[k])]
    assert bool(moved) == (mode == "train")
    assert all(m.training for m in model.modules())


def test_the_flags_come_back_also_after_an_error() -> None:
    model = TinyMLP().double()
    model.fc2.bias.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    with frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
    with pytest.raises(ZeroDivisionError), frozen(model):
        raise ZeroDivisionError
    assert [p.requires_grad for p in model.parameters()] == flags


def test_the_engine_is_asked_for_the_leaves_only() -> None:
    calls: list[tuple[Tensor, list[Tensor]]] = []
    model = TinyMLP().double()
    sites = Sites(model, ["fc1", "fc2"], example=X)

    def backward(loss: Tensor, /, *, inputs: Any = None) -> None:
        calls.append((loss, inputs))
        torch.autograd.backward(loss, inputs=inputs)

    Probe()(model, X, Y, criterion=CE, sites=sites, wrt_input=True, step=Step(backward))
    [(loss, inputs)] = calls
    assert loss.shape == ()
    assert [tuple(leaf.shape) for leaf in inputs] == [(4, 3, 8, 8), (4, 16), (4, 12)]


def test_a_probe_of_a_dead_site_alone_says_so() -> None:
    model = DeadBranch().double()
    with pytest.raises(SiteError, match=r"^site 'dead' is dead"):
        Probe()(model, X, Y, criterion=CE, sites=Sites(model, ["dead"], example=X))


def test_a_probe_that_reaches_no_site_says_so() -> None:
    """What happens when the model was compiled before its sites were attached."""
    model, other = TinyMLP().double(), TinyMLP().double()
    with pytest.raises(SiteError, match=r"^site 'fc1' was not reached in this pass: .*attach first, then compile"):
        Probe()(other, X, Y, criterion=CE, sites=Sites(model, ["fc1"], example=X))


def test_a_network_without_gradient_is_an_error_not_a_zero_gradient() -> None:
    model = TinyMLP().double()
    cut = nn.Sequential(model, nn.Identity())
    cut[1].register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(RuntimeError, match="does not require grad"):
        Probe()(cut, X, Y, criterion=CE, wrt_input=True)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch's, in any pass without gradient
def test_a_reentrant_checkpoint_is_refused_and_the_message_names_the_way_out() -> None:
    model = Checkpointed(use_reentrant=True).double()
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        Probe()(model, X, Y, criterion=CE, wrt_input=True)
    with pytest.raises(SiteError, match="checkpoint with use_reentrant=False"):
        Probe()(model, X, Y, criterion=CE, sites=Sites(model, ["block.conv2"], example=X))


def test_a_probe_under_autocast_gives_float32() -> None:
    model, x = TinyConv(), X.float()
    with torch.autocast("cpu", torch.bfloat16):
        g_x, g = Probe()(model, x, Y, criterion=CE, sites=Sites(model, ["conv1"], example=x), wrt_input=True)
    assert {g_x.dtype, g[Site("conv1")].dtype} == {torch.float32}


@pytest.mark.parametrize("mode", ["batch", "eval"])
def test_probes_inside_one_freezing_find_the_same(mode: BatchNormMode) -> None:
    model, probe = TinyConv().double(), Probe(batch_norm=mode)
    model.conv1.weight.requires_grad_(False)
    alone, _ = probe(model, X, Y, criterion=CE, wrt_input=True)
    before = state(model)
    with suppress(KeyError), probe.around(model):
        found = [probe(model, X, Y, criterion=CE, wrt_input=True)[0] for _ in range(2)]
        assert not any(p.requires_grad for p in model.parameters())
        assert model.bn2.training is (mode == "batch")
        assert bool(model.bn2.track_running_stats) is (mode == "eval")
        raise KeyError
    assert all(torch.equal(g, alone) for g in found)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["conv1.weight"]
    assert model.bn2.training
    assert model.bn2.track_running_stats
    assert all(torch.equal(before[k], v) for k, v in state(model).items())


@pytest.mark.parametrize("outer", ["batch", "eval"])
@pytest.mark.parametrize("mode", ["batch", "train", "eval"])
def test_a_probe_inside_another_has_its_own_batch_norm_mode(mode: BatchNormMode, outer: BatchNormMode) -> None:
    """And no running statistics move, since outside they rest."""
    model, probe = TinyConv().double(), Probe(batch_norm=mode)
    before = state(model)
    with Probe(batch_norm=outer).around(model):
        found, _ = probe(model, X, Y, criterion=CE, wrt_input=True)
        after, _ = Probe(batch_norm=outer)(model, X, Y, criterion=CE, wrt_input=True)
    assert all(torch.equal(before[k], v) for k, v in state(model).items())
    assert torch.equal(after, Probe(batch_norm=outer)(model, X, Y, criterion=CE, wrt_input=True)[0])
    assert torch.equal(found, probe(model, X, Y, criterion=CE, wrt_input=True)[0])


@pytest.mark.parametrize("criterion", [CE, CrossEntropy(label_smoothing=0.1), divergence])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reduced_losses_have_the_gradients_of_each_examples_loss(criterion: Criterion, dtype: torch.dtype) -> None:
    logits = torch.randn(37, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    y = logits.roll(1, 0).softmax(dim=1) if criterion is divergence else torch.arange(37) % 5
    for short, reduce in ((criterion.mean, torch.mean), (criterion.sum, torch.sum)):
        a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        ours, theirs = short(a, y), reduce(criterion(b, y))
        torch.testing.assert_close(ours, theirs)
        assert torch.equal(*(torch.autograd.grad(loss, z)[0] for loss, z in ((ours, a), (theirs, b))))
