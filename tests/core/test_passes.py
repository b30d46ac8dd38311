"""One use of the sites: contexts, units, constraints, precision, checkpoints, and what it says when a site is missed."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.core.passes import Pass
from layerwise.core.sites import Sites, unwrap
from layerwise.core.tracing import Site
from layerwise.errors import ConfigError, SiteError
from tests.networks import Checkpointed, DeadBranch, SharedReLU, TinyConv, TinyMLP, TinyResNet, batch

X, Y = batch(4)
FC1, FC2 = Site("fc1"), Site("fc2")


@pytest.fixture
def mlp() -> TinyMLP:
    return TinyMLP().double()


def ones(sites: Sites, size: float = 1.0) -> dict[Site, Tensor]:
    return {site: torch.full((4, *sites.shape(site)), size, dtype=torch.float64) for site in sites}


def mean_loss(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(X), Y)


# Contexts


def test_the_last_context_that_was_entered_wins_and_leaving_an_older_one_changes_nothing(mlp: TinyMLP) -> None:
    sites = Sites(mlp, ["fc3"], example=X)
    plain = mlp(X)
    one, two = sites.perturb(ones(sites)), sites.perturb(ones(sites, 2.0))
    one.__enter__()
    two.__enter__()
    assert torch.equal(mlp(X), plain + 2)
    one.fired = [True]
    one.__exit__(None, None, None)
    assert torch.equal(mlp(X), plain + 2)
    two.__exit__(None, None, None)
    assert torch.equal(mlp(X), plain)


def test_two_suspended_generators_do_not_meet(mlp: TinyMLP) -> None:
    sites = Sites(mlp, ["fc3"], example=X)
    plain = mlp(X)

    def generator(size: float) -> Generator[Tensor]:
        for turn in (1, 2):
            with sites.perturb(ones(sites, turn * size)):
                yield mlp(X) - plain

    one, two = generator(1.0), generator(10.0)
    found = [next(g).mean().item() for g in (one, two, one, two)]
    assert found == pytest.approx([1, 10, 2, 20])
    one.close()
    assert (mlp(X) - plain).mean().item() == pytest.approx(20)
    two.close()
    assert torch.equal(mlp(X), plain)


def test_leave_closes_what_is_open(mlp: TinyMLP) -> None:
    sites = Sites(mlp, ["fc3"], example=X)
    plain = mlp(X)
    sites.perturb(ones(sites)).__enter__()
    assert not torch.equal(mlp(X), plain)
    sites.leave()
    assert torch.equal(mlp(X), plain)


def test_an_error_inside_a_context_is_the_one_that_is_told(mlp: TinyMLP) -> None:
    sites = Sites(mlp, ["fc3"], example=X)
    with pytest.raises(ZeroDivisionError), sites.perturb(ones(sites)):
        raise ZeroDivisionError
    assert sites.slot.active is None


# Values


def test_noise_is_added_where_it_is_named_and_nowhere_else(mlp: TinyMLP) -> None:
    sites = Sites(mlp, ["fc1", "fc3"], example=X)
    fc3 = Site("fc3")
    plain = mlp(X)
    with sites.perturb({fc3: torch.ones(4, 5).double()}):
        assert torch.equal(mlp(X), plain + 1)
    with sites.record(X, {fc3: torch.ones(4, 5).double()}) as recorder:
        logits = mlp(X)
        torch.autograd.backward(logits.sum())
    assert torch.equal(logits, plain + 1)
    assert list(recorder.gradients()) == [FC1, fc3]


def test_each_call_of_a_module_has_its_own_noise() -> None:
    model = SharedReLU().double()
    sites = Sites(model, ["relu#1"], example=X)
    seen: list[Tensor] = []
    model.relu.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    model(X)
    with sites.perturb(ones(sites)):
        model(X)
    first, second = seen[:3], seen[3:]
    assert torch.equal(second[0], first[0])
    assert torch.equal(second[1], first[1] + 1)


def test_noise_carries_no_gradient(mlp: TinyMLP) -> None:
    sites = Sites(mlp, ["fc1"], example=X)
    r = torch.ones(4, 16, dtype=torch.float64, requires_grad=True)
    with sites.perturb({FC1: r}):
        torch.autograd.backward(mlp(X).sum())
    assert r.grad is None


def test_a_constraint_sees_the_value_and_acts_outside_the_gradient(mlp: TinyMLP) -> None:
    """Through a differentiable clamp the saturated entries would have gradient 0."""
    low, high = 0.0, 0.1
    sites, r = Sites(mlp, ["fc1"], example=X), torch.ones(4, 16).double()
    noise = {FC1: r}

    def clamp(r: Tensor, z: Tensor) -> Tensor:
        return (z + r).clamp(low, high) - z

    seen: list[Tensor] = []
    mlp.fc1.register_forward_hook(lambda module, args, output: seen.append(output))
    with sites.record(X, noise, constraint=clamp) as recorder:
        torch.autograd.backward(mean_loss(mlp))
    z = seen[0].detach()
    assert bool(((z - high).abs() < 1e-12).any())
    assert float(z.max()) <= high + 1e-12
    h = z.clone().requires_grad_()
    torch.autograd.backward(F.cross_entropy(mlp.fc3(torch.relu(mlp.fc2(torch.relu(h)))), Y))
    [g] = recorder.gradients().values()
    assert h.grad is not None
    torch.testing.assert_close(g, h.grad, rtol=1e-12, atol=1e-15)
    assert bool((g[(z - high).abs() < 1e-12] != 0).any())


def test_gradients_below_a_constraint_pass_as_if_nothing_was_added(mlp: TinyMLP) -> None:
    """Dz'/dz = 1, even where the noise depends on z."""
    sites = Sites(mlp, ["fc3"], example=X)
    x = X.clone().requires_grad_()
    with sites.perturb(ones(sites), constraint=lambda r, z: -z):
        torch.autograd.backward(mlp(x).sum())
    again = X.clone().requires_grad_()
    torch.autograd.backward(mlp(again).sum())
    assert x.grad is not None
    assert again.grad is not None
    assert torch.equal(x.grad, again.grad)


