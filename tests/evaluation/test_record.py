from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from layerwise.attacks import Attack, LatentAttack, ThreatModel
from layerwise.errors import CheckpointError
from layerwise.evaluation import Count, Evaluation, Finding, Result, evaluate
from layerwise.evaluation.record import DataRecord, ModelRecord
from tests.evaluation.problems import trained
from tests.networks import batch

RECORD = Evaluation(
    model=ModelRecord("a|b <i>", 10, "00ff"),
    data=DataRecord("digits test", 540, 0, "ff00"),
    threat=ThreatModel("linf", 8 / 255),
    results=(
        Result("clean", {"name": "clean"}, Count(50, 100), 0.25),
        Result("pgd-20", {"name": "pgd", "alpha": None, "nested": {"sites": ["a", "b"]}}, Count(10, 100), 12.0),
    ),
    worst=Count(9, 100),
    findings=(),
    batch_size=250,
    eot=1,
    device="cpu",
    versions={"torch": "2.13.0"},
)


def test_json_round_trip() -> None:
    assert Evaluation.from_json(RECORD.to_json()) == RECORD
    found = replace(RECORD, findings=(Finding("zero-gradient", 0.01, 1.0, "no way"),))
    assert Evaluation.from_json(found.to_json().encode()) == found


def test_a_real_record_survives() -> None:
    attacks: list[Attack | str] = ["clean", "pgd-3 alpha=1/255", "eot-2:fgsm", LatentAttack(sites=("fc1", "fc2"))]
    record = evaluate(trained(), batch(20), attacks=attacks, progress=False)
    assert Evaluation.from_json(record.to_json()) == record
    assert record["latent sites=('fc1', 'fc2')"].settings["sites"] == ["fc1", "fc2"]


def test_markdown() -> None:
    assert RECORD.to_markdown() == (
        "**a\\|b \\<i\\>** on digits test, 100 of 540 images (seed 0), linf, eps 8/255.\n\n"
        "| attack | accuracy % | 95 % interval | correct | seconds |\n"
        "|---|---:|---:|---:|---:|\n"
        "| clean | 50.00 | 40.38 to 59.62 | 50 / 100 | 0.2 |\n"
        "| pgd-20 | 10.00 | 5.52 to 17.44 | 10 / 100 | 12.0 |\n"
        "| **worst case** | 9.00 | 4.81 to 16.23 | 9 / 100 |  |\n"
    )


def test_markdown_says_first_what_was_found() -> None:
    found = replace(RECORD, findings=(Finding("zero-gradient", 0.01, 1.0, "no\nway"),))
    lines = found.to_markdown().splitlines()
    assert lines[2] == "> **Warning** zero-gradient: at least 1 (more than 0.01): no way"
    assert lines[4].startswith("| attack |")


def edited(change: Callable[[dict[str, Any]], object]) -> str:
    found = json.loads(RECORD.to_json())
    change(found)
    return json.dumps(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RECORD.to_json()[:300], r"run/e.json is not JSON \(.*line.*\); evaluate the run again"),
        ("", "run/e.json is not JSON"),
        (b"\xff\xfe\x00", "run/e.json is not JSON"),
        ("[" * 100_000, "run/e.json is not JSON"),
        ("[1, 2]", "run/e.json is not the record of an evaluation; give a file that `layerwise evaluate` wrote"),
        ('{"accuracy": 3}', "is not the record of an evaluation"),
        (edited(lambda d: d.update(version=3)), "has version 3, this layerwise reads 2; use the one that wrote it"),
        (edited(lambda d: d.pop("worst")), "run/e.json is corrupt: the record has no worst"),
        (edited(lambda d: d.update(more=1)), "corrupt: the record has an unknown more"),
        (
            edited(lambda d: d["results"][1]["count"].update(correct="x")),
            r"the record.results\[1\].count.correct is 'x', which is no whole number",
        ),
        (edited(lambda d: d["results"][1]["count"].update(correct=True)), r"correct is True, which is no whole number"),
        (
            edited(lambda d: d["results"][1]["count"].update(correct=101)),
            r"results\[1\].count: 101 correct out of 100 cannot be",
        ),
        (edited(lambda d: d["results"][1].update(seconds=float("nan"))), r"seconds is nan, which is no number"),
        (edited(lambda d: d["results"][1].update(seconds=10**400)), r"seconds is 1000.*, which is no number"),
        (
            edited(lambda d: d["threat"].update(norm="l7")),
            r"the record.threat.norm is 'l7', which is no one of 'linf', 'l2'",
        ),
        (edited(lambda d: d["threat"].update(eps=8)), r"the record.threat: eps=8 is in units of 0 to 255"),
        (edited(lambda d: d.update(results={})), r"the record.results is \{\}, which is no list"),
        (edited(lambda d: d.update(model=[])), r"the record.model is \[\], which is no object"),
        (edited(lambda d: d.update(versions=["2"])), r"the record.versions is \['2'\], which is no object"),
        (edited(lambda d: d["versions"].update(torch=2)), r"the record.versions.torch is 2, which is no text"),
        (
            edited(lambda d: d.update(worst={"correct": 1, "total": 7})),
            r"its results count \[7, 100\] images, they must be equal",
        ),
    ],
)
def test_corrupt_and_foreign_records(text: str | bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Evaluation.from_json(text, source="run/e.json")
