"""The one reader of types: what YAML, the command line and JSON hold becomes what an annotation says, or a sentence why it does not.

Types are those of dataclasses: numbers, texts, Literals, unions, lists, tuples, mappings, other dataclasses. pydantic does the work,
strictly (a text is no number, true is no 1). A setting's text is first read as YAML, since everything typed is a text.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, Self, Union, get_args, get_origin

from layerwise.errors import CheckpointError, ConfigError, LayerwiseError, did_you_mean
from layerwise.trees import NotYAML, Typed, parse_yaml, plain

Own = tuple[tuple[type, Callable[[Any], Any]], ...]
"""Types that a caller reads by functions of its own, of JSON's values; they raise ValueError("what it should be")."""

CHECK = "check"
"""Metadata of a field whose values hold names in their texts: what complains about them, called with the value and `trust`."""


def convert(kind: Any, value: Any, *, own: Own = ()) -> Any:
    """A value of JSON's types as a type, strictly: a text is no number, and true is no 1.

    >>> convert(tuple[float, ...], [1, 2])
    (1.0, 2.0)

    Raises:
        pydantic.ValidationError: a ValueError, with the places of what does not fit.
    """
    return _validator(kind, own).validate_python((value,))[0]


@cache
def _adapter(kind: Any) -> Any:
    """Pydantic's of a tuple of one value of the type: alone, a dataclass would not take the configuration."""
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(tuple[kind], config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))


@cache
def _validator(kind: Any, own: Own) -> Any:
    from pydantic_core import SchemaValidator

    return SchemaValidator(_told(_adapter(kind).core_schema, dict(own)))


def _told(schema: Any, own: Mapping[type, Callable[[Any], Any]]) -> Any:
    """Pydantic's schema, but what a dataclass checks itself is told with its place, and a caller's types are read by the caller."""
    from pydantic_core import PydanticCustomError, core_schema

    if isinstance(schema, list):
        return [_told(part, own) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kind: Any = float if schema.get("type") == "float" else schema.get("cls")
    if kind in own:
        return core_schema.no_info_plain_validator_function(own[kind])
    # Names in JSON are texts, also those that are numbers; everything else has the type that it should have.
    told: dict[str, Any] = {key: part if key == "keys_schema" else _told(part, own) for key, part in schema.items()}
    if schema.get("type") in ("int", "float", "bool", "str"):
        told |= {"strict": True} | ({"allow_inf_nan": False} if schema["type"] == "float" else {})
    if schema.get("type") != "dataclass" or not schema.get("post_init"):
        return told

    def check(made: Any) -> Any:
        try:
            made.__post_init__()
        except LayerwiseError as error:
            raise PydanticCustomError("own_check", "{said}", {"said": str(error)}) from None
        return made

    ref = told.pop("ref", None)
    return core_schema.no_info_after_validator_function(check, {**told, "post_init": False}, ref=ref)


def read_record(kind: Any, value: Any, *, source: str, where: str = "the record", own: Own = ()) -> Any:
    """A record from what `json.loads` gave.

    Args:
        kind: a dataclass, or any other type.
        value: parsed JSON.
        source: the file, for messages.
        where: what the value is called in it.
        own: types with a reader of their own.

    Raises:
        CheckpointError: a field is missing, unknown, or of another type; the sentence names its place.

    >>> read_record(dict[str, float], {"a": "b"}, source="a.json")
    Traceback (most recent call last):
    layerwise.errors.CheckpointError: a.json is corrupt: the record.a is 'b', which is no number
    """
    from pydantic import ValidationError

    try:
        return convert(kind, value, own=own)
    except ValidationError as error:
        raise CheckpointError(f"{source} is corrupt: {_fault(error.errors(), where)}") from None


EXPECTED = {
    "int": "whole number",
    "float": "number",
    "finite": "number",
    "bool": "true or false",
    "string": "text",
    "tuple": "list",
    "list": "list",
    "dict": "object",
    "dataclass": "object",
}
"""What should have been there, by the first word of pydantic's error."""


def _fault(errors: list[Any], where: str) -> str:
    """What is wrong, in words, and where: the first error, and for fields those beside it."""
    fields = {"missing": "has no", "unexpected_keyword_argument": "has an unknown"}
    error = next((e for e in errors if e["type"] in fields and isinstance(e["loc"][-1], str)), errors[0])
    kind, (*path, last) = error["type"], error["loc"]
    if kind in fields and isinstance(last, str):
        names = {e["loc"][-1] for e in errors if e["type"] == kind and list(e["loc"][:-1]) == path}
        return f"{_place(where, path)} {fields[kind]} {', '.join(sorted(names))}"
    if kind == "own_check":
        return f"{_place(where, error['loc'])}: {error['ctx']['said']}"
    expected, place = EXPECTED.get(kind.partition("_")[0], "value of its type"), error["loc"]
    if kind == "literal_error":
        expected = f"one of {error['ctx']['expected'].replace(' or ', ', ')}"
    elif kind == "value_error":
        expected = str(error["ctx"]["error"])
    elif last == "[key]":
        expected, place = "name that is a number", path
    elif kind in ("missing", "too_long"):
        expected, place = "list of that length", path if kind == "missing" else place
    return f"{_place(where, place)} is {error['input']!r:.60}, which is no {expected}"


def _place(where: str, path: Sequence[str | int]) -> str:
    """A place below a value; the first part is that of the list around it.

    >>> _place("the record", (0, "results", 1, "count"))
    'the record.results[1].count'
    """
    return where + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path[1:])


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
        record: Self = read_record(cls, value, source=source)
        return record


