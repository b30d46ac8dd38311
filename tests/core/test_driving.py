"""The driver: one line of a user's loop is the loop written out by hand, for every method and every way to accumulate."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerwise.core.criteria import CrossEntropy
from layerwise.core.driving import AUTOGRAD, Backward, Exact, Losses, Partial, Step, step
from layerwise.core.probe import Probe
from layerwise.core.random import Source, Stream
from layerwise.core.sites import Sites
from layerwise.errors import ConfigError, LayerwiseError
from layerwise.methods import ANP, FGSM, LAT, YOPO, Standard
from tests.methods.cases import METHODS, data, differing, distance, make, optimizer_of, train, unchecked
from tests.networks import TinyMLP, TinyResNet, batch

X, Y = batch(6)


def resnet() -> nn.Module:
    return TinyResNet(batch_norm=False).double()


def stepped(method: Any, model: nn.Module, count: int = 3, **more: Any) -> dict[str, Tensor]:
    optimizer = optimizer_of(model)
    for index, (x, y) in enumerate(data(count)):
        step(method, model, x, y, optimizer, generator=Stream(0, index), **more)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", METHODS)
def test_one_line_is_the_loop_by_hand_bit_by_bit(name: str) -> None:
    assert differing(stepped(make(name), resnet()), train(make(name), resnet(), data(3))) == []


@pytest.mark.parametrize("name", ["ANP", "LAT", "AWP", "YOPO", "SLAT", "PGD", "FreeAT"])
@pytest.mark.parametrize("stream", [True, False])
def test_parts_of_a_batch_give_what_the_batch_does(name: str, stream: bool) -> None:
    """Without a stream the parts draw one together, so that they share out rows of noise and LAT's rows meet."""
    found = []
    for parts in (1, 4) if stream else (2, 4):
        model, method = resnet(), make(name)
        optimizer = optimizer_of(model)
        for index, (x, y) in enumerate(data(3)):
            torch.manual_seed(index)
            step(method, model, x, y, optimizer, parts=parts, generator=Stream(0, index) if stream else None)
        found.append({k: v.clone() for k, v in model.state_dict().items()})
    assert distance(*found) < 1e-10


class Scripted:
    """A method whose losses are a script."""

    def __init__(self, *kinds: str, events: list[str] | None = None) -> None:
        self.kinds, self.events = kinds, [] if events is None else events

    def losses(
        self, model: nn.Module, x: Tensor, y: Tensor, *, backward: Backward = AUTOGRAD, generator: Source = None
    ) -> Losses:
        try:
            for number, kind in enumerate(self.kinds, 1):
                loss = CrossEntropy().mean(model(x), y) * number
                yield Partial(loss) if kind == "partial" else loss
                self.events.append(f"after {kind}")
        finally:
            self.events.append("closed")


def mlp() -> tuple[TinyMLP, torch.optim.Optimizer]:
    model = TinyMLP().double()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_it_gives_the_mean_of_the_losses_and_leaves_no_gradient() -> None:
    for parts in (1, 2):
        model, optimizer = mlp()
        expected = CrossEntropy().mean(model(X), Y)
        found = step(Scripted("partial", "partial", "loss"), model, X, Y, optimizer, parts=parts)
        torch.testing.assert_close(found, 2 * expected.detach())
        assert not found.requires_grad
        assert all(p.grad is None for p in model.parameters())


def test_gradients_that_are_there_before_are_dropped() -> None:
    found = []
    for spoilt in (False, True):
        model, optimizer = mlp()
        for p in model.parameters():
            p.grad = torch.full_like(p, 3.0) if spoilt else None
        step(Standard(), model, X, Y, optimizer)
        found.append({k: v.clone() for k, v in model.state_dict().items()})
    assert differing(*found) == []


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_the_gradient_is_clipped(limit: float) -> None:
    model, optimizer = mlp()
    before = [p.detach().clone() for p in model.parameters()]
    step(Standard(), model, X, Y, optimizer, clip_norm=limit)
    moved = torch.cat([(p.detach() - q).flatten() for p, q in zip(model.parameters(), before, strict=True)]).norm()
    assert (float(moved) == pytest.approx(0.1 * limit, rel=1e-4)) if limit < 1 else (float(moved) > 1e-3)


