"""Systems: the runs behind the tables, shared by the hash of their resolved settings."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, final

from layerwise.experiments import experiment, recipe
from layerwise.experiments.choices import Layer
from layerwise.experiments.experiment import SCHEMA
from layerwise.reproduce.definitions import System
from layerwise.reproduce.scales import Scale
from layerwise.training import WEIGHTS
from layerwise.training.run import ADDED, FREE
from layerwise.trees import Tree, at, nested

NEEDS = "system:"
"""Begins, in a resolved tree, a setting that names another system: its recipe before, its run folder when it is trained."""


@final
@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A system at a scale, for a seed.

    Args:
        name: of its run folder: the recipe, and a hash of everything that its weights depend on.
        tree: its settings; where it needs another one, `system:NAME` stands.
        needs: {NAME: system} of those: what it starts from, what its method looks at.
    """

    name: str
    tree: Tree
    needs: dict[str, Resolved]


def resolve(system: System, scale: Scale, *, seed: int) -> Resolved:
    """The settings of a system at a scale.

    Args:
        system: what is trained.
        scale: how it is cut down.
        seed: of the run, and of those that it needs.

    Raises:
        ConfigError: the recipe, method or network does not exist, or a setting does not fit.
    """
    tree = _settings(system.recipe, json.dumps(system.set))
    tree = _with_leaves(
        tree, {"training.seed": tree["training"]["seed"] + seed}
    )  # a second network of a kind has its own
    tree = _with_leaves(tree, scale.apply(tree) | ({} if system.watched else scale.unwatched))
    tree["evaluation"]["trace"] = list(system.trace)
    options = tree["model"]["options"]
    tree["model"]["options"] = {key: value for key, value in options.items() if value is not None}
    needs: dict[str, Resolved] = {}

    def named(value: str) -> str:
        found = resolve(replace(system, recipe=value, set={}, weights="last"), scale, seed=seed)
        needs[found.name] = found
        return NEEDS + found.name

    known = set(recipe.names())
    tree["model"]["start"] = _replaced(tree["model"]["start"], known.__contains__, named)
    tree["method"] = _replaced(tree["method"], known.__contains__, named)
    return Resolved(name=f"{system.recipe}-{digest(_decisive(tree))}", tree=tree, needs=needs)


@cache
def _settings(source: str, changes: str) -> Tree:
    """The settings of a recipe with changes, checked; reading takes a tenth of a second, and tables share systems."""
    _, tree = SCHEMA.read(*recipe.load(source), Layer(nested(json.loads(changes)), source))
    return tree


def _with_leaves(tree: Tree, changes: Mapping[str, Any]) -> Tree:
    """A copy of a resolved tree with leaves changed, or entries of leaves that are mappings."""
    result = copy.deepcopy(tree)
    for key, value in changes.items():
        branch, _, last = key.rpartition(".")
        (at(result, branch) if branch else result)[last] = value
    return result


def trained(system: Resolved, place: Path, *, progress: bool = False) -> Path:
    """The run folder of a system, which is trained unless it is there; an interrupted run goes on."""
    folder = place / system.name
    if (folder / WEIGHTS["last"]).is_file():
        return folder
    folders = {name: str(trained(other, place, progress=progress)) for name, other in system.needs.items()}
    tree = _replaced(system.tree, lambda value: value.startswith(NEEDS), lambda v: folders[v.removeprefix(NEEDS)])
    with experiment.shared(folder) as missing:
        if missing:
            experiment.train(SCHEMA.read(tree)[0], tree, folder=folder, resume=True, progress=progress)
    return folder


def steps_of(system: Resolved, place: Path) -> Iterator[Resolved]:
    """The systems that would be trained for this one, itself last."""
    for other in system.needs.values():
        yield from steps_of(other, place)
    if not (place / system.name / WEIGHTS["last"]).is_file():
        yield system


def digest(value: Any) -> str:
    """A short hash of JSON values, independent of the order of keys.

    >>> digest({"a": 1, "b": (2.0,)}) == digest({"b": [2.0], "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _decisive(tree: Tree) -> Tree:
    """The settings that the weights depend on."""
    kept = {key: value for key, value in tree.items() if key != "evaluation"}
    if trace := tree["evaluation"]["trace"]:
        kept["trace"] = trace  # on which the log depends
    kept["data"] = {key: value for key, value in tree["data"].items() if key not in ("root", "download")}
    training = {k: v for k, v in tree["training"].items() if not any(fnmatch(f"training.{k}", free) for free in FREE)}
    training = {k: v for k, v in training.items() if (k, v) not in ADDED.items()}  # older runs keep their names
    return {**kept, "training": training}


def _replaced(value: Any, chosen: Callable[[str], bool], change: Callable[[str], str]) -> Any:
    """The tree with the texts that are chosen changed."""
    if isinstance(value, Mapping):
        return {key: _replaced(part, chosen, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replaced(part, chosen, change) for part in value)
    return change(value) if isinstance(value, str) and chosen(value) else value