def test_the_sum_keeps_the_layout() -> None:
    model = TinyConv().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = X.float().to(memory_format=torch.channels_last)
    sites = Sites(model, ["conv1"], example=x)
    layouts: list[bool] = []
    model.conv1.register_forward_hook(
        lambda module, args, output: layouts.append(output.is_contiguous(memory_format=torch.channels_last))
    )
    with sites.record(x, {Site("conv1"): torch.zeros(4, 6, 8, 8)}) as recorder:
        torch.autograd.backward(model(x).sum())
    assert recorder.leaves[0].is_contiguous(memory_format=torch.channels_last)
    assert layouts == [True]


def test_a_function_at_a_site_replaces_what_passes_inside_the_gradient(mlp: TinyMLP) -> None:
    sites = Sites(mlp, ["fc1"], example=X)
    with sites.record(X, {FC1: lambda z: 2 * z}) as recorder:
        torch.autograd.backward(mean_loss(mlp))
    found, gradient = recorder.gradients()[FC1], mlp.fc1.weight.grad
    mlp.zero_grad()
    hidden = mlp.fc1(X.flatten(1))
    doubled = 2 * hidden
    doubled.retain_grad()
    torch.autograd.backward(F.cross_entropy(mlp.fc3(torch.relu(mlp.fc2(torch.relu(doubled)))), Y))
    assert doubled.grad is not None
    assert gradient is not None
    assert mlp.fc1.weight.grad is not None
    torch.testing.assert_close(found, doubled.grad, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(gradient, mlp.fc1.weight.grad, rtol=1e-12, atol=1e-15)


def test_what_replaces_is_measured_too(mlp: TinyMLP) -> None:
    sites = Sites(mlp, ["fc3"], example=X)
    sites.monitor = {}
    with sites.perturb({Site("fc3"): lambda z: z + 1}):
        torch.autograd.backward(mean_loss(mlp))
    assert float(sites.monitor["fc3"]["rms"]) == pytest.approx(1)
    assert float(sites.monitor["fc3"]["survival"]) == 1


# Units


@pytest.mark.parametrize("factor", [1.0, 0.25, 65536.0, -3.0])
def test_recorded_gradients_do_not_depend_on_what_divides_or_scales_the_loss(mlp: TinyMLP, factor: float) -> None:
    sites = Sites(mlp, ["fc1"], example=X)
    with sites.record(X) as summed:
        torch.autograd.backward(F.cross_entropy(mlp(X), Y, reduction="sum"))
    with sites.record(X) as watched:
        loss = watched.mean(mean_loss, mlp)
        torch.autograd.backward(0.5 * mean_loss(mlp) * 0 + factor * loss)
    torch.testing.assert_close(watched.gradients()[FC1], summed.gradients()[FC1], rtol=1e-12, atol=1e-16)


def test_a_watched_loss_with_weight_zero_gives_zero_not_nan(mlp: TinyMLP) -> None:
    sites = Sites(mlp, ["fc1"], example=X)
    with sites.record(X) as watched:
        torch.autograd.backward(0.0 * watched.mean(mean_loss, mlp))
    assert not watched.gradients()[FC1].any()


def test_each_row_holds_its_own_examples_gradient(mlp: TinyMLP) -> None:
    sites = Sites(mlp, ["fc1"], example=X)

    def rows(x: Tensor, y: Tensor) -> Tensor:
        with sites.record(x) as recorder:
            torch.autograd.backward(F.cross_entropy(mlp(x), y, reduction="sum"))
        return recorder.gradients()[FC1]

    together = rows(X, Y)
    alone = torch.cat([rows(X[i : i + 1], Y[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-15)


def test_gradients_are_taken_once_and_add_up_until_then(mlp: TinyMLP) -> None:
    sites = Sites(mlp, ["fc1"], example=X)
    with sites.record(X) as once:
        torch.autograd.backward(mlp(X).sum())
    with sites.record(X) as twice:
        torch.autograd.backward(mlp(X).sum() + mlp(X).sum())
    torch.testing.assert_close(twice.gradients()[FC1], 2 * once.gradients()[FC1])
    with pytest.raises(
        SiteError, match=r"^site 'fc1' is dead: the loss does not depend on it \(or has not been back-prop"
    ):
        once.gradients()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_leaf_keeps_the_gradient_and_not_a_copy(layout: torch.memory_format) -> None:
    net = TinyConv().to(memory_format=layout)  # type: ignore[call-overload]
    x = X.to(net.conv1.weight.dtype).contiguous(memory_format=layout)
    seen: list[Tensor] = []

    def watch(module: nn.Module, args: object, z: Tensor) -> None:
        if z.requires_grad:
            z.register_hook(seen.append)  # type: ignore[no-untyped-call]

    net.conv1.register_forward_hook(watch)
    sites = Sites(net, ["conv1"], example=x)
    with sites.record(x) as recorded:
        net(x).sum().backward()
    (leaf,) = recorded.leaves
    assert leaf.grad is not None
    assert leaf.grad.data_ptr() == seen[0].data_ptr()
    assert leaf.grad.is_contiguous(memory_format=layout)


# Precision


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), ("same", torch.bfloat16)])
def test_under_autocast_a_site_hands_on_what_was_asked_for(dtype: str, expected: torch.dtype) -> None:
    model, x = TinyMLP(), X.float()
    sites = Sites(model, ["fc1"], dtype=dtype, example=x)  # type: ignore[arg-type]
    types: list[torch.dtype] = []
    model.fc1.register_forward_hook(lambda module, args, output: types.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16), sites.record(x, {FC1: torch.ones(4, 16)}) as recorder:
        loss = model(x).float().sum()
    torch.autograd.backward(loss)
    assert types == [expected]
    assert recorder.gradients()[FC1].dtype == torch.float32


@pytest.mark.parametrize(("dtype", "survives"), [("float32", True), ("same", False)])
def test_the_monitor_tells_how_much_of_small_noise_survives_rounding(dtype: str, survives: bool) -> None:
    model, x = TinyResNet(), X.float()
    sites = Sites(model, ["block2"], dtype=dtype, example=x)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        with sites.record(x) as recorder:
            torch.autograd.backward(F.cross_entropy(model(x).float(), Y))
        [(site, g)] = recorder.gradients().items()
        sites.monitor = {}
        with sites.perturb({site: 1e-3 * g}):
            torch.autograd.backward(F.cross_entropy(model(x).float(), Y))
    share = float(sites.monitor["blocks.block2"]["survival"])
    assert (share > 0.99) if survives else (share < 0.9)


def test_the_monitor_measures_the_noise_that_was_really_added(mlp: TinyMLP) -> None:
    sites = Sites(mlp, ["fc1", "fc2"], example=X)
    z: list[Tensor] = []
    mlp.fc1.register_forward_hook(lambda module, args, output: z.append(output.detach()))
    mlp(X)
    r = torch.randn(4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    record: dict[str, dict[str, Tensor]] = {}
    sites.monitor = record
    with sites.record(X, {FC1: r}, constraint=lambda r, z: r / 2):
        torch.autograd.backward(mean_loss(mlp))
    assert list(record) == ["fc1"]
    sizes = {name: float(value) for name, value in record["fc1"].items()}
    half = r / 2
    assert sizes == pytest.approx(
        {
            "rms": float(half.square().mean().sqrt()),
            "max": float(half.abs().max()),
            "relative": float(half.norm() / z[0].norm()),
            "survival": 1.0,
        }
    )
    sites.monitor = None
    with sites.perturb({FC1: r}) as active:
        mlp(X)
    assert active.leaves == []
    assert active.gradients() == {}
    assert list(record) == ["fc1"]


def test_the_monitor_has_no_survival_before_the_loss_went_back(mlp: TinyMLP) -> None:
    sites = Sites(mlp, ["fc1"], example=X)
    sites.monitor = {}
    with sites.perturb(ones(sites)):
        mlp(X)
    assert sorted(sites.monitor["fc1"]) == ["max", "relative", "rms"]


# Checkpoints


def test_a_site_of_several_calls_inside_a_checkpoint_is_refused() -> None:
    model = Checkpointed().double()
    sites = Sites(model, ["block.relu#0"], example=X)
    message = (
        "site 'block.relu#0' is called more often than the 2 times of a forward pass: it lies in an activation checkpoint, "
        "whose recomputation cannot tell the calls apart; exclude it or give each call its own module"
    )
    with pytest.raises(SiteError, match=f"^{re.escape(message)}$"), sites.record(X):
        torch.autograd.backward(model(X).sum())
    torch.autograd.backward(model(X).sum())
    assert sites.slot.active is None


def test_noise_in_a_checkpoint_is_there_again_when_it_is_run_again() -> None:
    found = []
    for enabled in (True, False):
        model = Checkpointed(enabled=enabled).double()
        sites = Sites(model, ["block.conv1"], example=X)
        with sites.perturb(ones(sites)):
            torch.autograd.backward(model(X).sum())
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None and b is not None)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch's, in any pass without gradient
def test_recording_in_a_reentrant_checkpoint_is_refused_and_the_message_names_the_way_out() -> None:
    model = Checkpointed(use_reentrant=True).double()
    sites = Sites(model, ["block.conv1"], example=X)
    message = (
        "site 'block.conv1' was reached without gradient tracking while its gradient is recorded: it lies in torch.no_grad() or in "
        "an activation checkpoint; checkpoint with use_reentrant=False"
    )
    with pytest.raises(SiteError, match=f"^{re.escape(message)}$"), sites.record(X):
        model(X)


# Messages


def test_an_empty_perturbation_is_an_error(mlp: TinyMLP) -> None:
    sites = Sites(mlp, ["fc1"], example=X)
    with pytest.raises(SiteError, match=r"^the perturbation is empty: it names no site$"):
        sites.perturb({})


@pytest.mark.parametrize(
    ("resolved", "message"),
    [
        (True, "site 'fc2' is not attached; attached are fc1"),
        (False, "site 'fc2' is not attached; attached are none yet"),
    ],
)
def test_noise_at_a_site_that_is_not_attached_is_an_error(mlp: TinyMLP, resolved: bool, message: str) -> None:
    sites = Sites(mlp, ["fc1"], example=X if resolved else None)
    with pytest.raises(SiteError, match=f"^{message}$"):
        sites.perturb({FC2: torch.zeros(4, 12).double()})


def test_noise_of_another_shape_is_an_error(mlp: TinyMLP) -> None:
    sites = Sites(mlp, ["fc1"], example=X)
    message = r"^site 'fc1' has shape \(4, 16\), its perturbation \(3, 16\)$"
    with pytest.raises(SiteError, match=message), sites.perturb({FC1: torch.zeros(3, 16).double()}):
        mlp(X)


def test_a_dead_site_is_an_error() -> None:
    model = DeadBranch().double()
    sites = Sites(model, ["dead"], example=X)
    with sites.record(X) as recorder:
        torch.autograd.backward(model(X).sum())
    message = "site 'dead' is dead: the loss does not depend on it (or has not been back-propagated); exclude it"
    with pytest.raises(SiteError, match=f"^{re.escape(message)}$"):
        recorder.gradients()


UNREACHED = (
    r"^site 'fc1' was not reached in this pass: no forward pass ran, the branch was not taken, or the model was compiled "
    r"before the sites were attached \(attach first, then compile\)$"
)


@pytest.mark.parametrize("make", [lambda s: s.record(X), lambda s: s.perturb(ones(s))])
def test_a_pass_that_reached_no_site_is_an_error(mlp: TinyMLP, make: Callable[[Sites], Pass]) -> None:
    sites = Sites(mlp, ["fc1"], example=X)
    with pytest.raises(SiteError, match=UNREACHED), make(sites):
        mlp.fc2(torch.zeros(4, 16).double())
    with pytest.raises(SiteError, match=UNREACHED):
        make(sites).gradients()


def test_sites_that_come_after_the_first_compiled_call_are_told(mlp: TinyMLP) -> None:
    torch.compiler.reset()
    compiled: Any = torch.compile(mlp, backend="eager")
    compiled(X)
    sites = Sites(compiled, ["fc1"], example=X)
    assert sites.model is mlp
    with pytest.raises(SiteError, match=UNREACHED), sites.perturb(ones(sites)):
        compiled(X)
    sites.remove()
    torch.compiler.reset()


# Wrappers


def test_unwrap_takes_off_every_wrapper(mlp: TinyMLP) -> None:
    from lightning_fabric import Fabric

    assert unwrap(mlp) is mlp
    assert unwrap(nn.DataParallel(mlp)) is mlp
    compiled: Any = torch.compile(nn.DataParallel(mlp), backend="eager")
    assert unwrap(compiled) is mlp
    fabric = Fabric(accelerator="cpu", devices=1)
    assert unwrap(fabric.setup(mlp)) is mlp
    assert unwrap(fabric.setup(nn.DataParallel(mlp))) is mlp
    function: Any = mlp.forward
    with pytest.raises(ConfigError, match=r"^the network is a method; give a torch.nn.Module that gives logits$"):
        unwrap(function)
