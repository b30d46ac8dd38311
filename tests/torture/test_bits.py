"""The same seed on the same machine gives the same bits, in another process too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forks import exit_code
from tests.torture.child import starved
from tests.torture.outcome import differing, outcome


@pytest.mark.parametrize("threads", [1, 2])
def test_two_processes_with_as_many_threads_give_the_same_bits(tmp_path: Path, threads: int) -> None:
    for name in ("first", "second"):
        assert exit_code(starved, str(tmp_path / name), 0, threads) == 0
    assert differing(outcome(tmp_path / "first"), outcome(tmp_path / "second")) == []


def test_another_seed_gives_other_bits(tmp_path: Path) -> None:
    for seed in (0, 1):
        assert exit_code(starved, str(tmp_path / str(seed)), 0, 1, seed) == 0
    found = differing(outcome(tmp_path / "0"), outcome(tmp_path / "1"))
    assert any(where.startswith(".kept[1]") for where in found)
