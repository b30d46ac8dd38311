"""A small item on the embedded digits, and a scale at which it takes seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from layerwise.reproduce.definitions import Item, read_items
from layerwise.reproduce.scales import Scale, scale

TINY = replace(
    scale("smoke"),
    name="tiny",
    images=20,
    few=10,
    rules=[
        {
            "set": {
                "training.max_steps": 2,
                "training.eval_every": 0,
                "training.log_every": 1,
                "model.options.width": 2,
                "evaluation.attacks": ["clean"],
                "evaluation.num_examples": 10,
                "evaluation.measures": [],
            }
        }
    ],
)
"""Two batches of a network of two channels."""

DECIDING: Scale = replace(TINY, decides=True)


def item(name: str = "table-x", **body: Any) -> Item:
    """An item of digits systems; `body` as in a definition."""
    given = {"title": "Digits", "columns": {"clean": "clean", "PGD": "pgd-50 alpha=0.1"}, "eps": 0.2, **body}
    return read_items({"items": {name: given}}, "slat")[f"slat/{name}"]
