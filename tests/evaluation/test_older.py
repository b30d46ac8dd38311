"""What older versions wrote is read as if it were written today."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerwise.errors import CheckpointError
from layerwise.evaluation import Evaluation
from tests.evaluation.test_record import RECORD
from tests.evaluation.test_run import everything


def older(value: Any) -> Any:
    """Counts as version 1 had them."""
    if isinstance(value, dict):
        names = {"correct": "right"} if value.keys() == {"correct", "total"} else {}
        return {names.get(key, key): older(part) for key, part in value.items()}
    return [older(part) for part in value] if isinstance(value, list) else value


FIELDS = {
    "Rho": "rho",
    "EpsRef": "eps_ref",
    "CorruptionErrors": "corruptions",
    "CorruptionScores": "corruption_scores",
    "FlipProbabilities": "sequences",
    "FlipRates": "flip_rates",
    "Examples": "examples",
}


def put(folder: Path, change: Callable[[dict[str, Any]], object] = lambda body: None) -> None:
    """The record of `everything` as version 1 wrote it, in two files."""
    body = {**json.loads(everything().to_json()), "version": 1}
    beside: dict[str, Any] = {"format": "layerwise-measures", "version": 1, "rho": [], "diagnostics": []}
    shown = {"model": body["model"]["fingerprint"], "data": body["data"]["fingerprint"]}
    beside["evaluation"] = {**shown, "images": body["worst"]["total"], "seed": body["data"]["seed"]}
    beside |= dict.fromkeys(set(FIELDS.values()) - {"rho"})
    for measured in body.pop("measures"):
        found = measured["found"]
        kind = found.pop("kind")
        if kind == "Rho":
            beside["rho"].append(found)
        elif kind in FIELDS:
            beside[FIELDS[kind]] = found
        else:
            beside["diagnostics"].append({"diagnostic": kind, **found})
    change(beside)
    (folder / "evaluation.json").write_text(json.dumps(older(body)))
    (folder / "evaluation.measures.json").write_text(json.dumps(older(beside)))


def test_a_record_of_two_files_is_read(tmp_path: Path) -> None:
    put(tmp_path)
    found, expected = Evaluation.read(tmp_path), everything()
    assert replace(found, measures=()) == replace(expected, measures=())
    # How a measure was asked for was not recorded, but for what its numbers tell.
    told = {
        "corruptions contrast brightness, against a": "corruptions, against TinyMLP",
        "sequences rotate, against a": "sequences, against TinyMLP",
        "pictures images=3": "pictures",
    }
    assert {m.measure: m.found for m in found.measures} == {
        told.get(m.measure, m.measure): m.found for m in expected.measures
    }
    found.write(tmp_path)
    assert Evaluation.read(tmp_path) == found


def test_a_record_without_measures_is_read_alone(tmp_path: Path) -> None:
    put(tmp_path)
    (tmp_path / "evaluation.measures.json").unlink()
    assert Evaluation.read(tmp_path) == RECORD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.update(format="layerwise-evaluation"),
            "is not what was measured beside an evaluation; give a file",
        ),
        (
            lambda d: d.update(version=7),
            "measures.json has version 7, this layerwise reads 1; use the one that wrote it",
        ),
        (
            lambda d: d["evaluation"].update(model="ff"),
            r"measured on other weights or images than .*evaluation.json; evaluate the run again",
        ),
        (lambda d: d.pop("evaluation"), "measured on other weights or images"),
        (lambda d: d.update(more=1), "is corrupt: it has an unknown more"),
        (lambda d: d["rho"][0].update(images="12"), r"is corrupt: Rho.images is '12', which is no whole number"),
        (lambda d: d["diagnostics"][0].update(diagnostic="Alignmen"), "'Alignmen' is no measurement of this layerwise"),
        (lambda d: d["diagnostics"][0].pop("diagnostic"), "None is no measurement of this layerwise"),
        (lambda d: d.update(diagnostics=3), "is corrupt: None is no measurement"),
        (lambda d: d.update(examples={"attack": 3}), "is corrupt: Examples has no "),
        (lambda d: d.update(flip_rates={"base": 3}), "is corrupt: FlipRates has no "),
    ],
)
def test_measures_that_do_not_fit(tmp_path: Path, change: Any, message: str) -> None:
    put(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        Evaluation.read(tmp_path)
