from __future__ import annotations

import math

import pytest
import torch

from layerwise.evaluation.corruptions.draws import Draws, _stir_anywhere, _stir_here


def draws(rows: int = 64, seed: int = 0, key: str = "fog/1", start: int = 0) -> Draws:
    return Draws(seed, key, torch.arange(start, start + rows))


def test_a_row_draws_the_same_in_any_company() -> None:
    for kind in ("uniform", "normal"):
        together = getattr(draws(50), kind)("x", 3, 5)
        torch.testing.assert_close(getattr(draws(7, start=20), kind)("x", 3, 5), together[20:27], rtol=0, atol=0)


def test_the_generator_is_splitmix64() -> None:
    def reference(state: int) -> int:
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        return state ^ (state >> 31)

    import hashlib

    golden = 0x9E3779B97F4A7C15
    key = int.from_bytes(hashlib.blake2b(b"5/snow/2/x", digest_size=8).digest(), "little")
    start = reference((key + 4 * golden) % 2**64)
    expected = [(reference((start + (i + 1) * golden) % 2**64) >> 40) / 2**24 for i in range(6)]
    assert draws(1, seed=5, key="snow/2", start=3).uniform("x", 6)[0].tolist() == expected


def test_a_cpu_s_bits_are_those_of_other_devices() -> None:
    here = torch.randint(-(1 << 63), (1 << 63) - 1, (3, 1000), generator=torch.Generator().manual_seed(0))
    there = here.clone()
    _stir_here(here, torch.empty_like(here))
    _stir_anywhere(there, torch.empty_like(there))
    assert torch.equal(here, there)


@pytest.mark.parametrize("other", [draws(seed=1), draws(key="fog/2"), draws(start=64)])
def test_other_seeds_keys_and_rows_draw_other_numbers(other: Draws) -> None:
    a, b = draws().uniform("x", 1000), other.uniform("x", 1000)
    correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
    assert abs(float(correlation)) < 4.5 / math.sqrt(a.numel())


def test_several_draws_at_once_are_each_its_own() -> None:
    shapes = {"x": (3, 5), "y": (1,), "z": (2, 2)}
    for (what, shape), found in zip(shapes.items(), draws(4).uniforms(shapes), strict=True):
        assert torch.equal(found, draws(4).uniform(what, *shape))


def test_other_purposes_draw_other_numbers() -> None:
    assert not torch.equal(draws().uniform("x", 4), draws().uniform("y", 4))


def test_uniform_numbers_are_uniform() -> None:
    u = draws(1000).uniform("x", 1000)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    counts = torch.histc(u, 100, 0, 1)
    chi2 = float(((counts - 10_000) ** 2 / 10_000).sum())
    assert 99 - 4.5 * math.sqrt(198) < chi2 < 99 + 4.5 * math.sqrt(198)


def test_normal_numbers_are_normal() -> None:
    n = draws(1000).normal("x", 1001).double()
    size = n.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((n**power).mean()) - moment) < 4.5 * math.sqrt(variance / size)
    tail = (n > 3).double().mean().item()
    assert tail == pytest.approx(0.00134990, abs=4.5 * math.sqrt(0.00135 / size))
    # Neighbours in a row, and the two halves that share a transform.
    for a, b in ((n[:, :-1], n[:, 1:]), (n[:, :500], n[:, 501:])):
        assert abs(float((a * b).mean())) < 4.5 / math.sqrt(a.numel())


def test_whole_numbers_fill_their_range() -> None:
    found = draws(1000).integers("x", torch.tensor([3, 5]), 2)
    assert [sorted(set(column.tolist())) for column in found.unbind(1)] == [[0, 1, 2], [0, 1, 2, 3, 4]]