def test_a_method_that_breaks_the_rules_of_losses_is_told() -> None:
    model, optimizer = mlp()
    with pytest.raises(LayerwiseError, match=r"^Scripted.losses ends with a Partial; end with a loss to step on$"):
        step(Scripted("loss", "partial"), model, X, Y, optimizer)

    class Uneven(Scripted):
        def losses(self, model: nn.Module, x: Tensor, y: Tensor, **more: Any) -> Losses:
            self.kinds = (*self.kinds, "loss")
            yield from super().losses(model, x, y, **more)

    message = "Uneven.losses yields differently for the parts of one batch"
    with pytest.raises(LayerwiseError, match=f"^{re.escape(message)}$"):
        step(Uneven(), model, X, Y, optimizer, parts=2)


def test_an_optimizer_of_another_network_is_told() -> None:
    (model, _), (_, other) = mlp(), mlp()
    with pytest.raises(ConfigError, match=r"^the optimizer moves none of the network's weights, .* make it of these"):
        step(Standard(), model, X, Y, other)
    part = torch.optim.SGD([*list(model.parameters())[-1:]], lr=0.1)
    assert step(unchecked(Standard()), model, X, Y, part).isfinite()
    with pytest.raises(ConfigError, match=r"^the batch is empty$"):
        step(Standard(), model, X[:0], Y[:0], part)


def test_generators_are_closed_when_something_goes_wrong() -> None:
    model, optimizer = mlp()
    events: list[str] = []

    def fail(loss: Tensor, /, *, inputs: Any = None) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step(Scripted("loss", events=events), model, X, Y, optimizer, backward=fail, parts=2)
    assert events == ["closed"]  # the second one had not begun


# Scaling


def test_a_scaler_changes_nothing_but_the_losses_that_are_descended() -> None:
    """Powers of two: exact. What ANP, LAT and YOPO record in their descents, and every probe, is as without."""
    for method in (lambda: ANP(k=2, layers=2), LAT, lambda: YOPO(m=2, n=1), lambda: FGSM(eps=0.1)):
        found = []
        for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10)):
            model, one = TinyResNet(batch_norm=False), method()
            optimizer = optimizer_of(model, lr=0.125)
            for index, (x, y) in enumerate(data(3, dtype=torch.float32)):
                step(one, model, x, y, optimizer, generator=Stream(0, index), clip_norm=1.0, scaler=scaler)
            found.append(dict(model.state_dict()))
        assert distance(*found) < 1e-6


def test_a_step_with_a_gradient_that_is_not_finite_is_skipped() -> None:
    model, optimizer = mlp()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    method = unchecked(Standard())
    step(method, model, X * torch.inf, Y, optimizer, scaler=scaler)
    assert differing(before, dict(model.state_dict())) == []
    assert scaler.get_scale() == 2.0**3


def test_an_engine_that_divides_its_losses_changes_no_gradient_of_a_probe() -> None:
    """As Accelerate's does under accumulation: an example's gradient stays that of its own loss."""

    def divides(loss: Tensor, /, *, inputs: Any = None) -> None:
        torch.autograd.backward(loss / 4, inputs=inputs)

    model = TinyMLP().double()
    plain, _ = Probe()(model, X, Y, criterion=CrossEntropy(), wrt_input=True)
    divided, _ = Probe()(model, X, Y, criterion=CrossEntropy(), wrt_input=True, step=Step(divides))
    torch.testing.assert_close(divided, plain, rtol=1e-12, atol=0)
    told, _ = Probe()(model, X, Y, criterion=CrossEntropy(), wrt_input=True, step=Step(Exact(divides)))
    torch.testing.assert_close(told, plain / 4, rtol=1e-12, atol=0)


def test_sites_too_hold_gradients_of_the_losses_whatever_an_engine_does_to_them() -> None:
    found = []
    for factor in (1.0, 0.25):

        def engine(loss: Tensor, /, *, inputs: Any = None, factor: float = factor) -> None:
            torch.autograd.backward(loss * factor, inputs=inputs)

        model = resnet()
        sites = Sites(model, "affine outputs", example=X)
        found.append(Probe()(model, X, Y, criterion=CrossEntropy(), sites=sites, step=Step(engine))[1])
    for site, g in found[0].items():
        torch.testing.assert_close(found[1][site], g, rtol=1e-12, atol=1e-18)


# Several processes


def test_only_the_last_part_reduces_the_gradients() -> None:
    class Wrapped(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module, self.silent, self.passes = module, False, list[bool]()

        @contextmanager
        def no_sync(self) -> Iterator[None]:
            self.silent = True
            yield
            self.silent = False

        def forward(self, x: Tensor) -> Any:
            self.passes.append(self.silent)
            return self.module(x)

    model, optimizer = mlp()
    wrapped = Wrapped(model)
    step(unchecked(Standard()), wrapped, X, Y, optimizer, parts=3)
    assert wrapped.passes == [True, True, False]
