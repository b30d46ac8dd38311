"""Recipes: commented YAML, one a result."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from layerwise.config import Tree, load_yaml, merge
from layerwise.errors import ConfigError, did_you_mean


def folder() -> Path:
    """Where the recipes that come with the package are."""
    return Path(str(resources.files("layerwise"))) / "recipes"


def names() -> list[str]:
    """The recipes that come with the package, sorted.

    >>> "slat-digits" in names()
    True
    """
    return sorted(path.stem for path in folder().glob("*.yaml"))


def path_of(recipe: str) -> Path:
    """The file of a recipe: a name of `names()`, or the path of a YAML file.

    Raises:
        ConfigError: neither.
    """
    if (own := folder() / f"{recipe}.yaml").is_file():
        return own
    if recipe.endswith((".yaml", ".yml")):
        return Path(recipe)
    raise ConfigError(
        f"there is no recipe {recipe!r}; {did_you_mean(recipe, names())} (`layerwise list recipes` shows all)"
    )


def load(recipe: str) -> Tree:
    """A recipe as a tree; `extends: NAME` lays it on another recipe.

    Raises:
        ConfigError: unknown, not YAML, or recipes that extend each other in a circle.
    """
    tree: Tree = {}
    for part in reversed(list(_chain(recipe))):
        tree = merge(tree, {k: v for k, v in part.items() if k != "extends"})
    return tree


def _chain(recipe: str) -> Iterator[Tree]:
    seen: list[str] = []
    current: str | None = recipe
    while current is not None:
        if current in seen:
            raise ConfigError(f"recipe {recipe!r} extends itself: {' -> '.join([*seen, current])}")
        seen.append(current)
        part = load_yaml(path_of(current))
        yield part
        current = part.get("extends")


def summary(recipe: str) -> str:
    """The first comment line of a recipe: what it is."""
    first = path_of(recipe).read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ").strip()
