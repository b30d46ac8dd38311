"""Figures: one picture for all rows where a diagnostic holds several, one a row otherwise; sweeps and training curves; small files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from layerwise.core.random import Stream
from layerwise.errors import ConfigError
from layerwise.evaluation.measures import fgsm
from layerwise.evaluation.style import canvas, styled
from layerwise.reproduce import measures, runner
from layerwise.reproduce.bench import Outcome
from layerwise.reproduce.claims import HOLDS
from layerwise.reproduce.figures import NOISES, _head, draw_sweep
from layerwise.reproduce.record import CellRecord, Record, RowRecord
from tests.reproduce.cases import TINY, item

ROWS = {"standard": "standard-digits", "SLAT": "slat-digits"}
LOGGING = replace(TINY, rules=[*TINY.rules, {"set": {"training.eval_every": 1, "training.eval_steps": 1}}])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figures")


def drawn(place: Path, name: str = "figure-x", scale: Any = TINY, **body: Any) -> Record:
    body = {"rows": ROWS, "columns": {}, **body}
    (record,) = runner.reproduce([item(name, **body)], scale, output=place / "results", runs=place / "runs")
    for picture in record.pictures:
        file = place / "results" / scale.name / "slat" / picture.file
        assert file.read_bytes()[:4] == b"\x89PNG"
        assert file.stat().st_size < 100 * 1024
        assert picture.alt
    return record


def test_a_diagnostic_with_curves_has_one_picture_of_every_row(place: Path) -> None:
    record = drawn(place, draw="feature-gradients", options={"sites": ["input", "conv1"]})
    (picture,) = record.pictures
    assert list(picture.data) == list(ROWS)
    assert "standard: " in picture.alt
    assert "SLAT: " in picture.alt
    assert "![" in (place / "results" / "tiny" / "slat" / "figure-x.md").read_text()


def test_other_diagnostics_have_a_picture_a_row_and_failures_stop_nothing(place: Path) -> None:
    record = drawn(place, "figure-y", draw="input-gradients", options={"images": 2}, rows={"none": "no-recipe", **ROWS})
    assert [picture.file for picture in record.pictures] == ["figure-y-standard.png", "figure-y-SLAT.png"]
    assert [text[:25] for text in record.failures] == ["none: there is no recipe "]


def test_several_panels_are_several_pictures(place: Path) -> None:
    record = drawn(place, draw="noise-insensitivity", options={"noises": ["fgsm", "gaussian", "step-ll"]})
    assert [picture.file for picture in record.pictures] == [
        f"figure-x-{n}.png" for n in ("fgsm", "gaussian", "step-ll")
    ]


def test_training_curves_come_from_what_was_logged(place: Path) -> None:
    series = {"clean": "validation accuracy, %", "alignment.mean": "alignment", "nothing": "no such thing"}
    options = {"series": series, "trace": ["alignment images=4"]}
    rows = {**ROWS, "Deep Defense": "deep-defense-digits"}  # which starts from standard-digits
    record = drawn(place, scale=replace(LOGGING, name="logging"), draw="curves", options=options, rows=rows)
    for picture in record.pictures:
        assert {name: len(points) for name, points in picture.data["curves"].items()} == dict.fromkeys(rows, 1)
    assert [picture.file for picture in record.pictures] == ["figure-x-clean.png", "figure-x-alignment.mean.png"]
    assert len(list((place / "runs" / "reproduce" / "logging").iterdir())) == len(rows)  # the start is the row's own
    nothing = "training logged nothing of 'nothing' at this scale"
    assert record.failures == tuple(f"no such thing, {row}: {nothing}" for row in rows)


@pytest.mark.parametrize(
    ("of", "expected"),
    [("first", 50), ("least", 10), ("most", 60), ("last", 20), ("fall", 300), (2, 60), (-3, 60), (4, 20)],
)
def test_what_training_logged_is_read_by_epoch(of: Any, expected: float) -> None:
    log: Any = SimpleNamespace(logged=lambda key: [(1, 0.5), (2, 0.6), (3, 0.1), (4, 0.2)])
    options = {"key": "robust", "of": of, "scale": 100 if of != "fall" else 1}
    found = measures.MEASURES["logged"](None, log, options).value  # type: ignore[arg-type]
    assert found == pytest.approx(expected if of != "fall" else 3)


@pytest.mark.parametrize("of", [0, 5, -5])
def test_an_epoch_that_was_not_logged_is_told(of: int) -> None:
    log: Any = SimpleNamespace(logged=lambda key: [(1, 0.5), (2, 0.6), (3, 0.1), (4, 0.2)])
    with pytest.raises(ConfigError, match=f"training logged robust in 4 epochs at this scale, which leaves out {of}"):
        measures.MEASURES["logged"](None, log, {"key": "robust", "of": of})  # type: ignore[arg-type]


def test_weights_are_exchanged_before_the_attack(place: Path) -> None:
    options = {"other": "standard"}
    rows = {name: {"recipe": recipe, "set": {"training.max_steps": 2}} for name, recipe in ROWS.items()}
    column = {"measure": "look", "look": "reassignment", "options": options, "field": "values", "part": [0, 1]}
    columns = {panel: {**column, "panel": panel} for panel in ("clean", "fgsm", "corrupted")}
    record = drawn(place, draw="reassignment", options=options, rows=rows, columns=columns)
    assert [picture.file for picture in record.pictures] == [f"figure-x-{n}.png" for n in columns]
    for picture in record.pictures:
        found = picture.data["standard"]  # exchanged with itself
        assert found["accuracies"] == [found["original"]] * len(found["sites"])
    first = record.pictures[1].data["SLAT"]["accuracies"][0]
    assert record.rows[1].cells["fgsm"].ours[0].value == pytest.approx(100 * first)


def test_a_column_is_what_training_logged_or_what_a_diagnostic_found(place: Path) -> None:
    clean = {"measure": "logged", "key": "clean", "of": "last", "scale": 100}
    columns = {"last": clean, "aligned": {"measure": "look", "look": "alignment", "field": "mean", "unit": ""}}
    record = drawn(place, scale=replace(LOGGING, name="logging"), draw="alignment", columns=columns)
    cells = record.rows[0].cells
    assert 0 <= cells["last"].ours[0].value <= 100
    assert -1 <= cells["aligned"].ours[0].value <= 1
    assert cells["last"].ours[0].what == "clean, last over the epochs"


def test_the_toy_is_trained_and_drawn_for_every_method(place: Path) -> None:
    methods = {"standard": {}, "FGSM": {"eps": 0.1}, "SLAT": {"eta": 0.1, "sites": ["relu1"]}}
    leans = {"leans": {"says": "SLAT leans more.", "if": {"greater": ["SLAT / leaning", "FGSM / leaning"]}}}
    record = drawn(place, draw="toy", rows={}, options={"methods": methods}, claims=leans)
    assert [claim.would_be for claim in record.claims] == [HOLDS]
    assert record.failures == ()
    assert [list(picture.data) for picture in record.pictures] == [["standard"], ["FGSM"], ["SLAT"]]
    assert {d["kind"] for picture in record.pictures for d in picture.data.values()} == {"DecisionBoundary"}


def test_an_unknown_drawing_is_told(place: Path) -> None:
    assert drawn(place, draw="landscap").failures[0].startswith("nothing draws 'landscap'; did you mean 'landscape'")


def row(name: str, value: float | None, at: float | None, series: str = "") -> RowRecord:
    ours = () if value is None else (Outcome(value=value, low=value - 1, high=value + 1, images=9, what=""),)
    return RowRecord(name=name, runs=(), cells={"clean": CellRecord(ours=ours)}, at=at, series=series)


@pytest.mark.parametrize(
    "rows",
    [
        [row("a", 1, 1.0, "s"), row("b", 2, 2.0, "s"), row("c", 3, 1.0, "t"), row("NAT", 2, None)],
        [row("a", 1, None), row("b", None, None)],
    ],
)
def test_a_sweep_is_drawn_whatever_is_there(rows: list[RowRecord], tmp_path: Path) -> None:
    picture = draw_sweep(item("figure-z", axis="m", columns={"clean": "clean"}), rows, tmp_path)
    assert (tmp_path / picture.file).stat().st_size < 100 * 1024
    assert picture.alt.startswith("Digits, over m: clean")


def test_a_sweep_without_a_number_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no row has a number"):
        draw_sweep(item("figure-z", axis="m", columns={"clean": "clean"}), [row("a", None, 1.0)], tmp_path)


@pytest.mark.parametrize("name", list(NOISES))
def test_noises_stay_in_the_ball_and_the_pixel_range(name: str) -> None:
    x, y = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0])
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2))
    noisy = NOISES[name](network, x, y, 0.05, Stream(0))
    assert not torch.equal(noisy, x)
    assert (noisy - x).abs().max() <= 0.05 + 1e-6
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    assert fgsm is NOISES["fgsm"]


@pytest.mark.parametrize(("whole", "first"), [("Gradients", "class 3"), ("", "Landscape")])
def test_a_picture_of_one_row_begins_with_its_name(whole: str, first: str) -> None:
    with styled():
        figure, panels = canvas(columns=2)
        panels[0].set_title(first, loc="center" if whole else None)
        if whole:
            figure.suptitle(whole)
    _head(figure, "SLAT")
    texts = {panels[0].get_title("left"), panels[0].get_title("center"), figure.get_suptitle()} - {""}
    assert texts == ({"SLAT: Gradients", "class 3"} if whole else {"SLAT: Landscape"})
