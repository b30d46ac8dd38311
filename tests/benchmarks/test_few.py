"""What the demonstration's recipes and the README say is what the records say."""

from __future__ import annotations

import json

import pytest

from benchmarks import few, front
from layerwise.experiments import recipe
from layerwise.trees import at

STRENGTHS = json.loads((front.ROOT / "results/demo/strengths.json").read_text())


@pytest.mark.parametrize("name", [name for name in few.GRID if name != "standard"])
def test_a_recipe_has_the_strength_that_was_best_on_validation_images(name: str) -> None:
    key, values = few.GRID[name]
    entry = STRENGTHS[name]
    assert [each["value"] for each in entry["trials"]] == list(values)
    assert entry["chosen"] == max(entry["trials"], key=lambda each: sum(each["pgd-20"]))["value"]
    said = [at(layer.tree, key) for layer in recipe.load(f"{name}-few-digits")]
    assert [each for each in said if each is not None][-1] == entry["chosen"]


def test_the_readme_says_what_the_records_say() -> None:
    text = (front.ROOT / "README.md").read_text(encoding="utf-8")
    assert front.readme(text) == text
    assert len(text.splitlines()) <= 120
