from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from layerwise.attacks import InputAttack, ThreatModel
from layerwise.core.random import Source
from layerwise.errors import ConfigError
from layerwise.evaluation import evaluate
from tests.evaluation.problems import trained
from tests.networks import batch


@pytest.mark.parametrize(
    ("threat", "text"),
    [
        (ThreatModel(), "linf, eps 8/255"),
        (ThreatModel("l2", 0.5), "l2, eps 0.5"),
        (ThreatModel("linf", 0.2), "linf, eps 0.2"),
    ],
)
def test_text(threat: ThreatModel, text: str) -> None:
    assert str(threat) == text


def test_units_of_0_to_255_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"eps=8 is in units of 0 to 255 pixels, ours are 0 to 1; type eps=8/255"):
        ThreatModel("linf", 8)
    with pytest.raises(
        ConfigError, match=r"eps=128 is above 13.8564, .*\(3, 8, 8\); pixels are 0 to 1: type eps=128/255"
    ):
        evaluate(trained(), batch(4), threat=ThreatModel("l2", 128), progress=False)


@pytest.mark.parametrize("eps", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_radii_that_cannot_be(norm: str, eps: float) -> None:
    with pytest.raises(ConfigError, match="is not a radius"):
        ThreatModel(norm, eps)  # type: ignore[arg-type]


def test_unknown_norm() -> None:
    with pytest.raises(ConfigError, match=r"norm='l1' is not a threat model; type 'linf' or 'l2'"):
        ThreatModel("l1", 0.1)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Shift(InputAttack):
    """Adds the same number to every pixel, whatever is allowed."""

    name: ClassVar[str] = "shift"

    by: float

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        return x + self.by


@pytest.mark.parametrize(
    ("norm", "eps", "by", "message"),
    [
        ("linf", 0.1, 0.1001, r"left the threat model \(linf, eps 0.1\): an image lies at linf distance 0.1001"),
        ("l2", 0.1, 0.05, r"left the threat model \(l2, eps 0.1\)"),
        ("linf", 1.0, 0.6, r"left the pixel range: its pixels lie in \[1.1, 1.1\]"),
        ("linf", 1.0, float("nan"), r"left the pixel range: its pixels lie in \[nan, nan\]"),
    ],
)
def test_an_attack_that_cheats_is_an_error(norm: str, eps: float, by: float, message: str) -> None:
    x, y = torch.full((4, 3, 8, 8), 0.5), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ConfigError, match=f"attack shift by={by:g} {message}" if by == by else message):
        evaluate(trained(), (x, y), threat=ThreatModel(norm, eps), attacks=[Shift(by)], progress=False)  # type: ignore[arg-type]


def test_rounding_is_no_cheating() -> None:
    x, y = torch.full((4, 3, 8, 8), 0.5), torch.zeros(4, dtype=torch.int64)
    evaluate(trained(), (x, y), threat=ThreatModel("linf", 0.1), attacks=[Shift(0.1 + 5e-7)], progress=False)


def test_an_attack_that_changes_the_shape() -> None:
    with pytest.raises(ConfigError, match=r"attack a made images of shape \(2, 3\) out of \(2, 4\)"):
        ThreatModel().check(torch.zeros(2, 4), torch.zeros(2, 3), attack="a")
