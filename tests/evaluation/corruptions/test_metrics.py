"""Classifiers that read their answer off a pixel, so that every error is put there by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layerwise.data.splits import TensorSplit
from layerwise.errors import CheckpointError, ConfigError, DataError
from layerwise.evaluation.corruptions import (
    EXTRA,
    STANDARD,
    CorruptionErrors,
    corruption_errors,
    generate_frost,
    mce,
    store,
)
from layerwise.evaluation.corruptions.cache import FOUND, GENERATED


@final
class Reads(nn.Module):
    """Class 1 where the pixel in row 0 and this column is bright."""

    def __init__(self, column: int) -> None:
        super().__init__()
        self.column = column

    def forward(self, x: Tensor) -> Tensor:
        bright = x[:, 0, 0, self.column]
        return torch.stack([0.5 - bright, bright - 0.5], dim=1)


SIZE = 4
LABELS = torch.tensor([0, 1, 0, 1])


def picture(wrong: dict[int, int], column_of: dict[int, int] | None = None) -> Tensor:
    """Four images (4, 8, 8, 1) on which the network that reads column c is wrong about the first wrong[c]."""
    images = torch.zeros(SIZE, 8, 8, 1, dtype=torch.uint8)
    for column, count in wrong.items():
        answers = LABELS.clone()
        answers[:count] = 1 - answers[:count]
        images[:, 0, column, 0] = (answers * 255).to(torch.uint8)
    return images


def write(folder: Path, errors: dict[str, tuple[list[int], list[int]]]) -> None:
    """NAME.npy with so many errors of the network (column 0) and the base (column 1) at each severity."""
    for name, (own, base) in errors.items():
        rows = [picture({0: a, 1: b}) for a, b in zip(own, base, strict=True)]
        np.save(folder / f"{name}.npy", torch.cat(rows).numpy())
    np.save(folder / "labels.npy", np.tile(LABELS.numpy(), 5))


def clean(own: int, base: int) -> TensorSplit:
    return TensorSplit(picture({0: own, 1: base}).permute(0, 3, 1, 2).contiguous(), LABELS)


def measured(folder: Path, data: TensorSplit, names: tuple[str, ...]) -> tuple[CorruptionErrors, CorruptionErrors]:
    own, base = (corruption_errors(Reads(c), data, names=names, folder=folder, batch_size=3) for c in (0, 1))
    return own, base


USUAL = ([0, 1, 1, 2, 2], [1, 2, 3, 3, 3])


def test_mce_is_the_hand_computed_one(tmp_path: Path) -> None:
    write(tmp_path, {name: USUAL for name in STANDARD} | {"fog": ([2, 2, 2, 3, 3], [1, 2, 3, 3, 3])})
    own, base = measured(tmp_path, clean(0, 1), STANDARD)
    assert [count.correct for count in own.counts["snow"]] == [4, 3, 3, 2, 2]
    assert own.error("snow") == 6 / 20
    assert own.clean.accuracy == 1
    assert base.clean.accuracy == 0.75
    assert set(own.sources.values()) == {FOUND}
    scores = mce(own, base)
    # 6 of 12 errors, for fog 12 of 12.
    assert scores.ce["snow"].value == pytest.approx(50)
    assert scores.ce["fog"].value == pytest.approx(100)
    assert scores.mce is not None
    assert scores.mce.value == pytest.approx((14 * 50 + 100) / 15)
    # The base is wrong on 1 clean image of 4: 6 / (12 - 5) and 12 / 7.
    assert scores.relative_mce is not None
    assert scores.relative_mce.value == pytest.approx(100 * (14 * 6 / 7 + 12 / 7) / 15)
    printed = mce(own, base, relative="as-printed")
    assert printed.relative_mce is not None
    assert printed.relative_mce.value == pytest.approx(100 * (14 * 6 / 11 + 12 / 11) / 15)
    assert printed.mce == scores.mce
    assert scores.extra_mce is None


def test_clean_errors_of_the_network_are_taken_off_once_or_five_times(tmp_path: Path) -> None:
    write(tmp_path, {"fog": ([2, 2, 2, 3, 3], [2, 3, 3, 4, 4])})
    own, base = measured(tmp_path, clean(1, 2), ("fog",))
    differences = mce(own, base).relative_ce["fog"]
    printed = mce(own, base, relative="as-printed").relative_ce["fog"]
    assert differences is not None
    assert differences.value == pytest.approx(100 * (12 - 5) / (16 - 10))
    assert printed is not None
    assert printed.value == pytest.approx(100 * (12 - 1) / (16 - 2))


def test_a_network_against_itself_has_100(tmp_path: Path) -> None:
    # The identity as every corruption: the clean images five times over.
    write(tmp_path, {name: ([1] * 5, [1] * 5) for name in (*STANDARD, *EXTRA)})
    own, base = measured(tmp_path, clean(1, 1), (*STANDARD, *EXTRA))
    scores = mce(own, base)
    assert {round(percent.value, 9) for percent in scores.ce.values()} == {100}
    assert scores.mce is not None
    assert scores.mce.value == pytest.approx(100)
    assert scores.extra_mce is not None
    assert scores.extra_mce.value == pytest.approx(100)
    # No corruption raises the base model's errors: nothing to divide by.
    assert set(scores.relative_ce.values()) == {None}
    assert scores.relative_mce is None


def test_the_four_extra_ones_are_apart(tmp_path: Path) -> None:
    write(tmp_path, {name: USUAL for name in STANDARD} | {name: ([1] * 5, [2] * 5) for name in EXTRA})
    own, base = measured(tmp_path, clean(0, 1), (*STANDARD, *EXTRA))
    scores = mce(own, base)
    assert scores.mce is not None
    assert scores.mce.value == pytest.approx(50)
    assert scores.extra_mce is not None
    assert scores.extra_mce.value == pytest.approx(50)
    assert scores.extra_relative_mce is not None
    assert scores.extra_relative_mce.value == pytest.approx(100 * 5 / 5)


def test_intervals_are_those_of_the_images_own_scores(tmp_path: Path) -> None:
    names = ("fog", "snow", "frost")
    write(tmp_path, {"fog": USUAL, "snow": ([0, 0, 1, 1, 4], [2] * 5), "frost": ([3] * 5, [4] * 5)})
    own, base = measured(tmp_path, clean(1, 1), names)
    scores = mce(own, base)
    for name, (wrong, others) in {"fog": USUAL, "snow": ([0, 0, 1, 1, 4], [2] * 5)}.items():
        # Image i is wrong at a severity where more than i are.
        own_score = np.array([sum(w > i for w in wrong) for i in range(SIZE)]) * 100 / sum(others)
        half = 1.959964 * own_score.std(ddof=1) * np.sqrt(SIZE)
        assert scores.ce[name].half_width == pytest.approx(half, rel=1e-6)
        relative = scores.relative_ce[name]
        assert relative is not None
        own_score = np.array([sum(w > i for w in wrong) - 5 * (i < 1) for i in range(SIZE)]) * 100
        own_score = own_score / (sum(others) - 5)
        assert relative.half_width == pytest.approx(1.959964 * own_score.std(ddof=1) * 2, rel=1e-6)
    assert str(scores.ce["frost"]).startswith("75.0 +- ")


def test_the_interval_of_a_mean_knows_that_corruptions_share_images(tmp_path: Path) -> None:
    write(tmp_path, {name: USUAL for name in STANDARD})
    own, base = measured(tmp_path, clean(0, 1), STANDARD)
    scores = mce(own, base)
    # Fifteen times the same: as uncertain as one.
    assert scores.mce is not None
    assert scores.mce.half_width == pytest.approx(scores.ce["fog"].half_width)


def test_a_single_image_has_no_interval() -> None:
    data = torch.rand(1, 1, 8, 8), torch.tensor([1])
    errors = corruption_errors(Reads(0), data, names=["contrast"])
    assert errors.sums.percent({"contrast": 1.0}, errors.counted, errors.images).half_width is None


def test_generated_images_need_no_files_and_stored_ones_give_the_same(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    data = TensorSplit(torch.randint(0, 256, (40, 3, 8, 8), generator=generator).to(torch.uint8), torch.arange(40) % 2)
    names, frost = ("contrast", "frost", "gaussian_noise"), generate_frost()
    torch.manual_seed(0)
    # Answers that differ from image to image.
    net = nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 2, bias=False))
    straight = corruption_errors(net, data, names=names, seed=3, frost=frost)
    assert "not the published files" in straight.sources["contrast"]
    assert "generated texture" in straight.sources["frost"]
    store(tmp_path, data, names=names, seed=3, frost=frost)
    read = corruption_errors(net, data, names=names, seed=3, frost=frost, folder=tmp_path, batch_size=7)
    assert read.counts == straight.counts
    assert read.sums == straight.sums
    assert read.sources["contrast"] == GENERATED
    # A part of the images is corrupted as it is among all of them.
    some = corruption_errors(net, data, names=names, seed=3, frost=frost, num_examples=10)
    again = corruption_errors(net, data, names=names, seed=3, frost=frost, num_examples=10, folder=tmp_path)
    assert some.images == 10
    assert some.counts == again.counts
    assert some.sums == again.sums


def test_the_network_comes_back_as_it_was() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Dropout(0.5))
    data = torch.rand(20, 1, 8, 8), torch.arange(20) % 2
    state = torch.get_rng_state()
    first = corruption_errors(net, data, names=["contrast"])
    assert net.training
    assert torch.equal(state, torch.get_rng_state())
    assert corruption_errors(net, data, names=["contrast"]) == first


def test_logits_that_are_not_finite_are_wrong() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.stack([x.mean(dim=(1, 2, 3)), torch.ones(len(x))], dim=1)
            return logits.where(x.amax(dim=(1, 2, 3))[:, None] < 0.9, float("nan"))

    data = torch.full((4, 1, 8, 8), 0.5), torch.ones(4, dtype=torch.int64)
    errors = corruption_errors(Breaks(), data, names=["brightness"])
    assert errors.clean.correct == 4
    assert [count.correct for count in errors.counts["brightness"]] == [4, 4, 4, 4, 4]
    data = torch.full((4, 1, 8, 8), 0.75), torch.ones(4, dtype=torch.int64)
    errors = corruption_errors(Breaks(), data, names=["brightness"])
    assert [count.correct for count in errors.counts["brightness"]] == [4, 4, 4, 0, 0]


def record(tmp_path: Path) -> CorruptionErrors:
    write(tmp_path, {"fog": USUAL, "snow": USUAL})
    return measured(tmp_path, clean(0, 1), ("fog", "snow"))[0]


def test_records_survive_json(tmp_path: Path) -> None:
    errors = record(tmp_path)
    assert CorruptionErrors.from_dict(json.loads(json.dumps(errors.to_dict()))) == errors
    scores = mce(errors, errors)
    shown = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert shown["ce"]["fog"]["value"] == pytest.approx(100)
    assert shown["relative"] == "differences"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("clean", "correct"), 9),
        (("clean", "total"), 5),
        (("counts", "fog"), []),
        (("sums", "firsts"), [0, 1, 2]),
        (("sums", "products"), [[1, 2], [3]]),
        (("sums", "products"), "x"),
        (("counts",), None),
        (("table",), 3),
    ],
)
def test_impossible_records_are_refused(tmp_path: Path, path: tuple[str, ...], value: Any) -> None:
    broken = json.loads(json.dumps(record(tmp_path).to_dict()))
    inner = broken
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(CheckpointError, match=r"errors\.json") as caught:
        CorruptionErrors.from_dict(broken, source="errors.json")
    assert "\n" not in str(caught.value)


def test_only_like_is_compared(tmp_path: Path) -> None:
    errors = record(tmp_path)
    data = clean(0, 1)
    for other, words in (
        (corruption_errors(Reads(1), data, names=["fog"], folder=tmp_path), "same corruptions"),
        (corruption_errors(Reads(1), data, names=["fog", "snow"]), "same sources of the images"),
        (corruption_errors(Reads(1), data, names=["fog", "snow"], folder=tmp_path, seed=1), "same seed"),
        (corruption_errors(Reads(1), clean(0, 2), names=["fog", "snow"], folder=tmp_path), "same images"),
        (corruption_errors(Reads(1), data, names=["fog", "snow"], folder=tmp_path, table="imagenet"), "same table"),
    ):
        with pytest.raises(ConfigError, match=words):
            mce(errors, other)
    with pytest.raises(ConfigError, match="as-printed"):
        mce(errors, errors, relative="paper")  # type: ignore[arg-type]


def test_a_base_without_errors_is_no_base(tmp_path: Path) -> None:
    write(tmp_path, {"fog": ([1] * 5, [0] * 5)})
    own, base = measured(tmp_path, clean(0, 0), ("fog",))
    with pytest.raises(ConfigError, match="no errors under fog"):
        mce(own, base)


def test_what_cannot_be_measured_is_named(tmp_path: Path) -> None:
    data = clean(0, 0)
    for options, error, words in (
        ({"names": []}, ConfigError, "at least one"),
        ({"names": ["fogg"]}, ConfigError, "did you mean 'fog'"),
        ({"folder": tmp_path / "missing"}, ConfigError, "is no folder"),
        ({"num_examples": 0}, ConfigError, "nothing to evaluate"),
        ({"table": "tiny"}, ConfigError, "no table"),
    ):
        with pytest.raises(error, match=words):
            corruption_errors(Reads(0), data, **({"names": ["fog"]} | options))
    with pytest.raises(DataError, match="at least 8"):
        corruption_errors(
            nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), (torch.rand(4, 1, 4, 4), LABELS), names=["fog"]
        )
    with pytest.raises(DataError, match="divide by 255"):
        corruption_errors(Reads(0), (torch.full((4, 1, 8, 8), 255.0), LABELS), names=["fog"])


def test_a_bar_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    corruption_errors(Reads(0), clean(0, 0), names=["contrast"], progress=True)
    assert capfd.readouterr().out == ""
