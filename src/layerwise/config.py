"""Configurations: nested dataclasses, read from YAML and the command line, written back resolved.

A configuration is a tree of dataclasses. Where a field's type is abstract (`Method`, `Optimizer`, ...), the YAML names one of the
concrete classes and sets its fields:

    method:
      name: SLAT
      eta: 8/255
      base: {name: FGSMRS, eps: 8/255}

and the command line overrides any leaf: `--method.eta 4/255 --method.base.eps 4/255`, or another class: `--method ANP`. Every leaf is
an argument of a jsonargparse parser, typed by its annotation and explained by the class's docstring.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from layerwise.errors import ConfigError, LayerwiseError, did_you_mean
from layerwise.units import Radius, parse_radius

Tree = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Leaf:
    """One settable value: dotted key, type, default (or `dataclasses.MISSING`) and explanation."""

    key: str
    type: Any
    default: Any
    help: str


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The tree's values with their dotted keys; empty branches are values themselves."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, key + ".")
        else:
            yield key, value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """`over` laid on `base`, branch by branch; a branch that names another class starts afresh."""
    result: Tree = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if not isinstance(value, Mapping) or not isinstance(old, Mapping):
            result[key] = value
        elif "name" in value and "name" in old and value["name"] != old["name"]:
            result[key] = dict(value)
        else:
            result[key] = merge(old, value)
    return result


class Schema:
    """The settable values of a configuration class, given which concrete classes a tree names.

    Args:
        root: a dataclass.
        choices: {abstract class: {name: concrete class}}.
    """

    def __init__(self, root: type, choices: Mapping[type, Mapping[str, type]]) -> None:
        self.root, self.choices = root, choices

    def leaves(self, tree: Mapping[str, Any]) -> list[Leaf]:
        """Every leaf of the configuration that `tree` chooses."""
        return list(self._leaves(self.root, tree, ""))

    def _leaves(self, cls: type, tree: Mapping[str, Any], prefix: str) -> Iterator[Leaf]:
        hints, explained = get_type_hints(cls), explanations(cls)
        for f in dataclasses.fields(cls):
            if not f.init:
                continue
            key, kind = prefix + f.name, hints[f.name]
            branch = tree.get(f.name)
            branch = branch if isinstance(branch, Mapping) else {}
            if (registry := self._registry(kind)) is not None:
                default = _default(f)
                only = next(iter(registry)) if branch and len(registry) == 1 else None
                chosen = branch.get("name", only or (type(default).__name__ if default is not None else None))
                known = ", ".join(registry)
                yield Leaf(key + ".name", str, chosen, f"{explained.get(f.name, '')} One of {known}")
                if chosen is not None:
                    yield from self._leaves(self._concrete(key, chosen, registry), branch, key + ".")
            elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
                yield from self._leaves(kind, branch, key + ".")
            else:
                yield Leaf(key, kind, _default(f), explained.get(f.name, ""))

    def _registry(self, kind: Any) -> Mapping[str, type] | None:
        kinds = (
            [k for k in get_args(kind) if k is not types.NoneType]
            if get_origin(kind) in (Union, types.UnionType)
            else [kind]
        )
        return self.choices.get(kinds[0]) if len(kinds) == 1 and isinstance(kinds[0], type) else None

    def _concrete(self, key: str, name: str, registry: Mapping[str, type]) -> type:
        if name not in registry:
            raise ConfigError(f"{key}: there is no {name!r}; {did_you_mean(str(name), registry)}")
        return registry[name]

    def build(self, tree: Mapping[str, Any]) -> Any:
        """The configuration object; values are typed already (see `read`)."""
        return self._build(self.root, tree, "")

    def _build(self, cls: type[T], tree: Mapping[str, Any], prefix: str) -> T:
        hints = get_type_hints(cls)
        values: Tree = {}
        for f in dataclasses.fields(cls):  # type: ignore[arg-type]
            if f.name not in tree:
                continue
            value, kind = tree[f.name], hints[f.name]
            if (registry := self._registry(kind)) is not None and isinstance(value, Mapping):
                name = value.get("name")
                branch = {k: v for k, v in value.items() if k != "name"}
                value = (
                    None
                    if name is None
                    else self._build(self._concrete(prefix + f.name, name, registry), branch, f"{prefix}{f.name}.")
                )
            elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
                value = self._build(kind, value, f"{prefix}{f.name}.")
            values[f.name] = value
        try:
            return cls(**values)
        except LayerwiseError as error:
            raise type(error)(f"{prefix.rstrip('.') or 'configuration'}: {error}") from None

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
        chosen = merge(tree, self._chosen(overrides))
        leaves = {leaf.key: leaf for leaf in self.leaves(chosen)}
        parser = make_parser(leaves.values())
        given = [f"--{key}={_token(value)}" for key, value in self._known(chosen, leaves, where)]
        parsed = _parse(parser, given, leaves, where or "configuration")
        parsed.update(_parse(parser, self._spelled(overrides, leaves), leaves, "command line"))
        values = {key: parsed.get(key, leaf.default) for key, leaf in leaves.items()}
        if missing := [key for key, value in values.items() if value is dataclasses.MISSING]:
            raise ConfigError(
                f"{where or 'configuration'}: {missing[0]} is not set; add it, or type --{missing[0]} VALUE"
            )
        resolved = _nest(values)
        return self.build(resolved), resolved

    def _known(self, tree: Mapping[str, Any], leaves: Mapping[str, Leaf], where: str) -> Iterator[tuple[str, Any]]:
        """The tree's leaves, where a leaf may itself be a mapping, and None for a class stands for none of it."""
        for key, value in flatten(tree):
            parents = [".".join(key.split(".")[:i]) for i in range(1, key.count(".") + 1)]
            if key + ".name" in leaves and (value is None or isinstance(value, str)):
                if value is not None:
                    yield key + ".name", value
            elif key in leaves:
                yield key, value
            elif inside := [p for p in parents if p in leaves]:
                yield inside[0], _at(tree, inside[0])
            elif value != {}:
                raise ConfigError(
                    f"{where + ': ' if where else ''}there is no setting {key!r}; {did_you_mean(key, leaves)}"
                )

    def _chosen(self, overrides: Sequence[str]) -> Tree:
        """The classes that the command line names, `--method ANP` or `--method.name=ANP`."""
        names: Tree = {}
        for key, value in _pairs(overrides):
            key = key.removesuffix(".name")
            if self._is_choice(key) and value and value[:1] not in "{[":
                branch = names
                for part in key.split("."):
                    branch = branch.setdefault(part, {})
                branch["name"] = value
        return names

    def _is_choice(self, key: str) -> bool:
        """Whether a key stands for a choice of class in any configuration (leaf names repeat across classes)."""
        classes: list[type] = [self.root]
        for part in key.split("."):
            found: list[type] = []
            for cls in classes:
                kind = get_type_hints(cls).get(part)
                registry = self._registry(kind)
                found += (
                    list(registry.values())
                    if registry
                    else [kind]
                    if dataclasses.is_dataclass(kind) and isinstance(kind, type)
                    else []
                )
                if registry and part == key.split(".")[-1]:
                    return True
            classes = found
        return False

    def _spelled(self, overrides: Sequence[str], leaves: Mapping[str, Leaf]) -> list[str]:
        """The overrides as parser tokens; unknown keys are refused with the closest ones."""
        tokens = []
        for key, value in _pairs(overrides):
            full = key + ".name" if key + ".name" in leaves else key.replace("-", "_")
            if full not in leaves:
                raise ConfigError(f"there is no setting '--{key}'; {did_you_mean(key, leaves)}")
            tokens.append(f"--{full}={value}")
        return tokens


