"""One registry of everything that has a name: methods, attacks, data sets, networks, measures, criteria, ...

A thing registers itself where it is written, and is found by its name or, for a user's own, by `my_module:Name`:

    @register("method")
    @dataclass(kw_only=True)
    class MyMethod(InputMethod): ...

    find("method", "SLAT").thing                       # any case
    find("method", "my_module:MyMethod", trust=True)   # imports the user's module, so only where the user typed it
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FunctionType, MappingProxyType
from typing import Any, TypeVar, final, get_type_hints

from layerwise.core.checks import of_kind
from layerwise.errors import ConfigError, did_you_mean

T = TypeVar("T")


@final
@dataclass(frozen=True)
class Kind:
    """What all things of a kind have in common.

    Args:
        noun: what a message calls one of them.
        package: whose modules are imported before the first look-up; each registers what it holds.
        wanted: `module:Class` that every one of them is a class derived from.
        listed: what `layerwise list` calls them; None where it does not.
        made: whether a function that makes one will do.
    """

    noun: str
    package: str
    wanted: str
    listed: str | None = None
    made: bool = False

    def check(self, thing: object, name: str) -> None:
        """Complain about what cannot be of this kind, before it is called.

        Raises:
            ConfigError: a class that derives from something else, or a function that cannot be known to make one.
        """
        module, _, attribute = self.wanted.partition(":")
        wanted, known = getattr(import_module(module), attribute), f"{module}.{attribute}"
        if issubclass(thing, wanted) if isinstance(thing, type) else self.made and _makes(thing, wanted):
            return
        if isinstance(thing, FunctionType) and self.made:
            raise ConfigError(
                f"{name!r} is a function that does not say that it makes a {self.noun}; write: "
                f"def {thing.__name__}(...) -> {known}"
            )
        found = thing.__name__ if isinstance(thing, type) else f"a {type(thing).__name__}"
        function = ", or a function that makes one" if self.made else ""
        raise ConfigError(f"{name!r} is {found}, no {self.noun}; name a class derived from {known}{function}")


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "method": Kind("method", "layerwise.methods", "layerwise.methods.base:Method", "methods"),
        "model": Kind("network", "layerwise.models", "torch.nn:Module", "models", made=True),
        "data": Kind("data set", "layerwise.data", "layerwise.data.splits:ImageData", "data", made=True),
        "attack": Kind("attack", "layerwise.attacks", "layerwise.attacks.base:Attack", "attacks"),
        "measure": Kind(
            "measure",
            "layerwise.evaluation.measures",
            "layerwise.evaluation.measurement:Measurement",
            "measures",
            made=True,
        ),
        "criterion": Kind("criterion", "layerwise.core.criteria", "layerwise.core.criteria:Criterion", "criteria"),
        "optimizer": Kind("optimizer", "layerwise.training", "layerwise.training.optim:Optimizer"),
        "schedule": Kind("schedule", "layerwise.training", "layerwise.training.schedules:Schedule"),
        "inference": Kind("inference", "layerwise.models", "layerwise.models.stochastic:Inference"),
    }
)
"""Every kind of thing that a recipe or the command line can name."""


@final
@dataclass(frozen=True)
class Entry:
    """A thing and what is known of it.

    Args:
        kind: a key of `KINDS`.
        name: what recipes and the command line call it.
        thing: the class or function.
        facts: what its room keeps beside it, such as options that a network's name settles.
    """

    kind: str
    name: str
    thing: Any
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.thing) or "").partition("\n")[0]


_ENTRIES: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}

_IMPORTED: dict[tuple[str, str], Entry] = {}
"""What the user has named by import path; its code has run, so that from then on the name needs no trust."""


def register(kind: str, name: str | None = None, **facts: Any) -> Callable[[T], T]:
    """A decorator that gives a class or function a name.

    Args:
        kind: a key of `KINDS`.
        name: what it is called; None is its own name.
        facts: kept beside it, see `Entry`.

    Returns:
        The decorator; it returns its argument unchanged.

    Raises:
        ConfigError: no such kind, a name that looks like an import path or belongs to something else, a thing of another kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no kind {kind!r} to register; {did_you_mean(kind, KINDS)}")

    def add(thing: T) -> T:
        own = name or getattr(thing, "__name__", "")
        noun = KINDS[kind].noun
        if not own or "." in own or ":" in own:
            raise ConfigError(
                f"{own!r} cannot name a {noun}: '.' and ':' mark import paths; type for example 'my-{kind}'"
            )
        known = _ENTRIES[kind].get(own)
        # A notebook cell that is run twice defines the same thing again, which is no conflict.
        if known is not None and _origin(known.thing) != _origin(thing):
            raise ConfigError(f"the {noun} name {own!r} is taken; register yours under another")
        _ENTRIES[kind][own] = Entry(kind, own, thing, facts)
        return thing

    return add


