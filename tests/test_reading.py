"""The reader of types: what fits, what it becomes, and what is told of the rest."""

from __future__ import annotations

import datetime
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerwise.core.checks import Radius
from layerwise.errors import CheckpointError, ConfigError
from layerwise.reading import convert, explanations, json_schema, read_items, read_record, read_setting, spoken, written
from layerwise.trees import Typed

Names = str | list[str] | tuple[str, ...]
Steps = Radius | dict[str, Radius]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (float | None, "a number or null"),
        (str | list[str] | tuple[str, ...], "a text or a list in brackets, [a, b]"),
        (Radius | dict[str, Radius], "a number or a fraction such as 8/255 or {name: value, ...} in quotes"),
        (bool, "true or false"),
    ],
)
def test_types_in_words(kind: Any, words: str) -> None:
    assert spoken(kind) == words


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (8 / 255, Radius),
        ({"input": 8 / 255, "conv1": 0.03}, Radius | dict[str, Radius]),
        (["clean", "pgd-50-10"], list[str]),
        (None, int | None),
        (True, bool),
        (5e-4, float),
        (17, int),
        ("layer[12]", str | list[str]),
    ],
)
def test_what_help_shows_can_be_typed(value: object, kind: Any) -> None:
    assert read_setting("key", written(value, kind), kind) == value


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        # What is typed: YAML where the type allows it, else the text as it stands.
        (Typed("7"), int, 7),
        (Typed("0x10"), int, 16),
        (Typed("1e-3"), float, 0.001),
        (Typed("8/255"), Radius, 8 / 255),
        (Typed("yes"), bool, True),
        (Typed("auto"), bool | Literal["auto"], "auto"),
        (Typed("2"), int | str, 2),
        (Typed("2"), str, "2"),
        (Typed("007"), str, "007"),
        (Typed("null"), str | None, None),
        (Typed("null"), str, "null"),
        (Typed("#1"), str | None, "#1"),
        (Typed(""), str | None, ""),
        (Typed("a: b"), str, "a: b"),
        (Typed("'x' # y"), str, "'x' # y"),
        (Typed("[relu.*"), Names, "[relu.*"),
        (Typed("layer[12]"), Names, "layer[12]"),
        (Typed("[0, layer1]"), Names, ["0", "layer1"]),
        (Typed("clean, pgd-20 alpha=2/255"), list[str], ["clean", "pgd-20 alpha=2/255"]),
        (Typed("0.5, 0.75"), tuple[float, ...], (0.5, 0.75)),
        (Typed("{0: 0.1, conv1: 1/4}"), Steps, {"0": 0.1, "conv1": 0.25}),
        (Typed("{a: '5', b: 5}"), dict[str, Any], {"a": "5", "b": 5}),
        # What YAML gives: a text that fits stays one, else it is read like a typed one.
        ("7", int, 7),
        ("7", str, "7"),
        ("null", str | None, "null"),
        ("2", int | str, "2"),
        (7, str, "7"),
        (7, float, 7.0),
        ([0, 2], Names, ["0", "2"]),
        (("a", "b"), Names, ["a", "b"]),
        ({1: "1/2"}, Steps, {"1": 0.5}),
        ({"a": ["5", 5, None]}, dict[str, Any], {"a": ["5", 5, None]}),
        (datetime.date(2020, 1, 1), str, "2020-01-01"),
    ],
)
def test_settings_that_fit(value: Any, kind: Any, expected: Any) -> None:
    found = read_setting("k", value, kind)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (Typed("7.5"), int, "f: k=7.5 does not fit; type a whole number"),
        (True, int, "f: k=true does not fit; type a whole number"),
        (1, bool, "f: k=1 does not fit; type true or false"),
        (True, str, "f: k=true does not fit; type a text"),
        ("inf", float, "f: k=inf does not fit; type a number"),
        (math.nan, float, "f: k=NaN does not fit; type a number"),
        (Typed("8/255"), float, "f: k=8/255 does not fit; type a number"),
        (Typed("8/ten"), Radius, "f: k=8/ten does not fit; type a number or a fraction such as 8/255"),
        (Typed("8/0"), Radius, "f: k=8/0 does not fit; type a number or a fraction such as 8/255"),
        (Typed("None"), float | None, "f: k=None does not fit; type a number or null"),
        (Typed(""), float | None, "f: k= does not fit; type a number or null"),
        (Typed("poor"), Literal["plain", "rich"], "f: k=poor does not fit; type one of plain, rich"),
        (["a", None], list[str], 'f: k=["a", null] does not fit; type a list in brackets, [a, b]'),
        ([1], tuple[float, float], "f: k=[1] does not fit; type a list in brackets, [a, b]"),
        ({"a": 0.1, "b": {"c": 1}}, Steps, 'f: k.b={"c": 1} does not fit; type a number or a fraction such as 8/255'),
        (Typed("{a: ["), dict[str, Any], "f: k={a: [ does not fit; type {name: value, ...} in quotes"),
        ("\udc80", int, "k=\udc80 does not fit; type a whole number"),
        (object(), int, "does not fit; type a whole number"),
        (Typed("x" * 500), int, f"f: k={'x' * 200}... does not fit"),
    ],
)
def test_settings_that_do_not(value: Any, kind: Any, message: str) -> None:
    with pytest.raises(ConfigError) as told:
        read_setting("k", value, kind, where="f: ")
    assert message.encode("unicode_escape").decode() in str(told.value)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)), st.integers(-(2**63), 2**63), st.text())
