"""Bars end where the work ends, also where a part of it was done before."""

from __future__ import annotations

import pytest

from layerwise.evaluation.progress import Board, tracked


def overall(board: Board) -> tuple[float, float]:
    (task,) = [t for t in board._bars.tasks if t.description == "everything"]
    assert task.total is not None
    return task.completed, task.total


@pytest.mark.parametrize("kind", ["none", "own", "board"])
def test_the_values_come_through(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    boards: dict[str, Board | bool] = {"none": False, "own": True, "board": Board({"letters": 1.0, "others": 2.0})}
    assert list(tracked(iter("abc"), 3, "letters", boards[kind])) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""


def test_everything_ends_when_all_parts_have() -> None:
    board = Board({"a": 30.0, "b": 10.0})
    list(board.track(range(3), "a", 3))
    assert overall(board) == pytest.approx((30, 40))
    list(board.track(range(7), "b", 7))
    assert overall(board) == pytest.approx((40, 40))


def test_what_was_done_before_leaves_the_estimate() -> None:
    board = Board({"a": 30.0, "b": 10.0})
    board.skip("b")
    board.skip("a", 0.5)
    assert overall(board) == (0, 15)
    list(board.track(range(2), "a", 2))
    assert overall(board) == pytest.approx((15, 15))


def test_a_single_thing_needs_no_bar_for_everything() -> None:
    board = Board({"a": 30.0})
    board.skip("a", 0.5)
    assert list(board.track("xy", "a", 2)) == ["x", "y"]
    assert not board._bars.tasks