def _pairs(tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = list(tokens)
    while rest:
        head = rest.pop(0)
        if not head.startswith("--"):
            raise ConfigError(f"unexpected argument {head!r}; settings are typed as --key value")
        key, equals, value = head[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{key} has no value; type --{key} VALUE")
            value = rest.pop(0)
        yield key, value


def _token(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _at(tree: Mapping[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value[part]
    return value


def _nest(values: Mapping[str, Any]) -> Tree:
    tree: Tree = {}
    for key, value in values.items():
        branch = tree
        *path, last = key.split(".")
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = value
    return {k: _pruned(v) for k, v in tree.items()}


def _pruned(value: Any) -> Any:
    """A choice of no class, {"name": None}, is None."""
    if not isinstance(value, dict):
        return value
    if value.get("name", ...) is None and len(value) == 1:
        return None
    return {k: _pruned(v) for k, v in value.items()}


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default is not dataclasses.MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else dataclasses.MISSING


def explanations(cls: type) -> dict[str, str]:
    """The sentences of a docstring's `Args:`, by field."""
    import docstring_parser

    parsed = docstring_parser.parse(inspect.getdoc(cls) or "")
    return {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}


def make_parser(leaves: Iterable[Leaf]) -> Any:
    """A jsonargparse parser with one typed argument a leaf."""
    from jsonargparse import ArgumentParser
    from jsonargparse.typing import register_type

    register_type(
        Radius,
        serializer=float,
        deserializer=_radius,
        type_check=lambda value, kind: isinstance(value, float | int) and not isinstance(value, bool),
        fail_already_registered=False,
    )
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    for leaf in leaves:
        parser.add_argument(f"--{leaf.key}", type=leaf.type, default=None, help=leaf.help)
    return parser


def _radius(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | float | int):
        raise ValueError(f"{value!r} is not a radius")
    return parse_radius(value)


def _parse(parser: Any, tokens: list[str], leaves: Mapping[str, Leaf], where: str) -> Tree:
    """The values of the tokens' keys, typed; one sentence for what does not fit."""
    from jsonargparse import ArgumentError

    result: Tree = {}
    for token in tokens:
        key, _, text = token[2:].partition("=")
        try:
            result[key] = parser.parse_args([token])[key]
        except (ArgumentError, ConfigError, ValueError):
            raise ConfigError(f"{where}: {key}={text} does not fit; type {_spoken(leaves[key].type)}") from None
    return result


def _spoken(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_spoken(k) for k in get_args(kind)))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", types.NoneType: "null"}
    if kind is Radius:
        return "a number or a fraction such as 8/255"
    if get_origin(kind) in (list, tuple):
        return "a list in brackets, [a, b]"
    return "{name: value, ...} in quotes" if get_origin(kind) is dict else words.get(kind, str(kind))


def load_yaml(path: Path) -> Tree:
    """Read a YAML file into a tree, with the safe loader.

    Raises:
        ConfigError: missing, not YAML, or not a mapping.
    """
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or not all(isinstance(k, str) for k in tree):
        raise ConfigError(f"{path} is not a configuration: it should hold keys such as data, model, method, training")
    return tree


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """Write a tree as YAML that `load_yaml` reads back."""
    import yaml

    return str(yaml.safe_dump(_plain(tree), sort_keys=False, allow_unicode=True, width=120))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value
