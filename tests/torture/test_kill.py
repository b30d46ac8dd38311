"""A run that is killed, at moments of writing and at any others, ends as the one that was left alone, bit by bit."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from layerwise.training import checkpoint
from tests.forks import started
from tests.methods.cases import METHODS
from tests.torture.child import killed
from tests.torture.outcome import differing, outcome
from tests.torture.size import TORTURE, sized

CHOSEN = [name for name in ("LAT", "SLAT", "DeepDefense", "FreeAT") if name in METHODS]
"""The last batch's noise is LAT's state, and FreeAT's; SLAT has two passes, Deep Defense second derivatives."""
CASES = sorted(METHODS) if TORTURE else CHOSEN
KILLS = sized(-(-6 // len(CASES)), -(-40 // len(CASES)))


@pytest.mark.parametrize("method", CASES)
def test_killed_runs_end_as_the_one_that_was_left_alone(tmp_path: Path, figures: dict[str, Any], method: str) -> None:
    draw, count, whole = random.Random(f"{method}/{KILLS}"), tmp_path / "count", tmp_path / "whole"
    begun = time.perf_counter()
    assert ended(method, whole, -1, 0.0, count) == 0
    seconds, expected = time.perf_counter() - begun, outcome(whole)
    kills = {"writing": 0, "any": 0}
    folder = tmp_path / "broken"
    while sum(kills.values()) < KILLS:
        # In turn: at a moment of writing, and whenever it happens to be.
        kind = "writing" if kills["writing"] <= kills["any"] else "any"
        moment = draw.randrange(int(count.read_text())) if kind == "writing" else 10**9
        after = draw.uniform(0, seconds) if kind == "any" else None
        code = ended(method, folder, moment, draw.random(), count, after)
        assert code in (0, -9)
        if code == 0:  # it was done before: once more from the beginning
            assert differing(expected, outcome(folder)) == []
            shutil.rmtree(folder)
            continue
        kills[kind] += 1
        # What was being written is not taken for whole, nor does it stand for damage.
        assert checkpoint.load_latest(folder / "checkpoints")[1] == []
    assert ended(method, folder, 10**9, 0.0, count) == 0
    assert differing(expected, outcome(folder)) == []
    left = [p.name for p in folder.rglob("*") if p.name.endswith((".part", ".writing"))]
    assert left == []
    figures.setdefault("kills", {})[method] = kills


def ended(method: str, folder: Path, at: int, share: float, count: Path, after: float | None = None) -> int | None:
    """The exit code of a process that trains."""
    process = started(killed, method, str(folder), at, share, str(count))
    process.join(after)
    if process.is_alive() and after is not None:
        process.kill()
        process.join()
    return process.exitcode


def test_the_comparison_sees_a_bit(tmp_path: Path) -> None:
    assert ended("Standard", tmp_path / "run", -1, 0.0, tmp_path / "count") == 0
    first, second = outcome(tmp_path / "run"), outcome(tmp_path / "run")
    assert differing(first, second) == []
    states = second["kept"][3][0]["random"]
    states["numpy"] = states["numpy"] + torch.eye(1, len(states["numpy"]), dtype=torch.int64)[0]
    second["state"]["lr"] += 1e-16
    assert differing(first, second) == [".state.lr", ".kept[3][0].random.numpy"]
