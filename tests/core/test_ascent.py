"""Each ascent rule by its formula, and the methods' updates that their chains make."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from layerwise.core import norms
from layerwise.core.ascent import Rule, accumulate, chain, normalize, project, scale, scale_by_range, sign
from layerwise.core.norms import Norm

P = pytest.mark.parametrize("p", ["linf", "l2", "l1"])
numbers = st.floats(-100, 100).map(lambda v: round(v, 4))
batches = arrays(np.float64, (3, 2, 2), elements=numbers).map(torch.from_numpy)
sizes = st.floats(0, 10).map(lambda v: round(v, 4))
ZERO = torch.zeros(3, 2, 2, dtype=torch.float64)


@given(g=batches, previous=batches)
def test_sign_keeps_the_sign_and_zero_is_zero(g: Tensor, previous: Tensor) -> None:
    found = chain(sign())(g, previous)
    assert found.tolist() == [[[float(v > 0) - float(v < 0) for v in row] for row in m] for m in g.tolist()]


@given(g=batches, size=sizes)
def test_scale_multiplies(g: Tensor, size: float) -> None:
    assert torch.equal(chain(scale(size))(g), size * g)
    assert torch.equal(chain(scale(torch.tensor(size, dtype=torch.float64)))(g), size * g)


@P
@given(g=batches)
def test_normalize_divides_each_example_by_its_norm(p: Norm, g: Tensor) -> None:
    found = chain(normalize(p))(g)
    for row, unit in zip(g, found, strict=True):
        size = norms.norm(row[None], p)
        torch.testing.assert_close(unit * size, row, rtol=1e-12, atol=1e-14)
        assert bool(row.any()) or not unit.any()


@P
@given(g=batches)
def test_normalize_over_the_batch_divides_by_the_norm_of_the_whole(p: Norm, g: Tensor) -> None:
    found = chain(normalize(p, batch=True))(g)
    assert found.shape == g.shape
    torch.testing.assert_close(found * norms.norm(g[None], p), g, rtol=1e-12, atol=1e-14)
    assert float(norms.norm(found[None], p)) == pytest.approx(float(g.any()))


@given(g=batches, eps=sizes)
def test_scale_by_range_takes_the_range_of_the_gradient_not_of_the_update(g: Tensor, eps: float) -> None:
    span = max(g.flatten().tolist()) - min(g.flatten().tolist())
    torch.testing.assert_close(chain(sign(), scale_by_range(eps))(g), eps * span * g.sign(), rtol=1e-12, atol=1e-12)
    known = chain(sign(), scale_by_range(eps, span=torch.tensor(2.0, dtype=torch.float64)))(g)
    torch.testing.assert_close(known, 2 * eps * g.sign())


@given(g=batches, previous=batches, decay=st.floats(0, 1))
def test_accumulate_decays_what_was_there(g: Tensor, previous: Tensor, decay: float) -> None:
    rule = chain(accumulate(decay))
    torch.testing.assert_close(rule(g, previous), decay * previous + g)
    assert torch.equal(rule(g), g)
    assert torch.equal(rule(g, ZERO), g)


@P
@given(g=batches, previous=batches, eps=sizes)
def test_project_comes_back_to_the_ball_and_stays(p: Norm, g: Tensor, previous: Tensor, eps: float) -> None:
    found = chain(accumulate(), project(p, eps))(g, previous)
    assert bool((norms.norm(found, p) <= eps * (1 + 1e-12) + 1e-12).all())
    torch.testing.assert_close(chain(project(p, eps))(found), found, rtol=1e-12, atol=1e-12)


RULES: list[Rule] = [
    sign(),
    normalize("l2"),
    normalize("l2", batch=True),
    scale(0.5),
    scale_by_range(0.5),
    accumulate(0.9),
]
RULES += [project("linf", 1.0), project("l2", 1.0), project("l1", 1.0)]


@pytest.mark.parametrize("rule", RULES)
@given(g=batches, previous=batches)
def test_a_rule_is_pure_and_defined_on_rows_of_zeros(rule: Rule, g: Tensor, previous: Tensor) -> None:
    g[1], previous[1] = 0, 0
    kept = g.clone(), previous.clone()
    found = rule(g, g, previous)
    assert bool(found.isfinite().all())
    assert not found[1].any()
    assert torch.equal(found, rule(g, g, previous))
    assert torch.equal(g, kept[0])
    assert torch.equal(previous, kept[1])


@given(g=batches, previous=batches)
def test_the_stages_go_first_to_last_and_each_sees_the_gradient_and_what_was_there(g: Tensor, previous: Tensor) -> None:
    seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def spy(update: Tensor, gradient: Tensor, before: Tensor | None) -> Tensor:
        seen.append((update, gradient, before))
        return update + 1

    found = chain(spy, scale(2.0), spy)(g, previous)
    assert torch.equal(found, 2 * (g + 1) + 1)
    assert [torch.equal(a, b) for a, b in zip((s[0] for s in seen), (g, 2 * (g + 1)), strict=True)] == [True, True]
    assert all(s[1] is g and s[2] is previous for s in seen)
    assert chain()(g) is g


@given(g=batches, step=st.sampled_from([0.01, 0.5]))
def test_order_matters(g: Tensor, step: float) -> None:
    """A sign step is scaled; a scaled step whose sign is taken has size 1."""
    assert torch.equal(chain(sign(), scale(step))(g), step * g.sign())
    assert torch.equal(chain(scale(step), sign())(g), g.sign())


@given(gradients=st.lists(batches, min_size=1, max_size=5))
def test_the_chain_of_pgd(gradients: list[Tensor]) -> None:
    rule, r, expected = chain(sign(), scale(0.1), accumulate(), project("linf", 0.25)), None, ZERO
    for g in gradients:
        r, expected = rule(g, r), (expected + 0.1 * g.sign()).clamp(-0.25, 0.25)
    assert r is not None
    torch.testing.assert_close(r, expected)


@given(gradients=st.lists(batches, min_size=1, max_size=5))
def test_the_chain_of_mi_fgsm(gradients: list[Tensor]) -> None:
    momentum, m, expected = chain(normalize("l1"), accumulate(0.9)), None, ZERO
    for g in gradients:
        size = g.abs().sum((1, 2), keepdim=True)
        m, expected = momentum(g, m), 0.9 * expected + torch.where(size > 0, g / size.clamp(min=1e-9), g)
    assert m is not None
    torch.testing.assert_close(m, expected)


@given(gradients=st.lists(batches, min_size=1, max_size=5))
def test_the_chain_of_anp(gradients: list[Tensor]) -> None:
    """Eq. 2: r <- (1 - eta) r + (eps / k) g / ||g||_2, each example by itself."""
    eta, eps, k = 0.3, 2.0, 5
    rule, r, expected = chain(normalize("l2"), scale(eps / k), accumulate(1 - eta)), None, ZERO
    for g in gradients:
        size = g.flatten(1).norm(dim=1)[:, None, None]
        r, expected = rule(g, r), (1 - eta) * expected + eps / k * torch.where(size > 0, g / size.clamp(min=1e-9), g)
    assert r is not None
    torch.testing.assert_close(r, expected)
