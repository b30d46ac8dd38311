"""Boundary distances of linear models, and the plane."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from layerwise.errors import ConfigError, DataError
from layerwise.evaluation.measures import boundary_distance, decision_boundary
from layerwise.evaluation.measures.boundary import orthonormal

pytestmark = pytest.mark.usefixtures("float64")


def two_classes(*w: float, bias: float = 0.0) -> nn.Linear:
    """Class 0 where w x + bias > 0."""
    model = nn.Linear(len(w), 2)
    model.weight.data = torch.tensor([list(w), [0.0] * len(w)])
    model.bias.data = torch.tensor([bias, 0.0])
    return model


def test_the_distance_of_a_linear_model_is_the_analytic_minimum_over_the_drawn_directions() -> None:
    """Along v the boundary is |f| / |w v| away, on one side of x or the other."""
    torch.manual_seed(0)
    w, bias, x = torch.randn(6), 0.2, torch.rand(10, 6)
    found = boundary_distance(two_classes(*w.tolist(), bias=bias), x, directions=4, reach=1e4, steps=40, seed=3)
    v = orthonormal(x, 4, 3)
    distances = (x @ w + bias).abs()[:, None] / (v @ w).abs()[None]
    assert found.minima == pytest.approx(distances.amin(1).tolist(), rel=1e-9)
    assert found.per_direction == pytest.approx(distances.mean(0).tolist(), rel=1e-9)
    assert found.distance == pytest.approx(float(distances.amin(1).mean()), rel=1e-9)
    assert found.rms == pytest.approx(found.distance / math.sqrt(6))
    assert (found.unreached, found.dimensions) == (0.0, 6)


def test_a_whole_basis_gives_back_the_distance_of_the_plane() -> None:
    """sum_j (w v_j)^2 = ||w||^2 for any orthonormal basis, so sum_j t_j^-2 = (||w|| / |f|)^2: no direction has to be known."""
    w = torch.tensor([1.0, 2.0, -2.0])
    x = torch.tensor([[0.5, 0.25, 0.1]])
    found = boundary_distance(two_classes(*w.tolist()), x, directions=1000, reach=1e6, steps=50)
    assert len(found.per_direction) == 3
    inverse = sum(t**-2 for t in found.per_direction)
    assert inverse == pytest.approx(float(w.square().sum() / (x @ w).square()), rel=1e-9)


def test_directions_are_orthonormal_and_shaped_like_an_image() -> None:
    v = orthonormal(torch.rand(2, 3, 4, 4), 20, 0)
    assert v.shape == (20, 3, 4, 4)
    assert torch.allclose(v.flatten(1) @ v.flatten(1).T, torch.eye(20))
    assert not torch.allclose(v, orthonormal(torch.rand(2, 3, 4, 4), 20, 1))


def test_what_is_not_reached_counts_as_the_reach() -> None:
    model, x = two_classes(1.0, 0.0), torch.tensor([[0.5, 0.0], [3.0, 0.0]])
    found = boundary_distance(model, x, reach=1.0, steps=20)
    assert found.minima[0] < 1.0
    assert found.minima[1] == 1.0
    assert found.unreached >= 0.5
    constant = boundary_distance(two_classes(0.0, 0.0, bias=1.0), x)
    assert (constant.unreached, constant.distance, constant.reach) == (1.0, math.sqrt(2), math.sqrt(2))


def test_misclassified_images_are_measured_counted_as_zero_or_dropped() -> None:
    model, x, y = two_classes(1.0), torch.tensor([[0.5], [0.25]]), torch.tensor([0, 1])
    measured, zero, dropped = (
        boundary_distance(model, x, y, reach=8.0, steps=25, misclassified=how) for how in ("prediction", "zero", "drop")
    )
    assert [r.misclassified for r in (measured, zero, dropped)] == [1, 1, 1]
    assert measured.minima == pytest.approx((0.5, 0.25), rel=1e-6)
    assert zero.minima == pytest.approx((0.5, 0.0), rel=1e-6)
    assert zero.per_direction == pytest.approx((0.25,), rel=1e-6)
    assert dropped.minima == pytest.approx((0.5,), rel=1e-6)
    with pytest.raises(ConfigError, match="every image is misclassified"):
        boundary_distance(model, x, 1 - torch.tensor([0, 0]), misclassified="drop")
    with pytest.raises(DataError, match="needs labels"):
        boundary_distance(model, x, misclassified="zero")


def test_settings_that_cannot_be_are_refused() -> None:
    model, x = two_classes(1.0), torch.ones(1, 1)
    with pytest.raises(ConfigError, match="type 'prediction', 'zero' or 'drop'"):
        boundary_distance(model, x, misclassified="keep")  # type: ignore[arg-type]
    for wrong in ({"directions": 0}, {"steps": 0}, {"reach": 0.0}, {"reach": math.inf}):
        with pytest.raises(ConfigError, match="each has to be above 0"):
            boundary_distance(model, x, **wrong)


class Corner(nn.Module):
    """Class 2 where both numbers are above 0.5, else class 1 where the first is, else class 0."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = (x.flatten(1) > 0.5).long().unbind(1)
        return nn.functional.one_hot(first * (1 + second), 3).to(x)


@pytest.mark.parametrize("shape", [(2,), (2, 1, 1)])
def test_the_plane_has_the_first_feature_across_and_the_second_upwards(shape: tuple[int, ...]) -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]).reshape(4, *shape)
    found = decision_boundary(Corner(), x, torch.tensor([0, 1, 2, 2]), points=4, margin=0.0)
    assert found.first == found.second == pytest.approx((0, 1 / 3, 2 / 3, 1))
    assert found.predicted == ((0, 0, 1, 1), (0, 0, 1, 1), (0, 0, 2, 2), (0, 0, 2, 2))
    assert found.accuracy == 0.75
    assert found.points[3] == (0.0, 1.0)


def test_the_plane_reaches_beyond_the_examples() -> None:
    found = decision_boundary(Corner(), torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([0, 2]), margin=0.5)
    assert (found.first[0], found.first[-1]) == pytest.approx((-0.5, 1.5))
    assert (found.second[0], found.second[-1]) == pytest.approx((-1.0, 3.0))


def test_only_planes_can_be_drawn() -> None:
    with pytest.raises(DataError, match=r"shape \(3,\)"):
        decision_boundary(Corner(), torch.rand(4, 3), torch.zeros(4))


@pytest.mark.parametrize(("weights", "leaning"), [([1.0, 0.0], 1.0), ([0.0, 1.0], 0.0), ([1.0, 1.0], 0.5)])
def test_a_boundary_leans_on_the_feature_that_decides(weights: list[float], leaning: float) -> None:
    model = nn.Linear(2, 2)
    model.load_state_dict({"weight": torch.tensor([weights, [0.0, 0.0]]), "bias": torch.zeros(2)})
    x = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    found = decision_boundary(model, x, torch.tensor([1, 0]), points=20)
    assert found.leaning == pytest.approx(leaning, abs=0.03)
