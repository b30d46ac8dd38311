"""Recipes: commented YAML. A file of the package is a protocol, and the recipes that follow it:

    # LAD on CIFAR-10, PreAct ResNet-56 (Yang et al. 2021).
    extends: standard-cifar10              # another recipe, before what this file says
    model: {name: preact_resnet56}         # the protocol: shared by every recipe of the file
    recipes:
      lad-cifar10:  # Lie-Trotter splitting on PGD training.
        method: {name: LAD, eta: 1000}
      lad-sm-cifar10:  # Strang-Marchuk splitting.
        extends: lad-cifar10               # in place of the file's own `extends`
        method: {splitting: strang-marchuk}

`repeats: cifar10` makes every recipe of the file cifar10.yaml beside it again, under its own protocol and name. A file without
`recipes:` is one recipe, such as a user's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, final

from layerwise.core import registry
from layerwise.errors import ConfigError, did_you_mean
from layerwise.experiments.choices import Layer
from layerwise.experiments.ranges import Range, read_ranges
from layerwise.experiments.trust import trusted
from layerwise.trees import Tree, load_yaml

ABOUT = ("extends", "repeats", "recipes", "tune")
"""Keys of a file that are no settings of an experiment."""


def folder() -> Path:
    """Where the recipes that come with the package are, a folder a data set."""
    return Path(str(resources.files("layerwise"))) / "experiments" / "recipes"


@final
@dataclass(frozen=True)
class Listed:
    """A recipe of the package, as its file's text tells it without being read as YAML.

    Args:
        name: what the command line calls it.
        file: where it stands.
        summary: what it is, in a sentence.
        origin: the recipe that it repeats under another protocol, if it does.
    """

    name: str
    file: Path
    summary: str
    origin: str | None = None


@cache
def listed() -> dict[str, Listed]:
    """Every recipe of the package by its name, file by file."""
    files = sorted(folder().glob("*/*.yaml"))
    return {recipe.name: recipe for file in files for recipe in _of_file(file)}


def _of_file(file: Path) -> Iterator[Listed]:
    text = file.read_text(encoding="utf-8")
    if (again := re.search(r"^repeats: *([\w-]+)", text, re.MULTILINE)) is not None:
        for each in _of_file(file.with_name(f"{again[1]}.yaml")):
            yield Listed(_renamed(each.name, again[1], file.stem), file, each.summary, each.name)
    own = text.partition("\nrecipes:")[2]
    for name, summary in re.findall(r"^  ([\w.-]+): *(?:# *(.*))?$", own, re.MULTILINE):
        yield Listed(name, file, summary)


def _renamed(name: str, before: str, after: str) -> str:
    return f"{name.removesuffix(before)}{after}"


def names() -> list[str]:
    """The recipes that come with the package, sorted.

    >>> "slat-digits" in names()
    True
    """
    return sorted(listed())


def protocols() -> dict[str, list[Listed]]:
    """The recipes of each file of the package, {what the file is: its recipes}."""
    found: dict[str, list[Listed]] = {}
    for recipe in listed().values():
        found.setdefault(_first_comment(recipe.file), []).append(recipe)
    return found


def path_of(recipe: str, *, beside: Path | None = None) -> Path:
    """The file of a recipe: a name of `names()`, or the path of a YAML file.

    Args:
        recipe: the name or path.
        beside: a file; paths are looked for in its folder first.

    Raises:
        ConfigError: neither.
    """
    if recipe in listed():
        return listed()[recipe].file
    if recipe.endswith((".yaml", ".yml")):
        near = beside.parent / recipe if beside is not None else Path(recipe)
        return near if near.is_file() else Path(recipe)
    raise ConfigError(_unknown(recipe))


def _unknown(recipe: str) -> str:
    if Path(recipe).is_file():
        return f"{recipe} is no recipe: the file of one ends in .yaml"
    for method in registry.names("method"):
        if method.lower() == recipe.lower():
            those = [name for name in names() if name.partition("-")[0] == method.lower()] or ["standard-digits"]
            return f"{method} is a method; recipes: {', '.join(those)}; any recipe takes it with --method {method}"
    return f"there is no recipe {recipe!r}; {did_you_mean(recipe, names())} (`layerwise list recipes` shows all)"


def load(recipe: str, *, trust: bool = False) -> list[Layer]:
    """A recipe as trees, each to be laid on those before it: first what it extends, then its file's protocol, then itself.

    Args:
        recipe: a name or path.
        trust: whether the user, or a text that is trusted, names it, so that it may name code; see `layerwise.experiments.trust`.

    Raises:
        ConfigError: unknown, not YAML, or recipes that extend each other in a circle.
    """
    return _layers(recipe, trust, (), None)


def _layers(recipe: str, trust: bool, seen: tuple[str, ...], beside: Path | None) -> list[Layer]:
    if recipe in seen:
        raise ConfigError(f"recipe {seen[0]!r} extends itself: {' -> '.join([*seen, recipe])}")
    file, known = path_of(recipe, beside=beside), listed().get(recipe)
    trust = trust if known is not None else trusted(file, named=trust)
    protocol, own = _parts(file, recipe if known is not None else None)
    following = own.pop("extends", None) or protocol.get("extends")
    if known is not None and known.origin is not None:
        following = known.origin
    if following is not None and not isinstance(following, str):
        raise ConfigError(f"{file}: extends={following} does not fit; type one recipe's name or file")
    before = [] if following is None else _layers(following, trust, (*seen, recipe), file)
    shared = [] if following in listed() and listed()[following].file == file else [_settings(protocol)]
    return [*before, *(Layer(tree, recipe, trust) for tree in (*shared, _settings(own)) if tree)]


def _parts(file: Path, name: str | None) -> tuple[Tree, Tree]:
    """What a file's recipes share, and what one of them says itself."""
    tree = _packaged(file) if name is not None else load_yaml(file)
    if name is None:
        if several := [key for key in ("recipes", "repeats") if key in tree]:
            raise ConfigError(f"{file}: {several[0]} is for the files of the package; a file of yours is one recipe")
        return {}, dict(tree)
    entry: Any = (tree.get("recipes") or {}).get(name)
    return tree, dict(entry or {})


@cache
def _packaged(file: Path) -> Tree:
    """A file of the package, which does not change while it is used."""
    return load_yaml(file)


def _settings(tree: Tree) -> Tree:
    return {key: value for key, value in tree.items() if key not in ABOUT}


def ranges(recipe: str) -> dict[str, Range]:
    """What a recipe's own `tune:` section says; those that it extends may train otherwise, so theirs do not count.

    Raises:
        ConfigError: no recipe, or something that is no range.
    """
    file = path_of(recipe)
    _, own = _parts(file, recipe if recipe in listed() else None)
    return read_ranges(own.get("tune"), where=f"{file.name}: ")


def summary(recipe: str) -> str:
    """What a recipe is: the comment behind its name, or the first line of its file."""
    return listed()[recipe].summary if recipe in listed() else _first_comment(path_of(recipe))


def _first_comment(file: Path) -> str:
    return file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").strip()
