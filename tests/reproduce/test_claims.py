"""Verdicts: by intervals, open where they overlap or a number is missing, and the same truth for every way of writing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerwise.errors import ConfigError
from layerwise.evaluation.intervals import Estimate
from layerwise.reproduce.claims import FAILS, HOLDS, OPEN, Cells, truth, verdict

NUMBERS = {"top": (90, 89, 91), "high": (60, 58, 62), "near": (59, 57, 61), "low": (10, 9, 11), "none": None}


def cells(numbers: Any = NUMBERS) -> Cells:
    def read(row: str, column: str) -> Estimate | None:
        found = numbers.get(row) if column == "x" else None
        return None if found is None else Estimate(*found)

    return Cells(tuple(numbers), read)


@pytest.mark.parametrize(
    ("predicate", "expected"),
    [
        ({"order": ["top", "high", "low"], "in": "x"}, HOLDS),
        ({"order": ["low", "high"], "in": "x"}, FAILS),
        ({"order": ["top", "high", "near"], "in": "x"}, OPEN),
        ({"order": ["top", "near", "high", "top"], "in": "x"}, FAILS),
        ({"greater": ["top / x", "low / x"]}, HOLDS),
        ({"greater": ["top", "low"], "times": 8, "in": "x"}, HOLDS),
        ({"greater": ["top", "low"], "times": 8.5, "in": "x"}, OPEN),  # 90 +- 1 and 85 +- 8.5
        ({"greater": ["top", "low"], "times": 9, "in": "x"}, OPEN),
        ({"greater": ["top", "low"], "times": 9.5, "in": "x"}, OPEN),  # 90 +- 1 and 95 +- 9.5
        ({"greater": ["top", "low"], "times": 12, "in": "x"}, FAILS),
        ({"greater": ["top", "low"], "by": 85, "in": "x"}, FAILS),
        ({"less": ["low", "high"], "in": "x"}, HOLDS),
        ({"at_least": ["top", 88], "in": "x"}, HOLDS),
        ({"at_most": ["low", 5], "in": "x"}, FAILS),
        ({"at_most": ["low", 10.5], "in": "x"}, OPEN),
        ({"near": ["high", "near"], "within": 5, "in": "x"}, HOLDS),
        ({"near": ["high", "near"], "within": 1, "in": "x"}, OPEN),
        ({"near": ["high", "low"], "within": 5, "in": "x"}, FAILS),
        ({"best": "top", "in": "x", "rows": ["high", "low"]}, HOLDS),
        ({"best": "top", "in": "x"}, OPEN),  # one row has no number
        ({"best": "high", "in": "x"}, FAILS),  # whatever that number is
        ({"least": "low", "in": "x", "rows": ["high", "top"]}, HOLDS),
        ({"greater": ["top", "none"], "in": "x"}, OPEN),
        ({"greater": ["top", "low"], "in": ["x", "x"]}, HOLDS),
        ({"greater": ["top", "low"], "in": ["x", "y"]}, OPEN),
        ({"all": [{"greater": ["top / x", "low / x"]}, {"greater": ["low / x", "top / x"]}]}, FAILS),
        ({"any": [{"greater": ["top / x", "none / x"]}, {"greater": ["top / x", "low / x"]}]}, HOLDS),
        ({"any": [{"greater": ["top / x", "none / x"]}, {"greater": ["low / x", "top / x"]}]}, OPEN),
    ],
)
def test_verdicts(predicate: dict[str, Any], expected: str) -> None:
    assert verdict(predicate, cells()) == expected


def test_where_no_number_is_nothing_is_best() -> None:
    assert verdict({"best": "a", "in": "x"}, Cells((), lambda row, column: None)) == OPEN


def test_a_gain_is_the_difference_of_two_rows() -> None:
    found = cells({"a": (9, 8, 10), "b": (3, 2, 4), "c": (5, 4.9, 5.1), "d": (4, 3.9, 4.1), "e": (1, -3, 2)})
    assert verdict({"gain": [["a", "b"], ["c", "d"]], "in": "x"}, found) == HOLDS
    assert verdict({"gain": [["c", "d"], ["a", "b"]], "in": "x"}, found) == FAILS
    assert verdict({"gain": [["a", "b"], ["c", "e"]], "in": "x"}, found) == OPEN


def test_equal_numbers_without_intervals_are_not_above_each_other() -> None:
    same = {"a": (1, 1, 1), "b": (1, 1, 1)}
    assert verdict({"greater": ["a", "b"], "in": "x"}, cells(same)) == FAILS


@pytest.mark.parametrize("predicate", [{}, {"grater": ["a", "b"]}, {"best": "a", "least": "b"}])
def test_what_is_no_predicate_is_told(predicate: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is no predicate of a claim"):
        verdict(predicate, cells())


NUMBER = st.floats(-100, 100)


@given(NUMBER, NUMBER, st.floats(0, 10), st.floats(0, 10), st.floats(1, 5))
def test_wider_intervals_only_open_what_was_decided(a: float, b: float, da: float, db: float, wider: float) -> None:
    def asked(times: float) -> bool | None:
        found = {"a": (a, a - times * da, a + times * da), "b": (b, b - times * db, b + times * db)}
        return truth({"greater": ["a", "b"], "in": "x"}, cells(found))

    assert asked(wider) in (None, asked(1.0))
    assert asked(0.0) == (a > b) or asked(1.0) is None or abs(a - b) < 1e-9


@given(NUMBER, NUMBER, st.floats(0, 10))
def test_less_is_greater_the_other_way_round(a: float, b: float, width: float) -> None:
    found = cells({"a": (a, a - width, a + width), "b": (b, b - width, b + width)})
    one, other = {"less": ["a", "b"], "in": "x"}, {"greater": ["b", "a"], "in": "x"}
    assert truth(one, found) == truth(other, found)


def test_two_rows_that_are_one_system_decide_nothing() -> None:
    numbers = {("a", "x"): 3.0, ("b", "x"): 3.0, ("c", "x"): 3.0, ("a", "y"): 3.0, ("b", "y"): 1.0}

    def read(row: str, column: str) -> Estimate | None:
        return Estimate.exactly(numbers[row, column])

    cells = Cells(("a", "b", "c"), read, {"a": ("run",), "b": ("run",), "c": ("other",)})
    assert verdict({"near": ["a", "b"], "in": "x", "within": 1}, cells) == OPEN
    assert verdict({"greater": ["a", "b"], "in": "x"}, cells) == OPEN
    assert verdict({"near": ["a", "c"], "in": "x", "within": 1}, cells) == HOLDS
    assert verdict({"greater": ["a", "c"], "in": "x"}, cells) == FAILS
    assert verdict({"greater": ["a", "b"], "in": "y"}, cells) == HOLDS  # another attack on the same runs
    assert verdict({"near": ["a", "b"], "in": "x", "within": 1}, cells.points()) == OPEN
