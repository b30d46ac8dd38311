"""Two runs on the same images: a difference is decided only where chance cannot have made it."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.evaluation import Evaluation
from layerwise.evaluation.record import packed
from layerwise.report import compare, report
from layerwise.report.pairs import over_images, over_seeds
from tests.report.folders import put, record


def kept(evaluation: Evaluation, *, first: int = 0) -> Evaluation:
    """The record with outcomes: the correct images stand together, from `first` on."""
    results = []
    for result in evaluation.results:
        total, correct = result.count.total, result.count.correct
        outcomes = [0 <= (i - first) % total < correct for i in range(total)]
        results.append(replace(result, kept=packed(outcomes)))
    return replace(evaluation, results=tuple(results))


def test_mcnemar_and_its_interval_by_their_formulas() -> None:
    """12 won and 3 lost of 40: p = 2 (sum_{k<3} C(15, k) + C(15, 3) / 2) / 2^15; se of (12.5 - 3.5) / 42."""
    own = (True,) * 12 + (False,) * 3 + (True,) * 25
    base = (False,) * 12 + (True,) * 3 + (True,) * 25
    found = over_images(own, base)
    assert found.p == pytest.approx(2 * (1 + 15 + 105 + 455 / 2) / 2**15)
    arm = 1.959964 * math.sqrt(16 - 81 / 42) / 42
    assert (found.points.low, found.points.high) == pytest.approx((9 / 42 - arm, 9 / 42 + arm), rel=1e-6)
    assert (found.points.value, found.verdict) == (9 / 40, "better")
    assert over_images(base, own).verdict == "worse"
    assert over_images(own, own).verdict == "undecided"


def test_seeds_are_compared_by_welchs_test() -> None:
    """Means 0.5 and 0.4, variances 0.0001 and 0.0004 of three seeds each: t = 0.1 / sqrt(0.0005 / 3), 2.94 degrees of freedom."""
    found = over_seeds((0.49, 0.50, 0.51), (0.38, 0.40, 0.42))
    assert found.points.value == pytest.approx(0.1)
    assert found.p == pytest.approx(0.0048, abs=0.0002)
    assert found.points.high - 0.1 == pytest.approx(3.2174 * math.sqrt(0.0005 / 3), rel=1e-3)


def test_the_same_images_decide_what_intervals_beside_each_other_do_not(tmp_path: Path) -> None:
    """44 and 52 of 100: the intervals overlap by far, but the eight more are on top of the same 44."""
    a = put(tmp_path / "a", kept(record(clean=90, pgd=44)))
    b = put(tmp_path / "b", kept(record(clean=90, pgd=52)))
    made = report([a, b])
    assert [v.tone for v in made.verdicts] == ["even", "better"]
    assert made.verdicts[1].notes == (
        "+8.0 points [+2.3, +13.4], better than a (the same 100 images, McNemar's test).",
    )
    assert [v.tone for v in report([a, b], baseline=b).verdicts] == ["worse", "even"]
    c = put(tmp_path / "c", kept(record(clean=90, pgd=52), first=50))
    assert report([a, c]).verdicts[1].tone == "even"
    assert "**+8.0" in compare([a, b]).to_markdown()


def test_records_that_do_not_say_which_images_are_not_compared(tmp_path: Path) -> None:
    a, b = (put(tmp_path / name, record(clean=90, pgd=44)) for name in "ab")
    made = report([a, b])
    assert not made.comparison.rows[1].against
    assert "evaluate them again" in made.to_markdown()


def test_a_decided_difference_has_the_colour_of_its_sign(tmp_path: Path) -> None:
    runs = [put(tmp_path / n, kept(record(clean=90, pgd=k))) for n, k in (("base", 44), ("up", 60), ("down", 9))]
    page = report(runs).to_html()
    assert re.findall(r'<td><strong class="lower">([-+])', page) == ["-", "-"]  # under PGD, and in the worst case
    assert re.findall(r"<td><strong>([-+])", page) == ["+", "+"]
