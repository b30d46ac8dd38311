"""Agreement with the benchmark's own programs, whose statistics were recorded once (see `about` in oracle.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from layerwise.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt, generate_frost
from tests.evaluation.corruptions.pictures import large, small

ORACLE: dict[str, Any] = json.loads(Path(__file__).with_name("oracle.json").read_text())
IMAGES = {"cifar": small, "imagenet": large}
# Of the random ones; the oracle's images of one draw are as many as ours.
DRAWS = {"cifar": 3, "imagenet": 2}
SIGMAS = 4.5
"""What chance may do; one comparison in 150,000 goes further, of 1,140."""
LEVELS = 0.15
"""What arithmetic may do: in flat parts float32 and float64 fall on different sides of whole levels."""


def statistics(clean: Tensor, changed: Tensor) -> Tensor:
    """The six of oracle.json."""
    z = (changed * 255).round().double()
    difference = z - clean

    def mean(value: Tensor) -> Tensor:
        return value.flatten(1).mean(dim=1)

    gradient = (mean(z.diff(dim=2).abs()) + mean(z.diff(dim=3).abs())) / 2
    return torch.stack(
        [
            mean(z),
            z.flatten(1).std(dim=1, correction=0),
            mean(difference.abs()),
            gradient,
            mean(z[:, 0]) - mean(z[:, 2]),
            difference.flatten(1).std(dim=1, correction=0),
        ]
    ).mean(dim=1)


@pytest.mark.parametrize("table", IMAGES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_statistics_are_the_benchmark_s(name: str, table: str) -> None:
    clean, known = IMAGES[table](), ORACLE[table][name]
    for severity, expected in zip(SEVERITIES, known["severities"], strict=True):
        draws = 1 if known["draws"] == 1 else DRAWS[table]
        rows = torch.arange(len(clean))
        found = torch.stack(
            [
                statistics(clean, corrupt(clean / 255, name, severity, rows=rows + 1000 * draw, frost=generate_frost()))
                for draw in range(draws)
            ]
        ).mean(dim=0)
        mean, error = (torch.tensor(expected[key], dtype=torch.float64) for key in ("mean", "error"))
        allowed = LEVELS + SIGMAS * error * (1 + known["draws"] / draws) ** 0.5
        assert ((found - mean).abs() <= allowed).all(), (severity, found - mean, allowed)


@pytest.mark.parametrize("table", IMAGES)
def test_the_comparison_can_fail(table: str) -> None:
    """The mildest and the worst severity are told apart, for every corruption."""
    for name, known in ORACLE[table].items():
        first, last = (
            {key: torch.tensor(value, dtype=torch.float64) for key, value in known["severities"][at].items()}
            for at in (0, -1)
        )
        allowed = LEVELS + SIGMAS * last["error"] * (1 + known["draws"] / DRAWS[table]) ** 0.5
        assert ((first["mean"] - last["mean"]).abs() > allowed).any(), name
