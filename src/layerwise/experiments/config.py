"""Configurations: nested dataclasses, read from YAML and the command line, written back resolved.

A configuration is a tree of dataclasses. Where a field's type is abstract (`Method`, `Optimizer`, ...), the YAML names one of the
concrete classes and sets its fields:

    method:
      name: SLAT
      eta: 8/255
      base: {name: FGSMRS, eps: 8/255}

and the command line overrides any leaf: `--method.eta 4/255 --method.base.eps 4/255`, any entry of a mapping:
`--method.eta.conv1 0.01`, or another class: `--method ANP`. Every leaf is typed by its annotation, through jsonargparse, and explained
by the class's docstring.
"""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from layerwise.errors import ConfigError, LayerwiseError, did_you_mean
from layerwise.spelling import (
    Tree,
    Typed,
    branch_of,
    check_type,
    dump_yaml,
    entries,
    explanations,
    load_yaml,
    tokens_to_tree,
)

T = TypeVar("T")
Where = Callable[[str], str]
"""What a message about a key begins with: the file or the command line that the key came from."""

COMMAND_LINE = "command line: "

__all__ = ["Leaf", "Schema", "Tree", "dump_yaml", "load_yaml"]


@dataclass(frozen=True)
class Leaf:
    """One settable value: dotted key, type, default (or `dataclasses.MISSING`) and explanation."""

    key: str
    type: Any
    default: Any
    help: str


@dataclass(frozen=True)
class _Field:
    """A field of a configuration class: a choice of class (`registry`), a fixed class (`section`), or a leaf (neither)."""

    name: str
    type: Any
    default: Any
    help: str
    registry: Mapping[str, type] | None
    section: type | None

    @property
    def nullable(self) -> bool:
        return types.NoneType in get_args(self.type)

    @property
    def usual(self) -> str | None:
        """The class that is meant where fields are set and none is named."""
        assert self.registry is not None
        if self.default is None or self.default is dataclasses.MISSING:
            return next(iter(self.registry)) if len(self.registry) == 1 else None
        return type(self.default).__name__


