"""What there is: methods, models, data sets, recipes, and what networks are judged by, as rows of a table."""

from __future__ import annotations

import inspect

from layerwise import data, models
from layerwise.attacks import ATTACKS
from layerwise.core import registry
from layerwise.errors import ConfigError, did_you_mean
from layerwise.evaluation.corruptions import CORRUPTIONS, SEQUENCES, STANDARD, STANDARD_SEQUENCES
from layerwise.evaluation.measures import DIAGNOSTICS
from layerwise.experiments import recipe
from layerwise.experiments.suites import SUITES

Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]


def rows(what: str) -> Rows:
    """Header and rows of one list.

    >>> header, body = rows("methods")
    >>> [row for row in body if row[0] == "SLAT"][0][1:3]
    ('5', '1.67')
    """
    lists = {
        "methods": _methods,
        "models": _models,
        "data": _data,
        "recipes": _recipes,
        "attacks": _attacks,
        "suites": _suites,
        "diagnostics": _diagnostics,
        "corruptions": _corruptions,
    }
    if what not in lists:
        raise ConfigError(f"there is no list of {what!r}; {did_you_mean(what, lists)}")
    return lists[what]()


def first_line(thing: object) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _methods() -> Rows:
    header = ("method", "passes", "x standard", "steps", "what it does")
    made = [(entry, entry.thing().passes) for entry in registry.entries("method").values()]
    return header, [(e.name, str(p.total), f"{p.total / 3:.2f}", str(p.steps), e.summary) for e, p in made]


def _models() -> Rows:
    return ("model", "what it is"), [(name, models.describe(name)) for name in models.names()]


def _data() -> Rows:
    return ("data set", "what it is"), [(name, data.describe(name).partition("\n")[0]) for name in data.names()]


def _recipes() -> Rows:
    return ("recipe", "what it is"), [(name, recipe.summary(name)) for name in recipe.names()]


def _attacks() -> Rows:
    return ("attack", "what it does"), [(name, first_line(cls)) for name, cls in ATTACKS.items()]


def _suites() -> Rows:
    return ("suite", "what it is, and what is in it"), [(n, f"{s.summary}: {s.contents()}") for n, s in SUITES.items()]


def _diagnostics() -> Rows:
    made = {name: " ".join(f"{k}={v}" for k, v in look.sizes.items()) for name, look in DIAGNOSTICS.items()}
    rows: list[tuple[str, ...]] = [(name, f"{look.summary}; {made[name]}") for name, look in DIAGNOSTICS.items()]
    return ("diagnostic", "what it shows, and its usual sizes"), rows


def _corruptions() -> Rows:
    about = {True: "one of the benchmark's, in its mean", False: "an extra one, outside the mean"}
    rows: list[tuple[str, ...]] = [(name, "corruption", about[name in STANDARD]) for name in CORRUPTIONS]
    rows += [(name, "sequence", about[name in STANDARD_SEQUENCES]) for name in SEQUENCES]
    return ("name", "kind", "what it is"), rows
