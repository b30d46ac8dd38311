"""Ranges to search, and what is proposed next in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from layerwise.errors import ConfigError
from layerwise.experiments import experiment, recipe
from layerwise.experiments.ranges import Choice, Interval, Range, parse_range, read_ranges
from layerwise.experiments.tune.search import propose
from layerwise.trees import at


def write(folder: Path, text: str) -> str:
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("text", "key", "found"),
    [
        ("method.eta=2/255:0.1", "method.eta", Interval(2 / 255, 0.1)),
        ("method.eta=1e-3:0.1:log", "method.eta", Interval(0.001, 0.1, log=True)),
        ("method.num_probes=1:4", "method.num_probes", Interval(1, 4)),
        ("training.optimizer.lr=0.1,0.2", "training.optimizer.lr", Choice((0.1, 0.2))),
        ("training.optimizer.lr=5e-4,2e-3", "training.optimizer.lr", Choice((0.0005, 0.002))),
        ("method=SLAT,{name: LAT}", "method", Choice(("SLAT", {"name": "LAT"}))),
        ("training.augment=[null, {crop: 1}]", "training.augment", Choice((None, {"crop": 1}))),
    ],
)
def test_a_range_is_typed_in_few_signs_and_written_in_a_recipe(text: str, key: str, found: Range) -> None:
    assert parse_range(text) == (key, found)
    assert read_ranges({key: found.plain()}, where="") == {key: found}
    assert isinstance(found, Choice) or found.whole == (key == "method.num_probes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method.eta", "--range method.eta is no range; type KEY=0.01:0.3"),
        ("method.eta=0.3:0.1", "from 0.3 to 0.1 is no range; type a low end below"),
        ("method.eta=0:0.1:log", "from 0 to 0.1 is no range; type a low end above 0"),
        ("method.eta=0.1:0.3:lin", "method.eta=0.1:0.3:lin is no range"),
        ("method.eta=low:high", "'low' is no number"),
        ("method.eta=nan:1", "from nan to 1 is no range"),
        ("method.eta=1:inf", "from 1 to inf is no range"),
        ("method.eta=[", "is not YAML"),
        ("method.eta=[]", "is no range"),
    ],
)
def test_what_is_no_range_is_told(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse_range(text)
    assert message in str(told.value)


@pytest.mark.parametrize(
    "section", ["[method.eta]", "{method.eta: 0.1}", "{method.eta: {low: 1}}", "{method.eta: {low: 1, high: 2, step: 1}}",
                "{method.eta: {low: 1, high: 2, log: 3}}", "{method.eta: {low: [], high: 2}}"],
)  # fmt: skip
def test_a_section_that_holds_no_ranges_is_told_when_the_recipe_is_read(section: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"own\.yaml: tune.* type "):
        experiment.read(write(tmp_path, f"extends: slat-digits\ntune: {section}\n"))


def test_training_ignores_the_ranges_but_not_a_misspelt_one(tmp_path: Path) -> None:
    plain = experiment.read("slat-digits")
    assert experiment.read(write(tmp_path, "extends: slat-digits\ntune: {method.eta: [0.1]}\n")) == plain
    with pytest.raises(ConfigError, match=r"tune: there is no setting 'method\.etta'; did you mean 'method\.eta'"):
        experiment.read(write(tmp_path, "extends: slat-digits\ntune: {method.etta: [0.1]}\n"))
    with pytest.raises(ConfigError, match=r"tune: method\.eta=text does not fit"):
        experiment.read(write(tmp_path, "extends: slat-digits\ntune: {method.eta: [text]}\n"))


def test_ranges_are_not_inherited_since_another_method_has_other_settings() -> None:
    assert recipe.ranges("slat-digits")
    assert recipe.ranges("slat-awp-digits") == {}


def test_every_recipe_of_ours_lies_in_its_own_ranges() -> None:
    found = {name: ranges for name in recipe.names() if (ranges := recipe.ranges(name))}
    assert len(found) >= 3
    outside = [
        (name, key)
        for name, ranges in found.items()
        for key, each in ranges.items()
        if at(experiment.read(name)[1], key) not in each
    ]
    assert outside == []


def test_what_is_tried_next_depends_on_nothing_but_the_scores_and_the_seed() -> None:
    ranges: dict[str, Range] = {"a": Interval(1, 64, log=True), "b": Interval(0.0, 1.0), "c": Choice(({"x": 1}, None))}

    def searched(seed: int) -> list[tuple[Any, float]]:
        told: list[tuple[Any, float]] = []
        for _ in range(30):
            tried = propose(ranges, told, seed=seed, random=8)
            assert all(tried[key] in each for key, each in ranges.items())
            assert type(tried["a"]) is int
            told.append((tried, 1 - abs(tried["b"] - 0.7)))
        return told

    told = searched(0)
    assert told == searched(0) != searched(1)
    late = [score for _, score in told[-10:]]
    assert sum(late) / 10 > 0.85  # at random 0.71: 1 minus the mean distance of a uniform number from 0.7


def test_no_setting_is_tried_twice() -> None:
    ranges: dict[str, Range] = {"a": Choice((0.1, 0.2, 0.1)), "b": Interval(1, 4)}
    told: list[tuple[Any, float]] = []
    for _ in range(8):
        tried = propose(ranges, told, seed=0, random=4)
        told.append((tried, tried["b"]))
    assert {(tried["a"], tried["b"]) for tried, _ in told} == {(a, b) for a in (0.1, 0.2) for b in (1, 2, 3, 4)}
