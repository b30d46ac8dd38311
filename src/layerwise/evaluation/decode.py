"""Typed values from JSON, checked field by field."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from layerwise.errors import CheckpointError, LayerwiseError


def decode(kind: Any, value: Any, *, source: str, where: str = "the record", blank: bool = False) -> Any:
    """A value of type `kind` from what `json.loads` gave.

    Args:
        kind: a dataclass, a class with `from_dict`, str, int, float, bool, Tensor, `tuple[X, ...]`, `tuple[X, Y]`, `dict[K, X]`,
            a Literal, `X | None`, or Any.
        value: parsed JSON.
        source: the file, for messages.
        where: the place in it, for messages.
        blank: null in place of a number is NaN.

    Raises:
        CheckpointError: a field is missing, unknown, or of another type; the sentence names it.

    >>> decode(tuple[int, ...], [1, 2], source="a.json")
    (1, 2)
    >>> decode(float | None, None, source="a.json") is None
    True
    >>> decode(dict[str, float], {"a": "b"}, source="a.json")
    Traceback (most recent call last):
    layerwise.errors.CheckpointError: a.json is corrupt: the record["a"] is 'b', which is no number
    """
    again = partial(decode, source=source, blank=blank)

    def wrong(expected: str) -> CheckpointError:
        shown = repr(value)
        return CheckpointError(f"{source} is corrupt: {where} is {shown[:60]}, which is no {expected}")

    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        (inner,) = (a for a in arguments if a is not type(None))
        return None if value is None else again(inner, value, where=where)
    if origin is typing.Literal:
        if value not in arguments:
            raise wrong(f"one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) and isinstance(value, list) else arguments
        if not isinstance(value, list) or len(kinds) != len(value):
            raise wrong("list" if arguments[1:] == (...,) else f"list of {len(arguments)}")
        return tuple(again(k, v, where=f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong("object")
        return {
            _key(arguments[0], key, wrong): again(arguments[1], v, where=f'{where}["{key}"]')
            for key, v in value.items()
        }
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, source, where, blank)
    if hasattr(kind, "from_dict"):
        return kind.from_dict(value, source=source)
    if kind is Tensor:
        return _tensor(value, wrong)
    if kind is bool or kind is str or kind is int:
        if type(value) is not kind:
            raise wrong({bool: "true or false", str: "text", int: "whole number"}[kind])
        return value
    if blank and value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise wrong("number")
    return float(value)


def _key(kind: Any, key: str, wrong: typing.Callable[[str], CheckpointError]) -> Any:
    """A dictionary's key, which JSON holds as text."""
    try:
        return kind(key)
    except ValueError:
        raise wrong("object whose names are numbers") from None


def _tensor(value: Any, wrong: typing.Callable[[str], CheckpointError]) -> Tensor:
    """Numbers in float64, which holds what JSON holds."""
    try:
        return torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise wrong("array of numbers") from None


def _dataclass(kind: Any, value: Any, source: str, where: str, blank: bool) -> Any:
    if not isinstance(value, dict):
        raise CheckpointError(f"{source} is corrupt: {where} is {value!r:.60}, which is no object")
    hints = typing.get_type_hints(kind)
    known = {f.name: hints[f.name] for f in dataclasses.fields(kind)}
    if missing := known.keys() - value.keys():
        raise CheckpointError(f"{source} is corrupt: {where} has no {', '.join(sorted(missing))}")
    if unknown := value.keys() - known.keys():
        raise CheckpointError(f"{source} is corrupt: {where} has an unknown {', '.join(sorted(unknown))}")
    decoded = {
        name: decode(known[name], v, source=source, where=f"{where}.{name}", blank=blank) for name, v in value.items()
    }
    try:
        return kind(**decoded)
    except LayerwiseError as error:
        raise CheckpointError(f"{source} is corrupt: {where}: {error}") from error


class Plain:
    """A dataclass that goes to JSON's types and back."""

    def to_dict(self) -> dict[str, Any]:
        """Every field in JSON's types."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, value: Any, *, source: str = "the record") -> Self:
        """Read what `to_dict` gave, perhaps through JSON.

        Raises:
            CheckpointError: something is missing, unknown or impossible.
        """
        record: Self = decode(cls, value, source=source)
        return record
