"""Radii as people write them, and fields that their types hold to a range or a choice."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from layerwise.core.checks import (
    Count,
    NonNegative,
    Radius,
    Share,
    at_least,
    check_fields,
    check_radius,
    check_share,
    format_radius,
    parse_radius,
)
from layerwise.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), (" 2.5 / 255 ", 2.5 / 255), ("0.3", 0.3), (0.3, 0.3), (1, 1.0), ("1e-2", 0.01), ("0", 0.0)],
)
def test_a_radius_is_a_number_or_a_fraction(text: str | float, value: float) -> None:
    assert parse_radius(text) == value


@pytest.mark.parametrize("text", ["", "eight", "8/", "/255", "8/0", "8/255/2", "8 255"])
def test_anything_else_is_an_error(text: str) -> None:
    message = f"{text!r} is not a radius; type a number or a fraction such as 8/255"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        parse_radius(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8 / 255, "8/255"),
        (2.5 / 255, "2.5/255"),
        (1.25 / 255, "1.25/255"),
        (32 / 255, "32/255"),
        (0.1, "0.1"),
        (0.05, "0.05"),
        (0.2, "0.2"),
        (51 / 255, "0.2"),
        (0.3, "0.3"),
        (0.0, "0"),
        (1.0, "1"),
        (0.0123456, "0.0123456"),
        (64 / 255, "0.25098"),
        (1 / 3 / 255, "0.00130719"),
    ],
)
def test_a_radius_is_written_as_people_read_it(value: float, text: str) -> None:
    assert format_radius(value) == text


@given(st.integers(0, 128))
def test_quarters_of_a_grey_level_survive_writing_and_reading(quarters: int) -> None:
    value = quarters / 4 / 255
    assert parse_radius(format_radius(value)) == pytest.approx(value, rel=1e-12)


@given(st.floats(0, 1))
@example(2.5e-12)  # nearer to no grey level than anything else, and yet not 0
def test_what_is_written_is_what_was_meant(value: float) -> None:
    assert parse_radius(format_radius(value)) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("value", [0, 8 / 255, 1, 1.0])
def test_radii_of_pixels_from_0_to_1_are_fine(value: float) -> None:
    check_radius("eps", value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (8, "eps=8 is in units of 0 to 255 pixels, ours are 0 to 1; type eps=8/255"),
        (1.5, "eps=1.5 is in units of 0 to 255 pixels, ours are 0 to 1; type eps=1.5/255"),
        (-0.1, "eps=-0.1 is not a radius; type a number that is not negative, such as 8/255"),
        (float("nan"), "eps=nan is not a radius; type a number that is not negative, such as 8/255"),
        (float("inf"), "eps=inf is not a radius; type a number that is not negative, such as 8/255"),
    ],
)
def test_a_radius_that_cannot_be_meant_is_an_error(value: float, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        check_radius("eps", value)


def test_a_radius_is_a_float() -> None:
    assert Radius(0.5) / 2 == 0.25
    assert isinstance(Radius(0.5), float)


@pytest.mark.parametrize("check", [check_radius, lambda n, v: at_least(n, v, 0), check_share])
@pytest.mark.parametrize("value", ["8/255", "eight"])
def test_text_is_no_number(check: Callable[[str, Any], None], value: object) -> None:
    message = f"eps={value!r} is not a number; type for example eps=8/255, without quotation marks"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        check("eps", value)


@dataclass
class Settings:
    """Fields of every kind that is checked."""

    count: Count = 1
    size: NonNegative | None = None
    share: Share = 0.5
    eps: Radius | dict[str, Radius] | None = None
    norm: str = "linf"
    switch: bool | Literal["auto"] = "auto"
    kind: Literal["a", "b"] | None = None


@pytest.mark.parametrize(
    "fine", [{"size": 2.5}, {"eps": {"conv1": 0.5}}, {"eps": 3.0, "norm": "l2"}, {"switch": False}, {"kind": "b"}]
)
def test_a_field_may_be_what_its_type_says(fine: dict[str, Any]) -> None:
    check_fields(Settings(**fine))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"count": 0}, "count=0 is too small; type a number of at least 1"),
        ({"size": -1}, "size=-1 is too small; type a number of at least 0"),
        ({"share": 1.5}, "share=1.5 is not a share; type a number from 0 to 1"),
        ({"eps": 8}, "eps=8 is in units of 0 to 255 pixels, ours are 0 to 1; type eps=8/255"),
        ({"eps": {"conv1": 8}}, "conv1=8 is in units of 0 to 255 pixels, ours are 0 to 1; type conv1=8/255"),
        ({"switch": "on"}, "switch='on' is unknown; type one of True, False, 'auto'"),
        ({"kind": "c"}, "kind='c' is unknown; type one of 'a', 'b', None"),
    ],
)
def test_a_field_that_its_type_does_not_allow_is_an_error(field: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        check_fields(Settings(**field))


def test_types_that_only_a_function_knows_are_left_unchecked() -> None:
    class Own:
        pass

    @dataclass
    class Local:
        own: Own
        count: Count = 1

    check_fields(Local(Own(), 0))
