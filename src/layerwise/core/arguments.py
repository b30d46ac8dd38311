"""Arguments that a call does not have, or lacks: what to type instead, in place of Python's own error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import wraps
from importlib import import_module
from inspect import Parameter, isabstract, signature
from typing import Any, ParamSpec, Self, TypeVar, get_args, get_type_hints

from layerwise.errors import ConfigError, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")


class Named:
    """Base of settings: an argument that the class does not have is told with the one that was meant."""

    def __new__(cls, *args: Any, **named: Any) -> Self:
        """Look at the arguments; `__init__` takes them."""
        # What copies and reads back objects calls this without any, and never `__init__`.
        if args or named:
            check_arguments(cls.__init__, cls.__name__, (cls, *args), named)
        return super().__new__(cls)


def named(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function tell which argument was meant."""

    @wraps(function)
    def told(*args: P.args, **named: P.kwargs) -> R:
        try:
            return function(*args, **named)
        except TypeError:  # looked at only here: a training step can wait for no check
            check_arguments(function, function.__name__, args, named)
            raise

    return told


def check_arguments(function: Callable[..., Any], name: str, args: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Complain about arguments that a function does not take.

    Args:
        function: what is called.
        name: what it is called in the message.
        args: its positional arguments, with `self`.
        named: the others.

    Raises:
        ConfigError: one is unknown, missing, or has to be given by name.
    """
    form = signature(function)
    try:
        form.bind(*args, **named)
    except TypeError as error:
        raise ConfigError(_told(function, name, args, named) or f"{name}: {error}") from None


def _told(function: Callable[..., Any], name: str, args: Sequence[Any], given: Mapping[str, Any]) -> str:
    found = list(signature(function).parameters.values())
    by_place = [p for p in found if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    known = [p.name for p in found if p.name != "self"]
    if unknown := [key for key in given if key not in known]:
        home = _home(function, unknown[0])
        hint = f"it belongs to {home}" if home else did_you_mean(unknown[0], known)
        return f"{name} has no argument {unknown[0]!r}; {hint}"
    if len(args) > len(by_place):
        first = next((p.name for p in found if p.kind is Parameter.KEYWORD_ONLY and p.name not in given), "")
        value = " ".join(f"{args[len(by_place)]!r}".split())
        return f"{name} was given {value:.60} without a name; type the name too, such as {first}=..." if first else ""
    lacking = [
        p for p in found if p.default is Parameter.empty and p.name not in given and p not in by_place[: len(args)]
    ]
    return f"{name} needs {' and '.join(p.name for p in lacking)}; add {lacking[0].name}=..." if lacking else ""


def _home(function: Callable[..., Any], unknown: str) -> str:
    """The argument whose settings hold what was given beside it, `training=layerwise.training.Training(epochs=...)`."""
    for argument in (each for each in function.__annotations__ if each != "return"):
        for kind in _kinds(_hint(function, argument)):
            if any(f.name == unknown for f in fields(kind)):
                public = getattr(import_module("layerwise"), kind.__name__, None) is kind
                place = "layerwise" if public else ".".join(kind.__module__.split(".")[:2])
                return f"{argument}={place}.{kind.__name__}({unknown}=...)"
    return ""


def _hint(function: Callable[..., Any], argument: str) -> Any:
    """The type of one argument; others may name what is imported for type checkers alone."""
    alone = type("", (), {"__annotations__": {argument: function.__annotations__[argument]}})
    try:
        return get_type_hints(alone, getattr(function, "__globals__", {}))[argument]
    except NameError:
        return None


def _kinds(hint: Any) -> Iterator[Any]:
    """The dataclasses that a type names, and those beside an abstract one that are derived from it."""
    for part in (hint, *get_args(hint)):
        if isinstance(part, type):
            both: list[Any] = [part, *part.__subclasses__()]
            yield from (c for c in both if is_dataclass(c) and not isabstract(c) and c.__module__ == part.__module__)
