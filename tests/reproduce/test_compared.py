"""The papers' settings beside ours: nothing is wrong, nothing is missing, and the verdicts follow the recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.papers import PAGE, page

from layerwise.errors import ConfigError
from layerwise.reproduce import compared
from layerwise.reproduce.compared import ABSENT, DIFFERS, METHODS, OURS, PRINTED, WRONG, Entry, compare
from layerwise.reproduce.definitions import items

ROOT = Path(__file__).parents[2]


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "type: python -m benchmarks.papers"


@pytest.mark.parametrize("paper", METHODS)
def test_every_setting_is_as_printed_or_has_a_reason(paper: str) -> None:
    bad = [
        (line.verdict, line.key, sorted(line.found)[:3]) for line in compare(paper) if line.verdict in (WRONG, ABSENT)
    ]
    assert bad == [], "mend the recipe, or say in reproduce/settings/ why ours is another"


@pytest.mark.parametrize("paper", METHODS)
def test_equations_are_held_by_tests_that_exist(paper: str) -> None:
    for subject in compared.subjects(paper):
        if subject.kind == "equations":
            file, _, name = subject.has[subject.name].partition("::")
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), subject.name


def test_every_figure_of_what_was_measured_has_a_claim() -> None:
    drawn = [item for item in items().values() if (item.draw or item.axis) and item.paper in METHODS]
    assert {item.id for item in drawn if not item.claims} == {"anp/figure-5"}  # the first images of figure 10


def verdicts(monkeypatch: pytest.MonkeyPatch, *entries: Entry) -> list[tuple[str, Any]]:
    """What two systems come to that have 30 epochs, and a rate of 0.1 and 0.2."""
    systems = [compared.Subject("systems", name, {"epochs": 30, "lr": lr}) for name, lr in (("a/x", 0.1), ("b/y", 0.2))]
    monkeypatch.setattr(compared, "read", lambda paper: entries)
    monkeypatch.setattr(compared, "subjects", lambda paper: tuple(systems))
    return [(line.verdict, list(line.found.values())) for line in compare("slat")]


def test_the_last_entry_that_fits_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    common = Entry(where="1", printed={"lr": "1/10"}, ours={"epochs": "the usual"})
    assert verdicts(monkeypatch, common) == [(PRINTED, [0.1]), (WRONG, [0.2]), (OURS, [30, 30])]
    assert verdicts(monkeypatch, common, Entry(only=("b/*",), where="2", printed={"lr": 0.2})) == [
        (PRINTED, [0.1]),
        (OURS, [30, 30]),
        (PRINTED, [0.2]),
    ]
    choice = Entry(printed={"lr": {"among": [0.1, 0.2]}, "epochs": 31}, because={"epochs": "time"})
    assert verdicts(monkeypatch, choice) == [(PRINTED, [0.1, 0.2]), (DIFFERS, [30, 30])]


def test_what_nothing_is_said_of_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdicts(monkeypatch, Entry(when={"lr": 0.1}, printed={"lr": 0.1, "epochs": 30}))[0] == (ABSENT, [30, 0.2])


def test_reasons_and_entries_that_are_needless_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"epochs \(E\) is as printed, so no reason is needed; remove 'old'"):
        verdicts(monkeypatch, Entry(where="E", printed={"epochs": 30}, because={"epochs": "old"}, ours={"lr": "a"}))
    with pytest.raises(ConfigError, match=r"what is said of momentum \(E\) is about nothing; remove it"):
        verdicts(monkeypatch, Entry(where="E", printed={"momentum": 0.9}))
