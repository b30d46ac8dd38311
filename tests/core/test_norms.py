"""Norms and projections: what defines them, for every row by itself, and nothing undefined at zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from layerwise.core import norms
from layerwise.core.norms import Norm

P = pytest.mark.parametrize("p", ["linf", "l2", "l1"])
Function = Callable[[Tensor], Tensor]
DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}

values = st.floats(-100, 100).map(lambda v: round(v, 4))
batches = arrays(np.float64, (3, 2, 2), elements=values).map(torch.from_numpy)
wild = arrays(np.float64, (3, 4), elements=st.floats(-1e3, 1e3)).map(torch.from_numpy)
radii = st.floats(0, 50).map(lambda v: round(v, 4))
DEFINITION: dict[Norm, Callable[[list[float]], float]] = {
    "linf": lambda row: max(abs(v) for v in row),
    "l2": lambda row: math.sqrt(math.fsum(v * v for v in row)),
    "l1": lambda row: math.fsum(abs(v) for v in row),
}


@P
@given(z=batches)
def test_a_norm_is_what_its_name_says(p: Norm, z: Tensor) -> None:
    expected = [DEFINITION[p](row.flatten().tolist()) for row in z]
    assert norms.norm(z, p).tolist() == pytest.approx(expected, rel=1e-12)


@P
@given(z=batches, eps=radii)
def test_a_projection_lies_in_the_ball_and_stays_where_it_is(p: Norm, z: Tensor, eps: float) -> None:
    point = norms.project(z, p, eps)
    assert point.shape == z.shape
    assert bool((norms.norm(point, p) <= eps * (1 + 1e-12) + 1e-12).all())
    torch.testing.assert_close(norms.project(point, p, eps), point, rtol=1e-12, atol=1e-12)


@P
@given(z=batches, eps=radii)
def test_no_point_of_the_ball_is_nearer(p: Norm, z: Tensor, eps: float) -> None:
    """P is the nearest point of a convex set iff <z - P, w - P> <= 0 for all w in it; the largest <v, w> is eps ||v||_dual."""
    point = norms.project(z, p, eps).flatten(1)
    away = z.flatten(1) - point
    furthest = eps * norms.norm(away, DUAL[p])
    assert bool((furthest - (away * point).sum(1) <= 1e-9 * (1 + furthest)).all())


@P
@given(z=arrays(np.float64, (1, 2), elements=values).map(torch.from_numpy), eps=st.sampled_from([0.5, 3.0, 40.0]))
def test_no_point_of_a_grid_is_nearer(p: Norm, z: Tensor, eps: float) -> None:
    """The same by brute force in the plane."""
    line = torch.linspace(-eps, eps, 41, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    inside = grid[norms.norm(grid, p) <= eps]
    nearest = (inside - z).norm(dim=1).min()
    assert bool((norms.project(z, p, eps) - z).norm() <= nearest + 1e-9)


@P
@given(z=batches, eps=radii)
def test_what_lies_in_the_ball_is_bitwise_untouched(p: Norm, z: Tensor, eps: float) -> None:
    inside = norms.norm(z, p) <= eps
    assert torch.equal(norms.project(z, p, eps)[inside], z[inside])


@P
@given(z=batches, eps=radii, factor=st.floats(0.01, 100))
def test_projection_and_norm_scale_with_their_unit(p: Norm, z: Tensor, eps: float, factor: float) -> None:
    torch.testing.assert_close(norms.norm(-factor * z, p), factor * norms.norm(z, p), rtol=1e-12, atol=0)
    expected = factor * norms.project(z, p, eps)
    torch.testing.assert_close(norms.project(factor * z, p, factor * eps), expected, rtol=1e-9, atol=1e-9)


@P
@given(z=batches, factor=st.floats(0.01, 100))
def test_normalized_rows_have_norm_one_or_zero_and_forget_their_scale(p: Norm, z: Tensor, factor: float) -> None:
    unit = norms.normalize(z, p)
    expected = z.flatten(1).any(1).double()
    torch.testing.assert_close(norms.norm(unit, p), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(norms.normalize(factor * z, p), unit, rtol=1e-12, atol=1e-15)
    assert bool((unit.sign() == z.sign()).all())


@P
@given(z=batches, eps=radii)
def test_rows_do_not_know_of_each_other(p: Norm, z: Tensor, eps: float) -> None:
    functions: list[Function] = [
        partial(norms.project, p=p, eps=eps),
        partial(norms.normalize, p=p),
        partial(norms.norm, p=p),
    ]
    for function in functions:
        assert torch.equal(function(z), torch.cat([function(z[i : i + 1]) for i in range(len(z))]))


@P
@example(z=torch.full((3, 4), 7.62e-158, dtype=torch.float64), eps=0.0)
@given(z=wild, eps=st.floats(0, 50))
def test_nothing_is_undefined_in_value_or_gradient(p: Norm, z: Tensor, eps: float) -> None:
    """Entries down to the smallest number there is, and a row of zeros."""
    z[1] = 0
    functions: list[Function] = [partial(norms.project, p=p, eps=eps), partial(norms.norm, p=p)]
    for function in functions:
        leaf = z.clone().requires_grad_()
        value = function(leaf)
        torch.autograd.backward(value.sum())
        assert leaf.grad is not None
        assert bool(value.isfinite().all())
        assert bool(leaf.grad.isfinite().all())
        assert not value[1].any()


@P
@given(z=batches)
def test_normalizing_a_row_of_zeros_is_defined_in_value_and_gradient(p: Norm, z: Tensor) -> None:
    z[1] = 0
    leaf = z.clone().requires_grad_()
    unit = norms.normalize(leaf, p)
    torch.autograd.backward(unit.sum())
    assert leaf.grad is not None
    assert bool(unit.isfinite().all())
    assert bool(leaf.grad.isfinite().all())
    assert not unit[1].any()


@P
@given(z=batches, eps=radii)
def test_a_radius_may_be_a_tensor(p: Norm, z: Tensor, eps: float) -> None:
    found = norms.project(z, p, torch.tensor(eps, dtype=torch.float64))
    torch.testing.assert_close(found, norms.project(z, p, eps), rtol=1e-14, atol=0)


@P
def test_the_ball_of_radius_zero_is_a_point(p: Norm) -> None:
    assert not norms.project(torch.tensor([[3.0, -4.0], [0.0, 0.0]]), p, 0.0).any()


def test_a_division_by_zero_gives_the_dividend_and_a_gradient() -> None:
    z, divisor = torch.tensor([6.0, 0.0, 5.0], requires_grad=True), torch.tensor([2.0, 0.0, 0.0], requires_grad=True)
    found = norms.safe_divide(z, divisor)
    torch.autograd.backward(found.sum())
    assert found.tolist() == [3.0, 0.0, 5.0]
    assert z.grad is not None
    assert divisor.grad is not None
    assert z.grad.tolist() == [0.5, 1.0, 1.0]
    assert divisor.grad.tolist() == [-1.5, 0.0, 0.0]


def test_one_number_a_row_broadcasts_over_the_row() -> None:
    assert norms.rows(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4, 5)).shape == (2, 1, 1, 1)
