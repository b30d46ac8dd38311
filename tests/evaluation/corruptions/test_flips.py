"""Sequences in which a classifier's every flip was put there by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layerwise.data.splits import TensorSplit
from layerwise.errors import CheckpointError, ConfigError, DataError
from layerwise.evaluation.corruptions import (
    EXTRA_SEQUENCES,
    SEQUENCES,
    STANDARD_SEQUENCES,
    FlipProbabilities,
    flip_probabilities,
    flip_rates,
    store,
)
from tests.evaluation.corruptions.test_metrics import Reads


def data() -> TensorSplit:
    return TensorSplit(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))


def write(folder: Path, name: str, own: list[list[int]], base: list[list[int]]) -> None:
    """NAME.npy of two images' frames, in which the network (column 0) and the base (column 1) give these answers, then the last one."""
    frames = torch.zeros(2, SEQUENCES[name][1], 8, 8, 1, dtype=torch.uint8)
    for column, answers in enumerate((own, base)):
        for image, said in enumerate(answers):
            whole = torch.tensor(said + [said[-1]] * (frames.shape[1] - len(said)))
            frames[image, :, 0, column, 0] = (whole * 255).to(torch.uint8)
    np.save(folder / f"{name}.npy", frames.numpy())


def measured(folder: Path, *names: str, rule: str = "benchmark") -> tuple[FlipProbabilities, FlipProbabilities]:
    own, base = (
        flip_probabilities(Reads(c), data(), names=names, folder=folder, rule=rule)  # type: ignore[arg-type]
        for c in (0, 1)
    )
    return own, base


def test_frames_are_compared_with_the_one_before_and_noise_with_the_first(tmp_path: Path) -> None:
    for name in ("rotate", "shot_noise"):
        write(tmp_path, name, [[0, 1, 1, 0, 0], [1, 1, 1, 0, 1]], [[0], [1, 0, 1]])
    own, base = measured(tmp_path, "rotate", "shot_noise")
    # Changes: 2 + 2 and 0 + 2. Away from the first: 2 + 1 and 0 + 1.
    assert own.flips["rotate"].flips == 4
    assert base.flips["rotate"].flips == 2
    assert own.flips["shot_noise"].flips == 3
    assert base.flips["shot_noise"].flips == 1
    assert own.flips["rotate"].comparisons == 60
    assert own.flips["rotate"].probability == 4 / 60
    rates = flip_rates(own, base)
    assert rates.fr["rotate"].value == pytest.approx(200)
    assert rates.fr["shot_noise"].value == pytest.approx(300)
    assert rates.mfr is None
    own, base = measured(tmp_path, "rotate", "shot_noise", rule="adjacent")
    rates = flip_rates(own, base)
    assert rates.fr["rotate"].value == rates.fr["shot_noise"].value == pytest.approx(200)


def test_mfr_is_the_hand_computed_one(tmp_path: Path) -> None:
    for name in SEQUENCES:
        write(tmp_path, name, [[0, 1], [1]], [[0, 1, 0], [1, 0]])
    write(tmp_path, "tilt", [[0, 1, 0, 1, 0, 1, 0], [1]], [[0, 1, 0], [1, 0]])
    own, base = measured(tmp_path, *SEQUENCES)
    rates = flip_rates(own, base)
    # A change among the base's three; noise of 31 frames, away from the first in 30 of the base's 1 + 30; tilt 6 of 3.
    assert rates.fr["scale"].value == pytest.approx(100 / 3)
    assert rates.fr["gaussian_noise"].value == pytest.approx(100 * 30 / 31)
    assert rates.mfr is not None
    assert rates.extra_mfr is not None
    assert rates.mfr.value == pytest.approx((7 * 100 / 3 + 2 * 3000 / 31 + 200) / 10)
    assert rates.extra_mfr.value == pytest.approx((3 * 100 / 3 + 3000 / 31) / 4)
    assert len(STANDARD_SEQUENCES) == 10
    assert len(EXTRA_SEQUENCES) == 4


def test_a_network_against_itself_has_100(tmp_path: Path) -> None:
    for name in STANDARD_SEQUENCES:
        write(tmp_path, name, [[0, 1], [1]], [[0, 1], [1]])
    own, base = measured(tmp_path, *STANDARD_SEQUENCES)
    rates = flip_rates(own, base)
    assert rates.mfr is not None
    assert rates.mfr.value == pytest.approx(100)


def test_probabilities_have_the_interval_of_their_sequences(tmp_path: Path) -> None:
    write(tmp_path, "rotate", [[0, 1, 1, 0, 1], [1, 0]], [[0, 1], [1]])
    own, base = measured(tmp_path, "rotate")
    share = np.array([3 / 30, 1 / 30])
    found = own.probability("rotate")
    assert found.value == pytest.approx(100 * share.mean())
    assert found.half_width == pytest.approx(100 * 1.959964 * share.std(ddof=1) / np.sqrt(2), rel=1e-6)
    rate = flip_rates(own, base).fr["rotate"]
    assert rate.value == pytest.approx(400)
    assert rate.half_width == pytest.approx(100 * 1.959964 * np.std([3, 1], ddof=1) * np.sqrt(2), rel=1e-6)


def test_stored_sequences_give_what_generated_ones_do(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 3, 8, 8), generator=generator).to(torch.uint8)
    split, names = TensorSplit(images, torch.arange(30) % 2), ("translate", "gaussian_noise")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    straight = flip_probabilities(net, split, names=names, seed=3)
    store(tmp_path, split, names=names, sequences=True, seed=3)
    read = flip_probabilities(net, split, names=names, seed=3, folder=tmp_path, batch_size=7)
    assert straight.flips == read.flips
    assert straight.flips["translate"].flips > 0
    assert straight.sums == read.sums
    assert straight.sources != read.sources


def test_records_survive_json_and_impossible_ones_do_not(tmp_path: Path) -> None:
    write(tmp_path, "rotate", [[0, 1], [1]], [[0, 1], [1]])
    own, _ = measured(tmp_path, "rotate")
    value = json.loads(json.dumps(own.to_dict()))
    assert FlipProbabilities.from_dict(value) == own
    assert json.loads(json.dumps(flip_rates(own, own).to_dict(), allow_nan=False))["rule"] == "benchmark"
    for key, wrong in (("images", 0), ("rule", "other"), ("flips", {"rotate": {"flips": 61, "comparisons": 60}})):
        with pytest.raises(CheckpointError, match="the record"):
            FlipProbabilities.from_dict({**value, key: wrong})


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    write(tmp_path, "rotate", [[0, 1], [1]], [[0], [1]])
    own, base = measured(tmp_path, "rotate")
    with pytest.raises(ConfigError, match="never flips under rotate"):
        flip_rates(own, base)
    with pytest.raises(ConfigError, match="same rule"):
        flip_rates(own, measured(tmp_path, "rotate", rule="adjacent")[0])
    with pytest.raises(ConfigError, match="'adjacent'"):
        measured(tmp_path, "rotate", rule="all")
    with pytest.raises(ConfigError, match="did you mean 'rotate'"):
        measured(tmp_path, "rotat")
    np.save(tmp_path / "rotate.npy", np.zeros((2, 30, 8, 8, 1), np.uint8))
    with pytest.raises(DataError, match=r"not uint8 of shape \(2, 31, 8, 8, 1\)"):
        measured(tmp_path, "rotate")


def test_a_network_of_one_opinion_never_flips() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)

    found = flip_probabilities(Constant(), (torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64)), names=["snow"])
    assert found.flips["snow"].probability == 0
    assert found.probability("snow").value == 0