class Schema:
    """The settable values of a configuration class, given which concrete classes a tree names.

    Args:
        root: a dataclass.
        choices: {abstract class: {name: concrete class}}.
    """

    def __init__(self, root: type, choices: Mapping[type, Mapping[str, type]]) -> None:
        self.root, self.choices = root, choices
        self._fields: Callable[[type], dict[str, _Field]] = cache(self._find_fields)

    def _find_fields(self, cls: type) -> dict[str, _Field]:
        hints, explained = get_type_hints(cls), explanations(cls)
        found = {}
        for f in dataclasses.fields(cls):
            if f.init:
                kind = hints[f.name]
                registry = self._registry(kind)
                section = (
                    kind if registry is None and isinstance(kind, type) and dataclasses.is_dataclass(kind) else None
                )
                found[f.name] = _Field(f.name, kind, _default(f), explained.get(f.name, ""), registry, section)
        return found

    def _registry(self, kind: Any) -> Mapping[str, type] | None:
        union = get_origin(kind) in (Union, types.UnionType)
        kinds = [k for k in get_args(kind) if k is not types.NoneType] if union else [kind]
        return self.choices.get(kinds[0]) if len(kinds) == 1 and isinstance(kinds[0], type) else None

    def merge(self, *trees: Mapping[str, Any]) -> Tree:
        """The trees, each laid on those before it, branch by branch; a branch that names another class starts afresh.

        Classes are spelled out: `method: ANP` becomes `{name: ANP}`, and fields without a class name that of the default.
        """
        merged: Tree = {}
        for tree in trees:
            merged = self._merge(self.root, merged, tree)
        return merged

    def _merge(self, cls: type, base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
        result, fields = dict(base), self._fields(cls)
        for name, value in over.items():
            result[name] = self._laid(fields[name], base.get(name), value) if name in fields else value
        return result

    def _laid(self, f: _Field, old: Any, value: Any) -> Any:
        if f.registry is not None:
            return self._laid_choice(f, f.registry, old, branch_of(value))
        if f.section is not None:
            value = branch_of(value)
            value = {} if value is None else value  # a YAML key whose entries are all commented out
            return self._merge(f.section, _mapping(old), value) if isinstance(value, Mapping) else value
        return {**_mapping(old), **entries(value)} if isinstance(value, Mapping) else value

    def _laid_choice(self, f: _Field, registry: Mapping[str, type], old: Any, value: Any) -> Any:
        value = {"name": value} if isinstance(value, str) else value
        if not isinstance(value, Mapping):
            return value
        before = _mapping(old).get("name")
        name = branch_of(value.get("name", before or f.usual))
        if name is None and "name" in value:
            return None
        fields = {k: v for k, v in value.items() if k != "name"}
        if name is None:
            return fields
        if not isinstance(name, str) or name not in registry:
            return {**fields, "name": name}
        kept = {k: v for k, v in _mapping(old).items() if k != "name"} if name == before else {}
        return {"name": name, **self._merge(registry[name], kept, fields)}

    def leaves(self, tree: Mapping[str, Any], *, where: Where = lambda key: "") -> list[Leaf]:
        """Every leaf of the configuration that a merged tree chooses.

        Raises:
            ConfigError: a class that does not exist, or that has to be named.
        """
        return list(self._leaves(self.root, tree, "", where))

    def _leaves(self, cls: type, tree: Mapping[str, Any], prefix: str, where: Where) -> Iterator[Leaf]:
        for f in self._fields(cls).values():
            key, value = prefix + f.name, tree.get(f.name, dataclasses.MISSING)
            if f.registry is not None:
                name = _chosen(f, f.registry, key, value, where)
                yield Leaf(key + ".name", str, name, f"{f.help} One of {', '.join(f.registry)}.")
                if name is not None:
                    yield from self._leaves(f.registry[name], _mapping(value), key + ".", where)
            elif f.section is not None:
                if value is not dataclasses.MISSING and not isinstance(value, Mapping):
                    known = ", ".join(self._fields(f.section))
                    raise ConfigError(f"{where(key)}{key}={value} does not fit; set its parts: {known}")
                yield from self._leaves(f.section, _mapping(value), key + ".", where)
            else:
                yield Leaf(key, f.type, f.default, f.help)

    def read(self, tree: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str = "") -> tuple[Any, Tree]:
        """Check and type a tree and the command line's overrides.

        Args:
            tree: nested mapping, as YAML gives it.
            overrides: `--key value` tokens, or `--key=value`.
            where: file that the tree came from, for messages.

        Returns:
            The configuration object, and the resolved tree with every leaf, which gives the same object again.

        Raises:
            ConfigError: an unknown key (with the closest ones), a value of the wrong type, a class that does not exist.
        """
        typed = tokens_to_tree(overrides)

        def origin(key: str) -> str:
            return COMMAND_LINE if _has(typed, key) else f"{where}: " if where else ""

        chosen = self.merge(tree, typed)
        leaves = {leaf.key: leaf for leaf in self.leaves(chosen, where=origin)}
        given = dict(_given(chosen, leaves, origin))
        values: Tree = {}
        for key, leaf in leaves.items():
            value = given[key] if key in given else copy.deepcopy(leaf.default)
            if value is dataclasses.MISSING:
                raise ConfigError(f"{origin(key)}{key} is not set; add it, or type --{key} VALUE")
            # A default is right as it is, but for a tuple that YAML would give back as a list.
            typed_already = key not in given and not isinstance(value, tuple)
            values[key] = value if typed_already else check_type(key, value, leaf.type, where=origin(key))
        resolved = _nest(values)
        return self.build(resolved), resolved

    def build(self, tree: Mapping[str, Any]) -> Any:
        """The configuration object of a resolved tree."""
        return self._build(self.root, tree, "")

    def _build(self, cls: type[T], tree: Mapping[str, Any], prefix: str) -> T:
        fields, values = self._fields(cls), dict[str, Any]()
        for name, value in tree.items():
            f, key = fields[name], prefix + name
            if f.registry is not None and value is not None:
                branch = {k: v for k, v in value.items() if k != "name"}
                value = self._build(f.registry[value["name"]], branch, key + ".")
            elif f.section is not None:
                value = self._build(f.section, value, key + ".")
            values[name] = value
        try:
            return cls(**values)
        except LayerwiseError as error:
            raise type(error)(f"{prefix.rstrip('.')}: {error}" if prefix else str(error)) from None

    def tree(self, thing: Any) -> Tree:
        """The resolved tree that gives this configuration object, or a part of one."""
        found: Tree = {}
        for f in self._fields(type(thing)).values():
            value = getattr(thing, f.name)
            if f.registry is not None and value is not None:
                value = {"name": type(value).__name__, **self.tree(value)}
            elif f.section is not None:
                value = self.tree(value)
            found[f.name] = value
        return found


def _chosen(f: _Field, registry: Mapping[str, type], key: str, value: Any, where: Where) -> str | None:
    """The class that a merged tree names for a field."""
    known = f"one of {', '.join(registry)}"
    if value is dataclasses.MISSING:
        if f.default is dataclasses.MISSING:
            raise ConfigError(f"{where(key)}{key} is not set; add it, or type --{key} NAME, {known}")
        return None if f.default is None else type(f.default).__name__
    if value is None and f.nullable:
        return None
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where(key)}{key}={'null' if value is None else value} does not fit; type {known}")
    name = value.get("name")
    if name is None:
        raise ConfigError(f"{where(key)}{key} has settings but no class; name it, --{key} NAME, {known}")
    if not isinstance(name, str) or name not in registry:
        raise ConfigError(f"{where(key)}{key}: there is no {name!r}; {_closest_class(name, registry)}")
    return name


