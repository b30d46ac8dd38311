"""Trees of settings as objects: nested dataclasses, of which a tree names the classes, read with every place told, and written back.

A configuration is a tree of dataclasses. Where a field's type is a base class (`Method`, `Optimizer`, ...), the tree names one of the
concrete classes and sets its fields:

    method:
      name: SLAT
      eta: 8/255
      base: {name: FGSMRS, eps: 8/255}

Trees lie in layers, a recipe on the one that it extends, the command line on top: `--method.eta 4/255` overrides a leaf,
`--method.eta.conv1 0.01` an entry of a mapping, `--method ANP` or `--method my_module:Mine` the class, which starts afresh.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Union, get_args, get_origin, get_type_hints

from layerwise.core import registry
from layerwise.errors import ConfigError, LayerwiseError, did_you_mean
from layerwise.reading import CHECK, explanations, read_setting
from layerwise.trees import Tree, plain, tokens_to_tree, untyped


@dataclass(frozen=True)
class Layer:
    """A tree and where it comes from.

    Args:
        tree: as YAML or tokens give it.
        where: file, for messages; "" says nothing.
        trust: whether the user wrote it, so that it may name code of the user's, `my_module:Name`.
    """

    tree: Mapping[str, Any]
    where: str = ""
    trust: bool = False

    def __str__(self) -> str:
        """What a message begins with."""
        return f"{self.where}: " if self.where else ""

    def at(self, tree: Mapping[str, Any]) -> Layer:
        """A branch from the same place."""
        return Layer(tree, self.where, self.trust)


Given = list[tuple[Any, Layer]]
"""What layers give for a field, each with the layer."""

TYPED = "command line"


def command_line(tokens: Sequence[str]) -> Layer:
    """The settings that the user types.

    Raises:
        ConfigError: a token that is no setting, or a setting without value.
    """
    return Layer(tokens_to_tree(tokens), TYPED, trust=True)


@dataclass(frozen=True)
class Leaf:
    """One settable value: dotted key, type and explanation."""

    key: str
    type: Any
    help: str


@dataclass(frozen=True)
class Field:
    """A field of a configuration class: a choice of class (`base`), a fixed class (`section`), or a leaf (neither)."""

    name: str
    type: Any
    field: dataclasses.Field[Any]
    help: str
    base: type | None
    section: type | None

    @property
    def nullable(self) -> bool:
        """Whether null is a value."""
        return types.NoneType in get_args(self.type)

    def default(self, beside: Any = None) -> Any:
        """What it is if nothing sets it: that of an object that is changed, else its own."""
        if beside is not None:
            return getattr(beside, self.name)
        return self.field.default if self.field.default_factory is MISSING else self.field.default_factory()


class Schema:
    """What can be set, given which concrete classes trees name.

    Args:
        root: a dataclass.
        choices: {base class: kind in the registry, or {name: class}}.
        checks: {key of a field's metadata: what complains about its values, given the value and `trust`}, beside `CHECK`.
    """

    def __init__(
        self,
        root: type,
        choices: Mapping[type, str | Mapping[str, type]],
        checks: Mapping[str, Callable[..., None]] = MappingProxyType({}),
    ) -> None:
        self.root, self.choices, self.checks = root, choices, checks
        self.fields: Callable[[type], dict[str, Field]] = cache(self._find_fields)

    def _find_fields(self, cls: type) -> dict[str, Field]:
        hints, explained, found = get_type_hints(cls), explanations(cls), {}
        for f in dataclasses.fields(cls):
            kind = hints[f.name]
            union = get_origin(kind) in (Union, types.UnionType)
            kinds = [k for k in get_args(kind) if k is not types.NoneType] if union else [kind]
            only = kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) else None
            base = only if only in self.choices else None
            section = only if base is None and not union and dataclasses.is_dataclass(only) else None
            if f.init:
                found[f.name] = Field(f.name, kind, f, explained.get(f.name, ""), base, section)
        return found

    def classes(self, base: type) -> dict[str, type]:
        """The classes that can be chosen for a base class, by name."""
        choice = self.choices[base]
        if not isinstance(choice, str):
            return dict(choice)
        return {name: e.thing for name, e in registry.entries(choice).items() if issubclass(e.thing, base)}

    def find(self, base: type, name: Any, *, trust: bool) -> type:
        """A class by name, in any case, or by import path.

        Raises:
            ConfigError: there is none, or it is somebody else's code.
        """
        choice, known = self.choices[base], self.classes(base)
        folded = {each.lower(): cls for each, cls in known.items()}
        if isinstance(name, str) and name.lower() in folded:
            return known.get(name) or folded[name.lower()]
        if not isinstance(choice, str) or not isinstance(name, str) or ":" not in name:
            own = " ('my_module:Name' takes one of yours)" if isinstance(choice, str) else ""
            raise ConfigError(f"there is no {name!r}; {did_you_mean(str(name), known)}{own}")
        found: type = registry.find(choice, name, trust=trust).thing
        if not issubclass(found, base):
            raise ConfigError(f"{name!r} is no {base.__name__}; {did_you_mean(name, known)}")
        return found

    def read(self, *layers: Layer | Mapping[str, Any]) -> tuple[Any, Tree]:
        """Check and type trees.

        Args:
            layers: each lies on those before it; a bare tree is from nowhere and not trusted.

        Returns:
            The configuration object, and the resolved tree with every leaf, which gives the same object again.

        Raises:
            ConfigError: an unknown key (with the closest ones), a value of the wrong type, a class that does not exist.
        """
        given = [layer if isinstance(layer, Layer) else Layer(layer) for layer in layers]
        found = _Reading(self, given).read(self.root, given, "")
        return found, self.tree(found)

    def leaves(self, tree: Mapping[str, Any]) -> list[Leaf]:
        """Every leaf of the configuration that a tree chooses.

        Raises:
            ConfigError: a class that does not exist, or that has to be named.
        """
        return list(_Reading(self, [Layer(tree)]).leaves(self.root, [Layer(tree)], ""))

    def tree(self, thing: Any) -> Tree:
        """The resolved tree that gives this configuration object, or a part of one."""
        found: Tree = {}
        for f in self.fields(type(thing)).values():
            value = getattr(thing, f.name)
            if f.base is not None and value is not None:
                choice, cls = self.choices[f.base], type(value)
                name = registry.name_of(choice, cls) if isinstance(choice, str) else cls.__name__
                value = {"name": name, **self.tree(value)}
            elif f.section is not None:
                value = self.tree(value)
            found[f.name] = value
        return found


@dataclass(frozen=True)
class _Reading:
    """One reading of layers; they are kept whole for what messages say of other keys."""

    schema: Schema
    layers: Sequence[Layer]

    def read(self, cls: type, layers: Sequence[Layer], prefix: str, beside: Any = None) -> Any:
        """An object of a class; what no layer sets is that of the object `beside` it, or the class's default."""
        fields = self.schema.fields(cls)
        for layer in layers:
            if unknown := [name for name in layer.tree if name not in fields]:
                raise self._unknown(f"{prefix}{unknown[0]}", layer.tree[unknown[0]], layer)
        values = {
            name: self._value(f, prefix + name, _given(layers, name), f.default(beside)) for name, f in fields.items()
        }
        try:
            return cls(**values)
        except LayerwiseError as error:
            first = re.match(r"\w*", str(error))
            at_fault = [layer for layer in layers if first and first[0] in layer.tree] or [Layer({})]
            raise type(error)(f"{at_fault[-1]}{prefix[:-1]}{': ' * bool(prefix)}{error}") from None

    def _value(self, f: Field, key: str, given: Given, default: Any) -> Any:
        if f.base is not None:
            cls, below = self._choose(f, f.base, key, given, default)
            return None if cls is None else self.read(cls, below, f"{key}.", default if type(default) is cls else None)
        if f.section is not None:
            return self.read(
                f.section, self._parts(f.section, key, given), f"{key}.", None if default is MISSING else default
            )
        if not given and default is MISSING:
            raise ConfigError(f"{self._file}{key} is not set; add it, or type --{key} VALUE")
        if not given and not isinstance(default, tuple):  # YAML would give a tuple back as a list
            return copy.deepcopy(default)
        value: Any = MISSING if given else default
        for each, _ in given:
            before = value if isinstance(value, Mapping) else {}
            value = {**before, **plain(each)} if isinstance(each, Mapping) else each
        layer = given[-1][1] if given else Layer({})
        value = read_setting(key, value, f.type, where=str(layer))
        try:
            for name, check in {CHECK: f.field.metadata.get(CHECK), **self.schema.checks}.items():
                if check is not None and name in f.field.metadata:
                    check(value, trust=layer.trust)
        except LayerwiseError as error:
            place = "" if str(error).startswith(key) else f"{key}: "
            raise type(error)(f"{layer}{place}{error}") from None
        return value

    def _parts(self, section: type, key: str, given: Given) -> list[Layer]:
        """The layers of a fixed class."""
        below = []
        for value, layer in given:
            value = untyped(value)
            if isinstance(value, str) and "name" in self.schema.fields(section):
                value = {"name": value}
            if not isinstance(value, Mapping | None):
                begin = f"--{key}." if layer.where == TYPED else ""
                known = ", ".join(f"{begin}{name}" for name in self.schema.fields(section))
                raise ConfigError(f"{layer}{key}={value} does not fit; set its parts: {known}")
            below.append(layer.at(value or {}))  # a YAML key whose entries are all commented out is null
        return below

    def _choose(self, f: Field, base: type, key: str, given: Given, default: Any) -> tuple[type | None, list[Layer]]:
        """The class that layers choose, and those of its fields; a layer that names another class starts afresh."""
        cls = None if default in (None, MISSING) else type(default)
        below: list[Layer] = []
        problem: ConfigError | None = None  # of what a later layer may replace
        if not given and default is MISSING:
            problem = ConfigError(f"{self._file}{key} is not set; add it, or type --{key} NAME, {self._known(base)}")
        for value, layer in given:
            branch = _branch(value)
            if branch is None:
                cls, below, problem = None, [], None
                if not f.nullable:
                    problem = ConfigError(f"{layer}{key}=null does not fit; type {self._known(base)}")
            elif not isinstance(branch, Mapping):
                problem = ConfigError(f"{layer}{key}={branch} does not fit; type {self._known(base)}")
            elif "name" not in branch:
                cls = cls or self._only(base)
                below.append(layer.at(branch))
                if cls is None and problem is None:
                    said = f"{layer}{key} has settings but no class; name it, --{key} NAME, {self._known(base)}"
                    problem = ConfigError(said)
            else:
                found: type | None = None
                try:
                    found, problem = self.schema.find(base, branch["name"], trust=layer.trust), None
                except ConfigError as error:
                    problem = type(error)(f"{layer}{key}: {error}")
                below = below if found is cls else []
                below.append(layer.at({k: v for k, v in branch.items() if k != "name"}))
                cls = found
        if problem is not None:
            raise problem
        return cls, below

    def _known(self, base: type) -> str:
        return f"one of {', '.join(self.schema.classes(base))}"

    def _only(self, base: type) -> type | None:
        """The class that is meant where there is one."""
        classes = list(self.schema.classes(base).values())
        return classes[0] if len(classes) == 1 else None

    def leaves(self, cls: type, layers: Sequence[Layer], prefix: str) -> Iterator[Leaf]:
        """See `Schema.leaves`."""
        for f in self.schema.fields(cls).values():
            key, given = prefix + f.name, _given(layers, f.name)
            if f.base is not None:
                yield Leaf(f"{key}.name", str, f"{f.help} One of {', '.join(self.schema.classes(f.base))}.")
                chosen, below = self._choose(f, f.base, key, given, f.default())
            else:
                chosen, below = f.section, self._parts(f.section, key, given) if f.section else []
            if chosen is not None:
                yield from self.leaves(chosen, below, f"{key}.")
            elif f.base is None:
                yield Leaf(key, f.type, f.help)

    def _unknown(self, key: str, value: Any, layer: Layer) -> ConfigError:
        """What is said of a key that does not exist."""
        while isinstance(value, Mapping) and value:
            name, value = next(iter(value.items()))
            key = f"{key}.{name}"
        dashes, begin = ("--", "") if layer.where == TYPED else ("", layer)
        known = [leaf.key for leaf in self.leaves(self.schema.root, self.layers, "")]
        elsewhere = [each for each in known if each.rpartition(".")[2] == key.rpartition(".")[2]]
        return ConfigError(f"{begin}there is no setting '{dashes}{key}'; {did_you_mean(key, elsewhere or known)}")

    @property
    def _file(self) -> Layer:
        """Where something that is missing belongs."""
        return next((layer for layer in reversed(self.layers) if layer.where != TYPED), Layer({}))


def _branch(value: Any) -> Any:
    """What is given for a choice of class: fields, with the class as `name`; None; or something that does not fit."""
    value = untyped(value)
    value = {"name": value} if isinstance(value, str) else value
    return None if isinstance(value, Mapping) and untyped(value.get("name", ...)) is None else value


def _given(layers: Sequence[Layer], name: str) -> Given:
    return [(layer.tree[name], layer) for layer in layers if name in layer.tree]
