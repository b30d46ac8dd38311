"""The JSON schema of recipes, with which editors complete and check them; `layerwise schema` prints the one that is stored."""

from __future__ import annotations

import json
from dataclasses import MISSING
from importlib import resources
from pathlib import Path
from typing import Any

from layerwise.experiments.choices import Field, Schema
from layerwise.reading import json_schema
from layerwise.trees import plain

FILE = "recipe.schema.json"
"""Stored beside this module, since the classes that it is made of need torch, and printing it does not."""

OWN = {"type": "string", "pattern": r"^[\w.]+:\w+$"}
"""A class of the user's, `my_module:Name`."""

BESIDE = {
    "extends": {"type": "string", "description": "A recipe's name or file, of which this one changes something."},
    "tune": {
        "type": "object",
        "description": "What `layerwise tune` searches: {dotted setting: {low, high, log} or a list of values}.",
        "additionalProperties": {
            "anyOf": [
                {"type": "array", "minItems": 1},
                {
                    "type": "object",
                    "properties": {"low": {}, "high": {}, "log": {"type": "boolean"}},
                    "required": ["low", "high"],
                    "additionalProperties": False,
                },
            ]
        },
    },
}
"""What a recipe holds beside settings."""


def recipe_schema(schema: Schema) -> dict[str, Any]:
    """The schema of a recipe; names and values may be left out, as the recipe that it extends may have them."""
    definitions: dict[str, Any] = {}
    recipe = _object(schema, schema.root, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of layerwise",
        **recipe,
        "properties": {**BESIDE, **recipe["properties"]},
        "$defs": dict(sorted(definitions.items())),
    }


def stored() -> str:
    """The schema that comes with the package, as text."""
    return (resources.files("layerwise") / "experiments" / FILE).read_text(encoding="utf-8")


def rendered(schema: dict[str, Any]) -> str:
    """The schema as text, a line for each property and definition."""
    lines = []
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(part)}" for name, part in value.items())
            lines.append(f"{json.dumps(key)}: {{\n{inner}\n}}")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _object(schema: Schema, cls: type, definitions: dict[str, Any], name: str | None = None) -> dict[str, Any]:
    properties = {} if name is None else {"name": {"const": name}}
    properties |= {f.name: _property(schema, f, definitions) for f in schema.fields(cls).values()}
    about = (cls.__doc__ or "").partition("\n")[0]
    return {"type": "object", "description": about, "properties": properties, "additionalProperties": False}


def _property(schema: Schema, f: Field, definitions: dict[str, Any]) -> dict[str, Any]:
    about: dict[str, Any] = {"description": f.help} if f.help else {}
    if f.section is not None:
        return {"anyOf": [_object(schema, f.section, definitions), {"type": "null"}], **about}
    if f.base is not None:
        nothing = [{"type": "null"}] if f.nullable else []
        return {"anyOf": [{"$ref": f"#/$defs/{_choice(schema, f.base, definitions)}"}, *nothing], **about}
    default = f.default()
    if default is not MISSING:
        about["default"] = plain(default)
    return {**json_schema(f.type), **about}


def _choice(schema: Schema, base: type, definitions: dict[str, Any]) -> str:
    """Put what can be chosen for a base class into the definitions, under its name, and each class under its own."""
    name = base.__name__ if base.__name__ not in schema.classes(base) else f"Any{base.__name__}"
    if name not in definitions:
        definitions[name] = {}  # it may hold itself
        classes = schema.classes(base)
        for each, cls in classes.items():
            if each not in definitions:
                definitions[each] = {}
                definitions[each] = _object(schema, cls, definitions, each)
        own = {"type": "object", "properties": {"name": OWN}, "required": ["name"]}
        named = [{"enum": list(classes)}, OWN, *({"$ref": f"#/$defs/{each}"} for each in classes), own]
        definitions[name] = {"anyOf": named}
    return name


if __name__ == "__main__":  # after a setting, method, ... has changed: python -m layerwise.experiments.schema
    from layerwise.experiments.settings import SCHEMA

    Path(__file__).with_name(FILE).write_text(rendered(recipe_schema(SCHEMA)), encoding="utf-8")