def _closest_class(name: Any, registry: Mapping[str, type]) -> str:
    if isinstance(name, str) and (":" in name or "." in name):
        return "classes of your own are used from Python: layerwise.fit(model, YourMethod(), data)"
    return did_you_mean(str(name), registry)


def _given(
    tree: Mapping[str, Any], leaves: Mapping[str, Leaf], where: Where, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """The leaves that a merged tree sets."""
    for name, value in tree.items():
        key = prefix + name
        if key in leaves:
            yield key, value
        elif isinstance(value, Mapping) and any(k.startswith(key + ".") for k in leaves):
            yield from _given(value, leaves, where, key + ".")
        elif value is not None or key + ".name" not in leaves:
            dashes, begin = ("--", "") if where(key) == COMMAND_LINE else ("", where(key))
            full = next(iter(_paths(value, key)))
            raise ConfigError(f"{begin}there is no setting '{dashes}{full}'; {did_you_mean(full, leaves)}")


def _paths(value: Any, key: str) -> Iterator[str]:
    """The dotted keys below a key."""
    if isinstance(value, Mapping) and value:
        for name, below in value.items():
            yield from _paths(below, f"{key}.{name}")
    else:
        yield key


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _has(tree: Mapping[str, Any], key: str) -> bool:
    """Whether a tree sets a key, something below it, or the class that it belongs to."""
    value: Any = tree
    for part in key.split("."):
        if isinstance(value, Typed):
            return True
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True


def _nest(values: Mapping[str, Any]) -> Tree:
    """The tree of dotted keys; a choice of no class, {"name": None}, is None."""
    tree: Tree = {}
    for key, value in values.items():
        branch = tree
        *path, last = key.split(".")
        for part in path[:-1] if last == "name" and value is None else path:
            branch = branch.setdefault(part, {})
        if last == "name" and value is None:
            branch[path[-1]] = None
        else:
            branch[last] = value
    return tree


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default is not dataclasses.MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else dataclasses.MISSING
