"""What the documentation says of the audits and of MeanSparse is what their records hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import audits, mean_sparse

ROOT = Path(__file__).resolve().parents[2]


def page(name: str) -> str:
    """A page of the documentation with its lines joined."""
    return " ".join((ROOT / "docs" / name).read_text(encoding="utf-8").split())


def record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks/results" / name).read_text(encoding="utf-8"))
    return found


def test_the_audits_are_told_as_recorded() -> None:
    lines = audits.said(record("audits.json"))
    assert len(lines) == 3
    for line in lines:
        assert line in page("evaluation.md")


@pytest.mark.parametrize("network", ["digits_cnn", "timm ViT", "MiniLM"])
def test_what_the_figures_show(network: str) -> None:
    """The earlier the layer the less it stands; attacks win at the largest radius, random noise does nearly nothing."""
    found = record("audits.json")[network]
    halves = list(found["half_radius"].values())
    assert halves == sorted(halves)
    for layer in found["layers"]:
        assert layer["attacked"][-1] == 0
        assert layer["targeted"][-1] >= 0.99 * found["predictions"]
        assert min(layer["noisy"]) >= found["clean"] - 0.09 * found["predictions"]


def test_mean_sparse_is_told_as_recorded() -> None:
    found = record("mean-sparse.json")
    assert found["threshold 0 changes no bit"]
    assert mean_sparse.said(found) in page("methods.md")
