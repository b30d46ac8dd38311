"""Draws that do not depend on ranks, micro-batches or restarts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerwise.core.random import Source, Stream, normal, uniform

X = torch.zeros(6, 3, 2)
DRAWS = pytest.mark.parametrize("draw", [uniform, normal])
Draw = Callable[..., Tensor]


@DRAWS
@given(
    parts=st.lists(st.integers(1, 4), min_size=1, max_size=5), seed=st.integers(0, 2**62), step=st.integers(0, 10**6)
)
def test_rows_drawn_in_parts_are_the_rows_of_the_whole(draw: Draw, parts: list[int], seed: int, step: int) -> None:
    total = sum(parts)
    whole = draw(torch.zeros(total, 3), Stream(seed, step), key="k")
    starts = [sum(parts[:i]) for i in range(len(parts))]
    pieces = [
        draw(torch.zeros(n, 3), Stream(seed, step, start, total), key="k")
        for n, start in zip(parts, starts, strict=True)
    ]
    assert torch.equal(torch.cat(pieces), whole)


@DRAWS
def test_equal_keys_give_equal_numbers_and_others_do_not(draw: Draw) -> None:
    first = draw(X, Stream(1, 2), key="start")
    assert torch.equal(draw(X, Stream(1, 2), key="start"), first)
    others = [draw(X, s, key=k) for s, k in [(Stream(2, 2), "start"), (Stream(1, 3), "start"), (Stream(1, 2), "conv1")]]
    others += [draw(X, Stream(12), key="start"), draw(X, Stream(1, 2), key="")]
    assert not any(torch.equal(other, first) for other in others)


def sources() -> list[Source]:
    return [Stream(0), torch.Generator().manual_seed(0), None]


@DRAWS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_type_are_those_of_the_example(draw: Draw, dtype: torch.dtype) -> None:
    for source in sources():
        found = draw(X.to(dtype), source)
        assert found.shape == X.shape
        assert found.dtype == dtype


@DRAWS
def test_a_stream_leaves_pytorchs_own_state_alone_and_a_generator_moves_on(draw: Draw) -> None:
    before, generator = torch.get_rng_state(), torch.Generator().manual_seed(3)
    draw(X, Stream(0))
    first, second = draw(X, generator), draw(X, generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, second)
    assert torch.equal(draw(X, torch.Generator().manual_seed(3)), first)
    draw(X)
    assert not torch.equal(torch.get_rng_state(), before)


def test_the_distributions_are_those_of_their_names() -> None:
    many = torch.zeros(200_000, 1, dtype=torch.float64)
    u, n = uniform(many, Stream(0)), normal(many, Stream(0))
    assert -1 <= float(u.min()) < -0.999
    assert 0.999 < float(u.max()) <= 1
    assert [float(v) for v in (u.mean(), u.var(), n.mean(), n.var())] == pytest.approx([0, 1 / 3, 0, 1], abs=0.02)
    kurtosis = float(n.pow(4).mean())
    assert kurtosis == pytest.approx(3, abs=0.1)
