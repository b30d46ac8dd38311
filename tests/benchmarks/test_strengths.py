"""The comparison's strengths: what was chosen on validation images is what the recipes have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.strengths import GRID, PROTOCOL, best, merge

from layerwise.experiments import recipe
from layerwise.experiments.experiment import SCHEMA
from layerwise.reproduce.definitions import items
from layerwise.trees import at

RECORD = json.loads(Path("results/comparison/strengths.json").read_text(encoding="utf-8"))
CHOSEN = {name: entry for name, entry in RECORD.items() if "chosen" in entry}


def test_every_row_but_the_standard_one_has_four_values_to_choose_from() -> None:
    rows = {row.system.recipe.removesuffix(f"-{PROTOCOL}") for row in items()["comparison/fashion-mnist"].rows}
    assert rows == {*GRID, "standard"}
    assert {len(values) for _, values in GRID.values()} == {4}


@pytest.mark.parametrize("name", CHOSEN)
def test_a_recipe_has_the_value_that_the_trials_chose(name: str) -> None:
    key, values = GRID[name]
    found = CHOSEN[name]
    assert found["setting"] == key
    assert [trial["value"] for trial in found["trials"]] == list(values)
    assert found["chosen"] == best(found["trials"])
    _, tree = SCHEMA.read(*recipe.load(f"{name}-{PROTOCOL}"))
    assert at(tree, key) == found["chosen"]


def test_records_of_several_processes_become_one() -> None:
    trials = [
        {"value": value, "clean": 0.8, "pgd-20": pgd}
        for value, pgd in zip(GRID["fgsm"][1], (0.1, 0.3, 0.3, 0.2), strict=True)
    ]
    record = {"fgsm": {"setting": "method.eps", "trials": trials[2:3]}}
    merge(
        record,
        {"fgsm": {"setting": "method.eps", "trials": trials[:2]}, "lat": {"setting": "method.eps", "trials": []}},
    )
    assert record["fgsm"] == {"setting": "method.eps", "trials": trials[:3]}
    merge(record, {"fgsm": {"setting": "method.eps", "trials": trials[1:]}})
    assert record["fgsm"] == {"setting": "method.eps", "trials": trials, "chosen": 0.075}  # the weaker of equals
    assert record["lat"]["trials"] == []
