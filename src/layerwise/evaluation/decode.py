"""Typed values from JSON, checked field by field."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from typing import Any

from layerwise.errors import CheckpointError, LayerwiseError


def decode(kind: Any, value: Any, *, source: str, where: str = "the record") -> Any:
    """A value of type `kind` from what `json.loads` gave.

    Args:
        kind: a dataclass, str, int, float, bool, `tuple[X, ...]`, `dict[str, X]`, a Literal, `X | None`, or Any.
        value: parsed JSON.
        source: the file, for messages.
        where: the place in it, for messages.

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

    def wrong(expected: str) -> CheckpointError:
        shown = repr(value)
        return CheckpointError(f"{source} is corrupt: {where} is {shown[:60]}, which is no {expected}")

    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        (inner,) = (a for a in arguments if a is not type(None))
        return None if value is None else _again(inner, value, source, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise wrong(f"one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise wrong("list")
        return tuple(_again(arguments[0], item, source, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong("object")
        return {key: _again(arguments[1], item, source, f'{where}["{key}"]') for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, source, where)
    if kind is bool or kind is str or kind is int:
        if type(value) is not kind:
            raise wrong({bool: "true or false", str: "text", int: "whole number"}[kind])
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise wrong("number")
    return float(value)


def _again(kind: Any, value: Any, source: str, where: str) -> Any:
    return decode(kind, value, source=source, where=where)


def _dataclass(kind: Any, value: Any, source: str, where: str) -> Any:
    if not isinstance(value, dict):
        raise CheckpointError(f"{source} is corrupt: {where} is {value!r:.60}, which is no object")
    hints = typing.get_type_hints(kind)
    known = {f.name: hints[f.name] for f in dataclasses.fields(kind)}
    if missing := known.keys() - value.keys():
        raise CheckpointError(f"{source} is corrupt: {where} has no {', '.join(sorted(missing))}")
    if unknown := value.keys() - known.keys():
        raise CheckpointError(f"{source} is corrupt: {where} has an unknown {', '.join(sorted(unknown))}")
    decoded = {name: _again(known[name], item, source, f"{where}.{name}") for name, item in value.items()}
    try:
        return kind(**decoded)
    except LayerwiseError as error:
        raise CheckpointError(f"{source} is corrupt: {where}: {error}") from error
