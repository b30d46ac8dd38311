"""Deep Defense's reference: closed forms on a linear network, finite differences elsewhere."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.networks import TinyConv, TinyMLP, batch
from tests.reference.common import mean_loss
from tests.reference.deep_defense import deep_defense, deepfool, rho_2, row_logits
from tests.reference.fixtures import LEARNING, LR, X, Y, net, same
from tests.reference.nets import Net
from tests.reference.standard import standard


def linear_net() -> tuple[Net, Tensor]:
    """A TinyMLP with all ReLUs open, and the matrix (5, 192) that it is but for a small bias."""
    reference = net(TinyMLP)
    b, w = ([reference.weights[f"fc{i}.{kind}"].detach() for i in (1, 2, 3)] for kind in ("bias", "weight"))
    b[0] += 50
    b[1] += 500
    b[2] -= w[2] @ (w[1] @ b[0] + b[1])
    return reference, w[2] @ w[1] @ w[0]


@pytest.mark.parametrize("p", [2.0, 3.0, torch.inf])
@pytest.mark.parametrize("classes", [2, None])
def test_deepfool_on_a_linear_network_is_its_closed_form(p: float, classes: int | None) -> None:
    """p = 2: 1.02 |f| / ||w||^2 w to the nearest plane; the length is 1.02 |f| / ||w||_q for every p."""
    reference, matrix = linear_net()
    q = 1.0 if p == torch.inf else p / (p - 1)
    for x in X:
        delta = deepfool(reference, x, None, p=p, num_classes=classes).flatten().detach()
        logits = row_logits(reference, x).detach()
        order = logits.argsort(descending=True).tolist()[:classes]
        planes = [(logits[k] - logits[order[0]], matrix[k] - matrix[order[0]]) for k in order[1:]]
        f, w = min(planes, key=lambda plane: float(plane[0].abs() / plane[1].norm(q)))
        assert float(delta.norm(p)) == pytest.approx(1.02 * float(f.abs() / w.norm(q)), rel=1e-8)
        assert float(delta @ w) == pytest.approx(-1.02 * float(f), rel=1e-8)
        if p == 2:
            assert torch.allclose(delta, 1.02 * f.abs() / w.square().sum() * w, rtol=1e-8, atol=1e-12)


def test_deepfool_leaves_the_prediction_or_reaches_the_label() -> None:
    trained, (linear, _) = standard(net(TinyMLP), LEARNING, lr=0.2), linear_net()
    x, y = batch(12, seed=3)
    for image, label in zip(x, y.tolist(), strict=True):
        now = int(row_logits(trained, image).argmax())
        assert int(row_logits(trained, image + deepfool(trained, image, now)).argmax()) != now
        assert int(row_logits(linear, image + deepfool(linear, image, label, iterations=20)).argmax()) == label or (
            label == int(row_logits(linear, image).argmax())
        )
    assert 0 < int((linear.logits(x).argmax(1) == y).sum()) < len(y)


def test_deepfool_goes_on_until_the_overshot_sum_is_past_the_boundary() -> None:
    trained = standard(net(TinyConv), LEARNING, lr=0.2)
    counts = set()
    for x in batch(8, seed=3)[0]:
        now = int(row_logits(trained, x).argmax())
        deltas = [deepfool(trained, x, None, iterations=i, overshoot=0.1) for i in range(1, 8)]
        fooled = [int(row_logits(trained, x + delta).argmax()) != now for delta in deltas]
        assert [torch.equal(a, b) for a, b in itertools.pairwise(deltas)] == fooled[:-1]
        counts.add(fooled.index(True))
    assert len(counts) > 1


def test_deepfool_stops_where_there_is_no_boundary() -> None:
    """All ReLUs shut: w = 0, and 0 / 0 would reach every weight."""
    shut = net(TinyMLP)
    shut.weights["fc2.bias"].data -= 50
    x, now = X[0], int(row_logits(shut, X[0]).argmax())
    assert not deepfool(shut, x, now).any()
    assert not deepfool(shut, x, (now + 1) % 5).any()


@pytest.mark.parametrize("regulariser", ["exp", "linear"])
@pytest.mark.parametrize("single", [False, True])
def test_deep_defense_goes_down_the_gradient_of_equation_6(regulariser: str, single: bool) -> None:
    """Against finite differences of the objective along a random direction, batch norm included."""
    start = standard(net(TinyConv), LEARNING, lr=0.2)
    x, _ = batch(4, seed=2)
    now = start.logits(x, bn="eval").argmax(1)
    y = torch.cat([now[:2], (now[2:] + 1) % 5])
    settings: dict[str, Any] = {
        "lambda_": 2.0,
        "c": 4.0,
        "d": 3.0,
        "regulariser": regulariser,
        "single_formula": single,
    }
    stepped, rhos = deep_defense(start, [(x, y)], lr=1.0, **settings)

    def objective(reference: Net) -> float:
        total, ratios = 0.0, []
        for image, label, good in zip(x, y.tolist(), (True, True, False, False), strict=True):
            delta = deepfool(reference, image, None if single else label)
            ratios.append((delta.norm() / image.norm()).item())
            exponent = -4.0 * ratios[-1] if good or single else 3.0 * ratios[-1]
            total += math.exp(exponent) if regulariser == "exp" else exponent
        if reference is start:
            assert rhos == [pytest.approx(sum(ratios) / 4)]
        return mean_loss(reference, x, y, bn="eval").item() + 2.0 / 4 * total

    objective(start)
    stream = torch.Generator().manual_seed(0)
    direction = {k: torch.randn(w.shape, generator=stream, dtype=torch.float64) for k, w in start.weights.items()}
    moved = []
    for h in (1e-7, -1e-7):
        other = start.clone()
        for k, w in other.weights.items():
            w.data += h * direction[k]
        moved.append(objective(other))
    slope = sum((direction[k] * (start.weights[k] - stepped.weights[k])).sum().item() for k in direction)
    assert (moved[0] - moved[1]) / 2e-7 == pytest.approx(slope, rel=1e-5)


def test_deep_defense_options() -> None:
    x = X.clone()
    x[2] = 0
    plain, rhos = deep_defense(net(TinyMLP), [(x, Y)], lambda_=0.0, lr=LR)
    assert same(plain, standard(net(TinyMLP), [(x, Y)], lr=LR))
    masked, _ = deep_defense(net(TinyMLP), [(x, Y)], layer="fc2", lr=LR)
    changed = [k for k in plain.weights if not torch.equal(plain.weights[k], masked.weights[k])]
    assert changed == ["fc2.weight", "fc2.bias"]
    kept = [i for i in range(6) if i != 2]
    ratios = [deepfool(net(TinyMLP), x[i], int(Y[i])).norm() / x[i].norm() for i in kept]
    assert rhos == [pytest.approx(torch.stack(ratios).mean().item())]
    each = [deepfool(net(TinyMLP), v, None, iterations=50).norm() / v.norm() for v in X]
    assert rho_2(net(TinyMLP), X, iterations=50) == pytest.approx(torch.stack(each).mean().item())