def read_setting(key: str, value: Any, kind: Any, *, where: str = "") -> Any:
    """A setting's value as its type.

    Args:
        key: dotted, for messages.
        value: from YAML, or text of the command line (`Typed`).
        kind: the setting's annotation.
        where: what messages begin with.

    Raises:
        ConfigError: it does not fit; the sentence says what does.

    >>> read_setting("eta", "8/255", float)
    Traceback (most recent call last):
    layerwise.errors.ConfigError: eta=8/255 does not fit; type a number
    """
    for meaning in _meanings(value, kind, f"{where}{key}"):
        try:
            return convert(kind, meaning)
        except ValueError:
            continue
    if isinstance(value, Mapping):  # one entry is at fault, if a mapping can be meant at all
        for inner in (get_args(k)[1] for k in _alternatives(kind) if get_origin(k) is dict):
            for name, each in value.items():
                read_setting(f"{key}.{name}", each, inner, where=where)
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = text if len(text) <= 200 else f"{text[:200]}..."
    raise ConfigError(f"{where}{key}={text} does not fit; type {spoken(kind)}")


def _meanings(value: Any, kind: Any, where: str) -> Iterator[Any]:
    """What a value may mean, likeliest first: what is typed is YAML or a text, what is a text in YAML may be typed as on a command line."""
    if isinstance(value, Typed):
        yield from _yaml(value, where)
    yield value if isinstance(value, str) else plain(value)
    if isinstance(value, str):
        if not isinstance(value, Typed):
            yield from _yaml(value, where)
        if value[:1] != "[" and any(get_origin(k) in (list, tuple) for k in _alternatives(kind)):
            yield from _yaml(f"[{value}]", where)  # shells want brackets in quotes
    elif isinstance(value, list | tuple):
        yield from _names(value)
    elif not isinstance(value, bool | Mapping | None):
        yield str(value)


def _yaml(text: str, where: str) -> Iterator[Any]:
    try:
        value = plain(parse_yaml(text, where))
    except NotYAML:
        return
    # A text stays as it was typed, quotes and # included, and nothing, or a comment, is not null.
    if isinstance(value, str) or (value is None and text.strip().lower() not in ("null", "~")):
        return
    yield value
    yield from _names(value)


def _names(value: Any) -> Iterator[Any]:
    """A list in which numbers are names, as modules in a sequence have them."""
    if isinstance(value, list | tuple):
        yield [str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v for v in value]


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def read_items(items: Iterable[str], kinds: Mapping[str, Any], *, where: str, owner: str) -> dict[str, Any]:
    """`key=value`s, as attacks and measures have them behind their names.

    Args:
        items: the texts.
        kinds: {key: type}.
        where: what messages begin with.
        owner: whose they are, for messages.

    Raises:
        ConfigError: there is no such key, or the value does not fit.

    >>> read_items(["steps=5"], {"steps": int}, where="", owner="pgd")
    {'steps': 5}
    """
    found = {}
    for item in items:
        key, equals, value = item.partition("=")
        if key in kinds and not equals:
            raise ConfigError(f"{where}{key} has no value; type {key}=VALUE")
        if key not in kinds:
            raise ConfigError(f"{where}{owner} has no {key!r}; {did_you_mean(key, kinds)}")
        found[key] = read_setting(key, Typed(value), kinds[key], where=where)
    return found


def spoken(kind: Any) -> str:
    """A type in words.

    >>> spoken(int | None)
    'a whole number or null'
    """
    if len(alternatives := _alternatives(kind)) > 1:
        return " or ".join(dict.fromkeys(map(spoken, alternatives)))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) in (list, tuple):
        return "a list in brackets, [a, b]"
    if get_origin(kind) is dict:
        return "{name: value, ...} in quotes"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", types.NoneType: "null"}
    return str(words.get(kind) or getattr(kind, "spoken", kind))


def written(value: Any, kind: Any = None) -> str:
    """A value the way it is typed on a command line or in a recipe.

    >>> written({"input": 0.25, "conv1": 0.1}), written(None), written(["clean", "pgd-20"])
    ('{input: 0.25, conv1: 0.1}', 'null', '[clean, pgd-20]')
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {written(v, kind)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(written(v, kind) for v in value) + "]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return str(_writer(kind)(value))
    return str(value)


def _writer(kind: Any) -> Callable[[float], str]:
    """How a type, or one inside it, writes its numbers."""
    own: Callable[[float], str] | None = getattr(kind, "written", None)
    return own or next((w for k in get_args(kind) if (w := _writer(k)) is not _short), _short)


def _short(value: float) -> str:
    return f"{value:g}"


def explanations(thing: Any) -> dict[str, str]:
    """The sentences of a docstring's `Args:`, by field; a class has those of the classes that it is derived from too.

    >>> explanations(read_setting)["key"]
    'dotted, for messages.'
    """
    found: dict[str, str] = {}
    for each in reversed(thing.__mro__) if isinstance(thing, type) else [thing]:
        section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", inspect.cleandoc(each.__doc__ or ""), re.MULTILINE)
        last = ""
        for line in inspect.cleandoc(section[1]).splitlines() if section else []:
            name, colon, text = line.partition(": ")
            if colon and name.isidentifier():
                last, found[name] = name, text.strip()
            elif last:
                found[last] += f" {line.strip()}"
    return found


def json_schema(kind: Any) -> dict[str, Any]:
    """The JSON schema of a type, for what writes or checks recipes."""
    found: dict[str, Any] = _adapter(kind).json_schema()["prefixItems"][0]
    return found
