"""`layerwise list`: what there is, as rows of a table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from layerwise.cli.arguments import Command
from layerwise.cli.without_torch import without_torch
from layerwise.errors import ConfigError, LayerwiseError, did_you_mean

ALSO = {"networks": "models", "datasets": "data", "losses": "criteria"}
"""What others call what is listed."""

Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]


def add_arguments(parser: Any) -> None:
    """The command's arguments."""
    parser.add_argument("what", nargs="?", help=", ".join(LISTS))


def run(arguments: Any, settings: list[str]) -> None:
    """Print the table."""
    from layerwise.cli.console import show_table

    if arguments.what is None:
        raise ConfigError(f"list needs to know what: {', '.join(LISTS)}; for example: layerwise list recipes")
    show_table(*rows(arguments.what))


def rows(what: str) -> Rows:
    """Header and rows of one list; a row with one cell is a heading.

    >>> header, body = rows("methods")
    >>> [row for row in body if row[0] == "SLAT"][0][1:3]
    ('5', '1.67')

    Raises:
        ConfigError: there is no such list.
    """
    if what not in LISTS:
        raise ConfigError(f"there is no list of {what!r}; {did_you_mean(ALSO.get(what, what), LISTS)}")
    try:
        with without_torch():
            return LISTS[what]()
    except LayerwiseError:
        raise
    except Exception:  # a module does something at its import that a stand-in cannot: then torch itself
        return LISTS[what]()


def first_line(thing: object) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _methods() -> Rows:
    from layerwise.core import registry

    header = ("method", "passes", "x standard", "steps", "what it does")
    made = [(entry, entry.thing().passes) for entry in registry.entries("method").values()]
    return header, [(e.name, str(p.total), f"{p.total / 3:.2f}", str(p.steps), e.summary) for e, p in made]


def _models() -> Rows:
    from layerwise import models

    return ("model", "what it is"), [(name, models.describe(name)) for name in models.names()]


def _data() -> Rows:
    from layerwise import data

    return ("data set", "what it is"), [(name, data.describe(name).partition("\n")[0]) for name in data.names()]


def _recipes() -> Rows:
    from layerwise.experiments import recipe

    body: list[tuple[str, ...]] = []
    for protocol, found in recipe.protocols().items():
        body += [(f"{protocol}",), *((each.name, each.summary) for each in found)]
    return ("recipe", "what it is"), body


def _attacks() -> Rows:
    from layerwise.core import registry

    return ("attack", "what it does"), [(name, entry.summary) for name, entry in registry.entries("attack").items()]


def _suites() -> Rows:
    from layerwise.experiments.suites import SUITES

    return ("suite", "what it is, and what is in it"), [(n, f"{s.summary}: {s.contents()}") for n, s in SUITES.items()]


def _measures() -> Rows:
    from layerwise.core import registry
    from layerwise.evaluation.measure import usual_sizes

    found = registry.entries("measure").values()
    return ("measure", "sizes", "what it shows"), [(e.name, usual_sizes(e), e.summary) for e in found]


def _corruptions() -> Rows:
    from layerwise.evaluation.corruptions import CORRUPTIONS, SEQUENCES, STANDARD, STANDARD_SEQUENCES

    about = {True: "one of the benchmark's, in its mean", False: "an extra one, outside the mean"}
    found: list[tuple[str, ...]] = [(name, "corruption", about[name in STANDARD]) for name in CORRUPTIONS]
    found += [(name, "sequence", about[name in STANDARD_SEQUENCES]) for name in SEQUENCES]
    return ("name", "kind", "what it is"), found


def _criteria() -> Rows:
    from layerwise.core.criteria import CrossEntropy

    return ("criterion", "what it is"), [(cls.__name__, first_line(cls)) for cls in (CrossEntropy,)]


LISTS: Mapping[str, Callable[[], Rows]] = {
    "methods": _methods,
    "models": _models,
    "data": _data,
    "recipes": _recipes,
    "attacks": _attacks,
    "suites": _suites,
    "measures": _measures,
    "corruptions": _corruptions,
    "criteria": _criteria,
}
"""Every list by name."""


COMMAND = Command(
    summary="show what there is: methods, models, data, recipes, attacks, suites, ...",
    text="Show what there is.\n\n  layerwise list recipes\n",
    add_arguments=add_arguments,
    run=run,
)