def test_values_keep_every_bit(numbers: list[float], whole: int, text: str) -> None:
    assert [x.hex() for x in convert(list[float], numbers)] == [x.hex() for x in numbers]
    assert convert(int, whole) == whole
    assert read_setting("k", text, str) == text


@dataclass(frozen=True)
class Inner:
    right: int
    of: int = 3

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.right > self.of:
            raise ConfigError(f"{self.right} of {self.of} cannot be")


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A record.

    Args:
        inner: the first; of
            two lines.
        items: some, see
            https://example.org/: not read.
    """

    inner: Inner
    items: tuple[Inner, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    at: dict[float, Inner] = field(default_factory=dict)
    kind: Literal["a", "b"] = "a"
    maybe: Inner | None = None
    text: str = ""
    free: Any = None


def test_records_that_fit() -> None:
    body = {"inner": {"right": 1}, "items": [{"right": 2, "of": 9}], "at": {"0.25": {"right": 0}}, "pair": [1, 2]}
    found = read_record(Outer, json.loads(json.dumps(body)), source="a.json")
    assert found == Outer(inner=Inner(1), items=(Inner(2, 9),), at={0.25: Inner(0)}, pair=(1.0, 2.0))
    assert read_record(Outer, {"inner": {"right": 1}, "text": "\udc80"}, source="a.json").text == "\udc80"
    assert read_record(Inner | None, None, source="a.json") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner": 3}, "the record.inner is 3, which is no object"),
        ({"inner": {}}, "the record.inner has no right"),
        ({"inner": {"right": 1, "wrong": 2, "more": 3}}, "the record.inner has an unknown more, wrong"),
        ({"inner": {"right": 4}}, "the record.inner: 4 of 3 cannot be"),
        ({"items": {}}, "the record.items is {}, which is no list"),
        ({"items": [{"right": 1}, {"right": "1"}]}, "the record.items[1].right is '1', which is no whole number"),
        ({"items": [{"right": 1}, {"right": 9}]}, "the record.items[1]: 9 of 3 cannot be"),
        ({"maybe": {"right": True}}, "the record.maybe.right is True, which is no whole number"),
        ({"pair": [1]}, "the record.pair is [1], which is no list of that length"),
        ({"pair": [1, 2, 3]}, "the record.pair is [1, 2, 3], which is no list of that length"),
        ({"pair": [1, math.inf]}, "the record.pair[1] is inf, which is no number"),
        ({"at": {"x": {"right": 1}}}, "the record.at.x is 'x', which is no name that is a number"),
        ({"at": {"1": {"right": 9}}}, "the record.at.1: 9 of 3 cannot be"),
        ({"kind": "c"}, "the record.kind is 'c', which is no one of 'a', 'b'"),
        ({"text": 5}, "the record.text is 5, which is no text"),
    ],
)
def test_records_that_do_not(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match="^" + re.escape(f"a.json is corrupt: {message}") + "$"):
        read_record(Outer, {"inner": {"right": 1}, **change}, source="a.json")


def test_a_type_of_the_callers_is_read_by_the_caller() -> None:
    def number(value: Any) -> float:
        if isinstance(value, str):
            raise ValueError("number")
        return math.nan if value is None else float(value)

    own = ((float, number),)
    found = read_record(tuple[float | None, float, dict[str, float]], [None, 1, {"a": None}], source="a", own=own)
    assert found[:2] == (None, 1.0)
    assert math.isnan(found[2]["a"])
    with pytest.raises(CheckpointError, match=r"the record\[1\] is 'x', which is no number$"):
        read_record(tuple[float, float], [1, "x"], source="a", own=own)


def test_items() -> None:
    kinds = {"steps": int, "alpha": Radius | None, "sites": Names}
    assert read_items(["steps=5", "alpha=2/255", "sites=conv1"], kinds, where="", owner="pgd") == {
        "steps": 5,
        "alpha": 2 / 255,
        "sites": "conv1",
    }
    for item, message in [
        ("step=5", "it: pgd has no 'step'; did you mean 'steps'"),
        ("steps", "it: steps has no value; type steps=VALUE"),
        ("steps=x", "it: steps=x does not fit; type a whole number"),
    ]:
        with pytest.raises(ConfigError, match="^" + re.escape(message)):
            read_items([item], kinds, where="it: ", owner="pgd")


def test_explanations() -> None:
    assert explanations(Outer) == {
        "inner": "the first; of two lines.",
        "items": "some, see https://example.org/: not read.",
    }
    assert explanations(Inner) == {}


def test_schemas_of_types() -> None:
    assert json_schema(int | None) == {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    assert json_schema(Literal["a", "b"]) == {"enum": ["a", "b"], "type": "string"}
    number, text = json_schema(Radius)["anyOf"]
    assert number == {"type": "number"}
    assert re.search(text["pattern"], "8/255")
    assert not re.search(text["pattern"], "eight")
