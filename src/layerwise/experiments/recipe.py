"""Recipes: commented YAML, one a result."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from layerwise.errors import ConfigError, did_you_mean
from layerwise.experiments.choices import Layer
from layerwise.experiments.ranges import Range, read_ranges
from layerwise.trees import load_yaml


def folder() -> Path:
    """Where the recipes that come with the package are."""
    return Path(str(resources.files("layerwise"))) / "experiments" / "recipes"


def names() -> list[str]:
    """The recipes that come with the package, sorted.

    >>> "slat-digits" in names()
    True
    """
    return sorted(path.stem for path in folder().glob("*.yaml"))


def path_of(recipe: str, *, beside: Path | None = None) -> Path:
    """The file of a recipe: a name of `names()`, or the path of a YAML file.

    Args:
        recipe: the name or path.
        beside: a file; paths are looked for in its folder first.

    Raises:
        ConfigError: neither.
    """
    if (own := folder() / f"{recipe}.yaml").is_file():
        return own
    if recipe.endswith((".yaml", ".yml")):
        near = beside.parent / recipe if beside is not None else Path(recipe)
        return near if near.is_file() else Path(recipe)
    raise ConfigError(
        f"there is no recipe {recipe!r}; {did_you_mean(recipe, names())} (`layerwise list recipes` shows all)"
    )


def load(recipe: str, *, trust: bool = False) -> list[Layer]:
    """A recipe as trees, each to be laid on those before it: `extends: NAME` puts another recipe's before its own.

    Args:
        recipe: a name or path.
        trust: whether the user named it, so that it may name code of the user's; the configuration of a run that it extends may not.

    Raises:
        ConfigError: unknown, not YAML, or recipes that extend each other in a circle.
    """
    layers: list[Layer] = []
    seen: list[str] = []
    current, file = recipe, None
    while True:
        if current in seen:
            raise ConfigError(f"recipe {recipe!r} extends itself: {' -> '.join([*seen, current])}")
        seen.append(current)
        file = path_of(current, beside=file)
        tree = load_yaml(file)
        following = tree.pop("extends", None)
        tree.pop("tune", None)  # only `ranges` looks at it
        layers.insert(0, Layer(tree, current, trust and (not layers or file.name != "config.yaml")))
        if following is None:
            return layers
        if not isinstance(following, str):
            raise ConfigError(f"{file}: extends={following} does not fit; type one recipe's name or file")
        current = following


def ranges(recipe: str) -> dict[str, Range]:
    """What a recipe's own `tune:` section says; those that it extends may train otherwise, so theirs do not count.

    Raises:
        ConfigError: no recipe, or something that is no range.
    """
    file = path_of(recipe)
    return read_ranges(load_yaml(file).get("tune"), where=f"{file.name}: ")


def summary(recipe: str) -> str:
    """The first comment line of a recipe: what it is."""
    first = path_of(recipe).read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ").strip()


def data_of(recipe: str) -> str:
    """The data set of a recipe of the package, found in its text: a list of all need not take them for settings.

    >>> data_of("slat-digits")
    'digits'
    """
    text = path_of(recipe).read_text(encoding="utf-8")
    if (own := re.search(r"^data:(?: *\{|(?: *#.*)?\n(?: .*\n)*? +)name: *([\w-]+)", text, re.MULTILINE)) is not None:
        return own[1]
    following = re.search(r"^extends: *([\w-]+)", text, re.MULTILINE)
    return data_of(following[1]) if following is not None else ""
