from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from layerwise.errors import ConfigError
from layerwise.evaluation import Count, eps_ref, fgsm_accuracies, mean_of, rho, wilson
from tests.evaluation.problems import Linear, trained, two_classes
from tests.networks import batch
from tests.reference.deep_defense import deepfool as naive_deepfool


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    # Newcombe 1998, table I: Wilson's interval of four published examples.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_published_numbers(right: int, total: int, low: float, high: float) -> None:
    assert wilson(right, total) == pytest.approx((low, high), abs=6e-5)
    assert wilson(total - right, total) == pytest.approx((1 - high, 1 - low), abs=6e-5)


@pytest.mark.parametrize(("right", "total"), [(0, 1), (1, 1), (7, 10), (540, 540), (4560, 10000)])
def test_wilson_bounds_are_where_the_score_test_turns(right: int, total: int) -> None:
    z = 1.959963984540054
    for bound in wilson(right, total):
        if 0 < bound < 1:
            assert abs(right / total - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / total), rel=1e-9)


def test_programs_that_ask_for_right_go_on() -> None:
    assert Count(7, 10).right == Count(7, 10).correct == 7


def test_counts_that_cannot_be() -> None:
    for right, total in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ConfigError, match=f"{right} correct out of {total} cannot be"):
            Count(right, total)


def test_mean_over_seeds_has_students_interval() -> None:
    mean = mean_of([44.0, 46.0, 45.0])
    assert (mean.value, mean.runs) == (45.0, 3)
    assert mean.half_width == pytest.approx(4.302653 * 1.0 / math.sqrt(3), rel=1e-6)
    assert mean_of([1.0, 3.0]).half_width == pytest.approx(12.706205 * math.sqrt(2) / math.sqrt(2), rel=1e-6)
    assert mean_of([5.0]).half_width is None
    assert str(mean_of([5.0])) == "5 (1 run)"
    with pytest.raises(ConfigError, match="there is no run to take the mean of"):
        mean_of([])


def images(count: int, *, seed: int = 1, low: float = 0.4, high: float = 0.6) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(count, 1, 4, 4, generator=g)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_rho_of_a_linear_network(p: float) -> None:
    net, w, b = two_classes()
    x = images(30)
    f = x.double().flatten(1) @ w + b
    dual = w.norm() if p == 2 else w.abs().sum()
    expected = (1.02 * f.abs() / dual / x.double().flatten(1).norm(p, dim=1)).mean().item()
    # All labels are wrong for half of the images: the prediction is what counts.
    found = rho(net, (x, torch.zeros(30, dtype=torch.int64)), p=p)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert (found.images, found.blank, found.unfooled, found.num_steps, found.p) == (30, 0, 0.0, 5, p)


def test_rho_over_the_norm_of_centered_images() -> None:
    net, w, b = two_classes()
    x, center = images(30), images(40)[30:].mean(0)
    lengths = (x - center).double().flatten(1).norm(dim=1)
    expected = (1.02 * (x.double().flatten(1) @ w + b).abs() / w.norm() / lengths).mean().item()
    found = rho(net, (x, torch.zeros(30, dtype=torch.int64)), center=center)
    assert found.value == pytest.approx(expected, rel=1e-6)


def test_rho_leaves_blank_images_out_and_counts_them() -> None:
    net, _, _ = two_classes()
    x, y = images(30), torch.zeros(30, dtype=torch.int64)
    without = rho(net, (x[4:], y[4:]))
    x[:4] = 0.0
    found = rho(net, (x, y), batch_size=7)
    assert (found.images, found.blank) == (26, 4)
    assert found.value == pytest.approx(without.value, rel=1e-12)
    with pytest.raises(ConfigError, match="all 30 images are blank"):
        rho(net, (torch.zeros_like(x), y))


def test_rho_tells_how_many_were_not_fooled() -> None:
    constant = Linear(torch.zeros(2, 16), torch.tensor([1.0, 0.0]))
    found = rho(constant, (images(10), torch.zeros(10, dtype=torch.int64)))
    assert (found.unfooled, found.value) == (1.0, 0.0)
    net, (x, y) = trained(), batch(40, seed=3)
    one = rho(net, (x, y), num_steps=1)
    assert one.unfooled > rho(net, (x, y), num_steps=50).unfooled == 0.0
    blank = torch.cat([x, torch.zeros_like(x)]), torch.cat([y, y])
    assert rho(net, blank, num_steps=1).unfooled == pytest.approx(one.unfooled)
    assert one.unfooled not in (0.0, 1.0)


def test_rho_against_deepfool_written_out() -> None:
    class Rowwise:
        """What the naive code asks of a network."""

        def logits(self, x: Tensor, noise: object = None, *, bn: str = "eval") -> Tensor:
            out: Tensor = net(x)
            return out

    net, (x, y) = trained(), batch(6, seed=3)
    x = x.float().double()
    sizes = [naive_deepfool(Rowwise(), v, None, iterations=5).norm() / v.norm() for v in x]  # type: ignore[arg-type]
    assert rho(net, (x, y)).value == pytest.approx(torch.stack(sizes).mean().item(), rel=1e-8)


@pytest.mark.parametrize("count", [100, 101])
def test_eps_ref_of_a_linear_network(count: int) -> None:
    net, w, b = two_classes()
    x = images(count)
    f = x.double().flatten(1) @ w + b
    y = (f > 0).long()
    y[:20] = 1 - y[:20]
    margin = torch.where(y == (f > 0), f.abs(), -f.abs()) / w.abs().sum()
    # Just beyond the median of 101 margins 50 stay right; of 100 it is the lower one of the middle two.
    expected = margin.sort().values[count - 50 - 1].item()
    assert 0.001 < expected < 0.4
    found = eps_ref(net, (x, y), batch_size=40)
    assert expected < found.eps <= expected + 1e-4
    assert {k: c.correct for k, c in found.accuracies.items()} == {
        k: int((margin > k * found.eps).sum()) for k in (1.0, 0.5, 0.2)
    }
    assert found.accuracies[1.0].correct == 50
    others = fgsm_accuracies(net, (x, y), [0.0, found.eps])
    assert [c.correct for c in others.values()] == [count - 20, 50]


def test_eps_ref_takes_the_first_crossing() -> None:
    class Band(nn.Module):
        """Wrong between 0.02 and 0.1 from the image, right again beyond."""

        def forward(self, x: Tensor) -> Tensor:
            far = (x - 0.5).flatten(1).abs().mean(1)
            f = (far - 0.02) * (0.1 - far)
            return torch.stack([-f, f], 1) + 0 * x.sum()

    x, y = torch.full((10, 1, 2, 2), 0.5), torch.zeros(10, dtype=torch.int64)
    x += 1e-3
    found = eps_ref(Band(), (x, y))
    assert 0.018 < found.eps < 0.0192


def test_eps_ref_that_has_no_meaning() -> None:
    net, _, _ = two_classes()
    x = images(20)
    wrong = 1 - net(x.double()).argmax(1)
    with pytest.raises(ConfigError, match="half of the images are misclassified without any attack"):
        eps_ref(net, (x, wrong))
    constant = Linear(torch.zeros(2, 16), torch.tensor([1.0, 0.0]))
    with pytest.raises(
        ConfigError, match="more than half of the images stay correct under FGSM at every radius up to 1"
    ):
        eps_ref(constant, (x, torch.zeros(20, dtype=torch.int64)))
