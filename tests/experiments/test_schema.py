"""The JSON schema of recipes: it is that of the types, takes every recipe of ours, and tells what editors should."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from layerwise.experiments import recipe
from layerwise.experiments.schema import recipe_schema, rendered, stored
from layerwise.experiments.settings import SCHEMA
from layerwise.trees import parse_yaml

STORED = json.loads(stored())

TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def faults(schema: dict[str, Any], value: Any, place: str = "") -> Iterator[str]:
    """Where a value does not fit, by the words of JSON schema that ours uses; any other word is an error here."""
    for word, said in schema.items():
        if word == "$ref":
            yield from faults(STORED["$defs"][said.removeprefix("#/$defs/")], value, place)
        elif word == "anyOf":
            tried = [list(faults(each, value, place)) for each in said]
            if all(tried):
                yield max((fault for each in tried for fault in each), key=len)
        elif word == "type":
            if not isinstance(value, TYPES[said]) or (isinstance(value, bool) and said != "boolean"):
                yield place
        elif word in ("enum", "const"):
            if value not in (said if word == "enum" else [said]):
                yield place
        elif word == "pattern":
            if isinstance(value, str) and not re.search(said, value):
                yield place
        elif word in ("items", "prefixItems"):
            each = value if isinstance(value, list) else []
            parts = said if word == "prefixItems" else [said] * len(each)
            for index, (part, item) in enumerate(zip(parts, each, strict=False)):
                yield from faults(part, item, f"{place}[{index}]")
        elif word in ("minItems", "maxItems"):
            if isinstance(value, list) and (len(value) - said) * (1 if word == "maxItems" else -1) > 0:
                yield place
        elif word == "properties":
            for name in said.keys() & (value if isinstance(value, dict) else {}):
                yield from faults(said[name], value[name], f"{place}.{name}")
        elif word == "additionalProperties":
            for name in (value if isinstance(value, dict) else {}).keys() - schema.get("properties", {}).keys():
                yield from [f"{place}.{name}"] * (said is False)
                yield from faults(said, value[name], f"{place}.{name}") if isinstance(said, dict) else []
        elif word == "required":
            yield from (f"{place}.{name}" for name in said if isinstance(value, dict) and name not in value)
        else:
            assert word in ("$schema", "title", "description", "default", "$defs"), word


def test_what_is_stored_is_what_the_types_say() -> None:
    assert rendered(recipe_schema(SCHEMA)) == stored(), "type: make stored (or: python -m layerwise.experiments.schema)"


@pytest.mark.parametrize("text", ["a: 1", "method: {name: SLAT, base: {name: LAD}}", "training: {epochs: 1.5}"])
def test_the_validator_of_this_test_finds_faults(text: str) -> None:
    assert list(faults(STORED, parse_yaml(text, "it"))) != []


def test_every_recipe_of_ours_fits() -> None:
    layers = [layer for name in recipe.names() for layer in recipe.load(name)]
    wrong = [(layer.where, found) for layer in layers if (found := list(faults(STORED, layer.tree)))]
    assert wrong == []


@pytest.mark.parametrize(
    "text",
    [
        "extends: slat-digits",
        "method: ANP",
        "method: my_module:Mine",
        "method: {name: my_module:Mine, extra: 3}",
        "method: {eta: 8/255}",
        "method: {name: AWP, base: {name: LAD, base: {name: PGD, steps: 3}}}",
        "method: {name: SLAT, eta: {input: 8/255, conv1: 0.1}, sites: [conv1], base: null}",
        "training: {optimizer: Adam, augment: null, capture: auto, devices: 2}",
        "data:\nmodel: {options: {width: 3}}",
        "evaluation: {attacks: [clean, pgd-20], inference: {name: NoisyAveraging, std: 0.1}}",
        "tune: {method.eta: {low: 2/255, high: 0.1, log: true}, training.epochs: [1, 2]}",
    ],
)
def test_what_fits(text: str) -> None:
    assert list(faults(STORED, yaml.safe_load(text))) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("methods: ANP", ".methods"),
        ("method: SLTA", ".method"),
        ("method: null", ".method"),
        ("method: {name: SLAT, etta: 1}", ".method"),
        ("method: {name: SLAT, base: {name: Parseval}}", ".method"),
        ("method: {name: SLAT, eta: eight}", ".method"),
        ("training: {epochs: many}", ".training.epochs"),
        ("training: {optimizer: {name: SGD, lr: fast}}", ".training.optimizer"),
        ("training: {precision: 16}", ".training.precision"),
        ("evaluation: {attacks: [1]}", ".evaluation.attacks[0]"),
        ("tune: {method.eta: {low: 1}}", ".tune.method.eta"),
    ],
)
def test_what_does_not(text: str, place: str) -> None:
    (found,) = faults(STORED, yaml.safe_load(text))
    assert found.startswith(place)


def test_every_setting_explains_itself() -> None:
    assert "eta_k, in the unit of the pixels" in STORED["$defs"]["SLAT"]["properties"]["eta"]["description"]
    assert [name for name, each in STORED["$defs"].items() if "anyOf" not in each and not each["description"]] == []


def test_it_is_printed_and_types_are_read_without_torch() -> None:
    code = (
        "import sys\n"
        "from layerwise.experiments.choices import Schema\n"
        "from layerwise.reading import read_setting\n"
        "assert read_setting('k', '[1, 2]', list[int]) == [1, 2]\n"
        "from layerwise.cli.main import main\n"
        "assert main(['schema']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == stored()
