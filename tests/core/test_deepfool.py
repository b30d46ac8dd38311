"""DeepFool: closed forms, what it does at degenerate rows, and its gradient against finite differences."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from layerwise.core.deepfool import deepfool
from layerwise.errors import ConfigError
from tests.networks import batch, seeded

X, Y = batch(6)
P = pytest.mark.parametrize("p", [2.0, 3.0, 1.5, math.inf])


class Linear(nn.Module):
    """z = W x + b."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        with seeded(0):
            self.fc = nn.Linear(192, classes)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x.flatten(1))
        return out


class Smooth(nn.Module):
    """No kinks, so that finite differences are right."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(1):
            self.hidden, self.fc = nn.Linear(192, 8), nn.Linear(8, 4)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(torch.tanh(3 * self.hidden(x.flatten(1))))
        return out


def dual(p: float) -> float:
    return 1.0 if math.isinf(p) else p / (p - 1)


@P
@pytest.mark.parametrize("num_classes", [None, 2, 3])
def test_on_a_linear_network_it_is_the_step_over_the_nearest_plane(p: float, num_classes: int | None) -> None:
    """Length 1.02 |f| / ||w||_q in the p-norm, and exactly 1.02 times the way: w.r = 1.02 |f|."""
    model = Linear()
    found = deepfool(model, X, p=p, num_classes=num_classes)
    z, weight = model(X).detach(), model.fc.weight.detach()
    for row, logits, r in zip(range(6), z, found.perturbation.flatten(1), strict=True):
        order = logits.argsort(descending=True).tolist()[:num_classes]
        planes = [(abs(logits[k] - logits[order[0]]), weight[k] - weight[order[0]]) for k in order[1:]]
        f, w = min(planes, key=lambda plane: float(plane[0] / plane[1].norm(dual(p))))
        assert float(r.norm(p)) == pytest.approx(1.02 * float(f / w.norm(dual(p))), rel=1e-9)
        assert float(w @ r) == pytest.approx(1.02 * float(f), rel=1e-9)
        if p == 2:
            torch.testing.assert_close(r, 1.02 * f / w.square().sum() * w)
        if math.isinf(p):
            torch.testing.assert_close(r, 1.02 * f / w.abs().sum() * w.sign())
        assert int(found.prediction[row]) == order[0]
    assert bool(found.fooled.all())
    assert bool((model(X + found.perturbation).argmax(1) != found.prediction).all())


def test_a_row_that_has_arrived_takes_no_more_steps() -> None:
    one, many = deepfool(Linear(), X, num_steps=1), deepfool(Linear(), X, num_steps=50)
    assert torch.equal(one.perturbation, many.perturbation)


def test_wrong_rows_are_led_to_their_label_and_right_ones_away() -> None:
    model = Linear()
    now = model(X).argmax(1)
    labels = torch.where(torch.arange(6) < 3, now, (now + 2) % 5)
    found = deepfool(model, X, labels=labels, num_steps=30)
    after = model(X + found.perturbation).argmax(1)
    assert bool(found.fooled.all())
    assert bool((after[:3] != now[:3]).all())
    assert torch.equal(after[3:], labels[3:])
    alone = deepfool(model, X[:3]).perturbation
    torch.testing.assert_close(
        found.perturbation[:3], alone, rtol=1e-12, atol=1e-15
    )  # products of 6 and 3 rows round apart


def test_a_wrong_row_steps_from_the_class_it_is_in_now() -> None:
    """One dimension, z = (0, 3 - 3x, 2x - 4): from x = 0 (class 1) to class 2 the way goes through class 0."""

    def network(x: Tensor) -> Tensor:
        return torch.cat([0 * x, 3 - 3 * x, 2 * x - 4], 1)

    x, label = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([2])
    steps = [float(deepfool(network, x, labels=label, num_steps=n, overshoot=0.0).perturbation) for n in (1, 2, 3)]
    # z2 = z1 at 1.4, where z0 = 0 is larger than both (-1.2): then z2 = z0 at 2.
    assert steps == pytest.approx([1.4, 2.0, 2.0])


def test_the_classes_are_those_of_the_clean_logits_to_the_end() -> None:
    """After a step towards class 1 = log x class 2 is the second largest; with two candidates it stays out: Newton on log x."""

    def network(x: Tensor) -> Tensor:
        return torch.cat([0 * x, x.log(), 10 * (x - 0.58)], 1)

    x = torch.full((1, 1), 0.2, dtype=torch.float64)
    expected, point = 0.0, 0.2
    for _ in range(3):
        step = -math.log(point) * point
        expected, point = expected + step, point + step
        if math.log(0.2 + 1.02 * expected) > 0 or 10 * (0.2 + 1.02 * expected - 0.58) > 0:
            break
    found = [float(deepfool(network, x, num_classes=2, num_steps=n).perturbation) for n in (1, 3)]
    assert found == pytest.approx([1.02 * -math.log(0.2) * 0.2, 1.02 * expected])
    logits = network(torch.tensor([[0.2 - math.log(0.2) * 0.2]], dtype=torch.float64))
    assert logits.argsort(1, descending=True).tolist() == [[0, 2, 1]]


@P
def test_rows_do_not_know_of_each_other(p: float) -> None:
    model, labels = Smooth(), torch.tensor([0, 1, 2, 3, 0, 1])
    together = deepfool(model, X, labels=labels, p=p)
    for i in range(6):
        alone = deepfool(model, X[i : i + 1], labels=labels[i : i + 1], p=p)
        torch.testing.assert_close(together.perturbation[i : i + 1], alone.perturbation, rtol=1e-10, atol=1e-12)
        assert bool(together.fooled[i]) == bool(alone.fooled)


@P
@pytest.mark.parametrize("bias", [0.0, 1.0])
@pytest.mark.parametrize("led", [False, True])
def test_classes_that_coincide_make_no_step_and_poison_no_weight(p: float, bias: float, led: bool) -> None:
    """Two of three classes, or all (bias 0), are the same: 0 / 0 and |f| / 0."""
    model = Linear(3)
    model.fc.weight.data[:] = model.fc.weight.data[0]
    model.fc.bias.data[:] = bias * torch.tensor([2.0, 2.0, 1.0])
    labels = (model(X).argmax(1) + 1) % 3 if led else None
    found = deepfool(model, X, labels=labels, p=p, create_graph=True)
    torch.autograd.backward(found.rho(X, p)[0].exp().sum())
    assert not found.perturbation.any()
    assert all(q.grad is not None and bool(q.grad.isfinite().all()) for q in model.parameters())


@P
def test_rows_that_have_all_arrived_go_on_without_a_nan(p: float) -> None:
    model = Smooth()
    found = deepfool(model, X, num_steps=30, p=p, create_graph=True)
    torch.autograd.backward(found.rho(X, p)[0].sum())
    assert bool(found.fooled.all())
    assert all(q.grad is None or bool(q.grad.isfinite().all()) for q in model.parameters())


@P
@pytest.mark.parametrize("led", [False, True])
def test_its_gradient_is_the_slope_of_its_size(p: float, led: bool) -> None:
    """Through logits, gradients and all earlier steps: central differences in a random direction of all weights."""
    model = Smooth()
    labels = (model(X).argmax(1) + (torch.arange(6) < 3).long()) % 4 if led else None

    def size(network: nn.Module, create_graph: bool = False) -> Tensor:
        found = deepfool(network, X, labels=labels, num_steps=3, p=p, create_graph=create_graph)
        return found.rho(X, p)[0].sum()

    value = size(model, create_graph=True)
    gradients = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    stream = torch.Generator().manual_seed(0)
    directions = [torch.randn(q.shape, generator=stream, dtype=q.dtype) for q in model.parameters()]
    slope = sum(float((g * v).sum()) for g, v in zip(gradients, directions, strict=True) if g is not None)
    moved = []
    for h in (1e-6, -1e-6):
        other = copy.deepcopy(model)
        for q, v in zip(other.parameters(), directions, strict=True):
            q.data += h * v
        moved.append(size(other).item())
    assert abs(slope) > 1e-3
    assert (moved[0] - moved[1]) / 2e-6 == pytest.approx(slope, rel=1e-4)


def test_without_a_graph_nothing_is_differentiable() -> None:
    model = Smooth()
    plain, graph = deepfool(model, X), deepfool(model, X, create_graph=True)
    assert not plain.perturbation.requires_grad
    assert graph.perturbation.requires_grad
    torch.testing.assert_close(plain.perturbation, graph.perturbation.detach(), rtol=1e-12, atol=1e-14)
    assert all(q.grad is None for q in model.parameters())


def test_overshoot_scales_the_sum_of_the_steps() -> None:
    model = Linear()
    bare, over = (deepfool(model, X, overshoot=v).perturbation for v in (0.0, 0.5))
    torch.testing.assert_close(over, 1.5 * deepfool(model, X, num_steps=1, overshoot=0.0).perturbation)
    assert bool(bare.any())


def test_the_relative_size_counts_no_blank_images() -> None:
    x = X.clone()
    x[1] = 0
    found = deepfool(Linear(), x)
    rho, counted = found.rho(x)
    assert counted.tolist() == [True, False, True, True, True, True]
    assert float(rho[1]) == 0
    assert float(rho[0]) == pytest.approx(float(found.perturbation[0].norm() / x[0].norm()))
    largest = float(found.perturbation[0].abs().max() / x[0].max())
    assert float(found.rho(x, math.inf)[0][0]) == pytest.approx(largest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.0}, r"^p=1\.0 has no smooth step; type a number above 1, or inf$"),
        ({"p": float("nan")}, r"^p=nan has no smooth step; type a number above 1, or inf$"),
        ({"num_classes": 1}, "^DeepFool needs at least two classes, found 1$"),
    ],
)
def test_what_has_no_boundary_is_an_error(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deepfool(Linear(), X, **options)  # type: ignore[arg-type]
    if "num_classes" in options:
        with pytest.raises(ConfigError, match=message):
            deepfool(Linear(1), X)
