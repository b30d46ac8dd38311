"""Calibration against numbers that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from layerwise.evaluation.measures.calibration import FEW, Calibration, calibration


def test_error_and_bins_are_those_counted_by_hand() -> None:
    """Four images of 90 % confidence, of which two are correct, and two of 60 %, both correct: (4 x 0.4 + 2 x 0.4) / 6."""
    confident = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.6, 0.6]).double()
    logits = torch.stack([confident.log(), (1 - confident).log()], dim=1)
    found = calibration(nn.Identity(), logits, torch.tensor([0, 0, 1, 1, 0, 0]), bins=10, batch_size=4)
    assert [n for n in found.images if n] == [2, 4]
    assert [a for n, a in zip(found.images, found.accuracy, strict=True) if n] == [1.0, 0.5]
    assert found.error == pytest.approx(0.4)
    assert "80.0 % sure and 66.7 % correct" in found.sentence()


def test_the_line_leaves_out_bins_of_few_images() -> None:
    axes = Figure().subplots()
    Calibration((FEW, FEW - 1, 0, FEW), (0.1, 0.4, 0.0, 0.9), (0.2, 1.0, 0.0, 0.8)).draw(
        [axes], {"marker": "o", "color": "C0"}
    )
    assert np.asarray(axes.lines[0].get_xydata()).tolist() == [[10.0, 20.0], [90.0, 80.0]]
    assert np.asarray(axes.collections[0].get_offsets()).shape == (3, 2)
    assert f"fewer than {FEW}" in Calibration.caption