def entries(kind: str) -> dict[str, Entry]:
    """Everything of a kind by its name, sorted."""
    _load(KINDS[kind].package)
    return dict(sorted(_ENTRIES[kind].items(), key=lambda item: item[0].lower()))


def names(kind: str) -> list[str]:
    """The names of a kind, sorted."""
    return list(entries(kind))


def name_of(kind: str, thing: object) -> str:
    """What a thing is called: its name in the registry, else its import path, by either of which `find` gives it."""
    for entry in _ENTRIES[kind].values():
        if entry.thing is thing:
            return entry.name
    return ":".join(_origin(thing))


def known_as(cls: type) -> str:
    """What settings call a class: its name in the registry, its own name, or the import path of a user's."""
    named = [entry.name for entries in _ENTRIES.values() for entry in entries.values() if entry.thing is cls]
    module, name = _origin(cls)
    return named[0] if named else name if module.startswith("layerwise.") else f"{module}:{name}"


def find(kind: str, name: str, *, trust: bool = False) -> Entry:
    """A thing by its name, in any case, or by `my_module:Name`.

    Args:
        kind: a key of `KINDS`.
        name: as a recipe or the command line gives it.
        trust: whether the name came from the user, and so may import (that is, run) a module.

    Raises:
        ConfigError: unknown, with the closest; a module of somebody else; one that cannot be imported; a thing of another kind.
    """
    known = entries(kind)
    of_kind(f"the name of a {KINDS[kind].noun}", name, str, example=f"one as text, such as {next(iter(known), '')!r}")
    if name in known:
        return known[name]
    if not trust and (kind, name) in _IMPORTED:
        return _IMPORTED[kind, name]
    if ":" in name:
        if not trust:
            raise ConfigError(
                f"the run names code of its own, {name!r}, which would be executed; add --trust to allow it (in Python: trust=True)"
            )
        return remember(name, _imported(kind, name))
    folded = {each.lower(): entry for each, entry in known.items()}
    if name.lower() in folded:
        return folded[name.lower()]
    raise ConfigError(
        f"there is no {KINDS[kind].noun} {name!r}; {did_you_mean(name, known)} ('my_module:Name' takes one of yours)"
    )


def remember(name: str, entry: Entry) -> Entry:
    """Let what a trusted name has imported be found under it later, by those who may import nothing; gives the entry."""
    _IMPORTED[entry.kind, name] = _IMPORTED[entry.kind, name_of(entry.kind, entry.thing)] = entry
    return entry


def _imported(kind: str, path: str) -> Entry:
    """What a user's module holds under an attribute's name, or has registered under a name."""
    module_name, _, attribute = path.partition(":")
    # A console script, unlike `python FILE`, has not the current folder on its path.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{path!r} cannot be imported ({error}); is {module_name} installed, or its folder on PYTHONPATH?"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path!r} is not an import path; type my_module:Name") from error
    registered = _ENTRIES[kind].get(attribute)
    if registered is not None and _origin(registered.thing)[0] == module.__name__:
        return registered
    if not hasattr(module, attribute):
        there = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
        raise ConfigError(f"{module_name} holds no {attribute!r}; {did_you_mean(attribute, there)}")
    thing = getattr(module, attribute)
    for entry in _ENTRIES[kind].values():
        if entry.thing is thing:
            return entry
    KINDS[kind].check(thing, path)
    return Entry(kind, path, thing)


@cache
def _load(package: str) -> None:
    """Import a package's modules, so that each registers what it holds; a new module is found by itself."""
    module = import_module(package)
    for info in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if not info.ispkg:
            import_module(f"{package}.{info.name}")


def _makes(thing: object, wanted: type) -> bool:
    """Whether a function may be called to see if it makes what is wanted: that of another library may start a program.

    It says so, `-> Wanted`, or it is a Python function in a module that has to do with the library that the wanted class is of.
    """
    if not isinstance(thing, FunctionType):
        return False
    try:
        said = get_type_hints(thing).get("return")
    except Exception:  # an annotation that names what is not there says nothing
        said = None
    if isinstance(said, type) and said is not Any:
        return issubclass(said, wanted)
    library = wanted.__module__.partition(".")[0]
    around = [
        kind for value in thing.__globals__.values() for kind in (value.__mro__ if isinstance(value, type) else [value])
    ]
    places = (getattr(value, "__module__", None) or getattr(value, "__name__", None) or "" for value in around)
    return thing.__module__.partition(".")[0] != library and any(p.partition(".")[0] == library for p in places)


def _origin(thing: object) -> tuple[str, str]:
    """Where a thing was defined."""
    return getattr(thing, "__module__", ""), getattr(thing, "__qualname__", repr(thing))
