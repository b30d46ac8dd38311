"""The papers' numbers as data: they read, agree with each other as the papers' arithmetic says, and damage is told."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest

from layerwise.errors import CheckpointError, ConfigError
from layerwise.reproduce.definitions import items
from layerwise.reproduce.papers import BESIDE, PAPERS, Printed, paper, read_paper


def value(name: str, table: str, row: str, column: str) -> float:
    found = paper(name).table(table)
    assert found is not None
    cell = found.cell(row, column)
    assert cell is not None, (name, table, row, column)
    return cell.value


@pytest.mark.parametrize(
    ("text", "number", "deviation"),
    [("47.06", 47.06, None), ("1.11e-1", 0.111, None), ("0.00 +- 0.01", 0.0, 0.01), ("100", 100.0, None)],
)
def test_digits_become_numbers(text: str, number: float, deviation: float | None) -> None:
    found = Printed.read(text)
    assert (found.text, found.deviation) == (text, deviation)
    assert found.value == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "X", "4.5.6", "47.06 +-", "47,06"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no printed number"):
        Printed.read(text)


def test_the_readable_tables_are_there_and_the_lost_ones_say_so() -> None:
    tables = {f"{name}/{table.id}": table for name in PAPERS for table in paper(name).tables}
    assert [id for id, table in tables.items() if table.lost] == [
        *(f"lad/table-{n}" for n in (1, 2, 6, 7)),
        "lat/table-3",
    ]
    counts = {name: len(paper(name).tables) for name in PAPERS}
    assert counts == {"slat": 4, "lad": 7, "anp": 12, "lat": 7, "deep-defense": 1, "fastat": 3, "comparison": 0}
    assert {name: len(paper(name).figures) for name in PAPERS if name not in BESIDE} == {
        "slat": 7,
        "lad": 2,
        "anp": 14,
        "lat": 3,
        "deep-defense": 4,
    }


@pytest.mark.parametrize("table", ["table-3", "table-4"])
def test_lads_average_is_that_of_the_four_attacks(table: str) -> None:
    found = paper("lad").table(table)
    assert found is not None
    for row in found.rows:
        four = [float(row.cells[c]) for c in ("FGSM 8/255", "FGSM 12/255", "IFGSM 8/255", "IFGSM 12/255")]
        assert float(row.cells["Avg"]) == pytest.approx(sum(four) / 4, abs=0.0051), row.row


@pytest.mark.parametrize("method", ["VANILLA", "PAT", "NAT", "EAT", "ANP"])
def test_anps_clean_numbers_agree_between_tables(method: str) -> None:
    clean = value("anp", "table-1", method, "clean")
    assert value("anp", "table-3a", method, "clean") == clean
    for table in ("table-4", "table-8", "table-9", "table-10"):
        assert value("anp", table, method, "clean error") == pytest.approx(100 - clean)
    assert value("anp", "table-4", method, "mCE") == value("anp", "table-8", method, "mCE")
    assert value("anp", "table-4", method, "mFR") == value("anp", "table-10", method, "mFR")


def test_slats_rows_agree_between_tables() -> None:
    assert value("slat", "table-1", "SLAT", "PGD-50-10") == value("slat", "table-2", "SLAT", "PGD-50-10") == 47.06
    assert value("slat", "table-3", "K = input, conv1, conv2", "AutoAttack") == 44.62
    assert value("slat", "table-1", "FGSM", "clean") == value("slat", "table-2", "FGSM", "clean") == 87.42


def test_deep_defenses_gains_in_the_text_are_those_of_the_table() -> None:
    def gain(network: str) -> float:
        return value("deep-defense", "table-1", f"{network}: Ours", "FGS at 1.0 eps_ref") - value(
            "deep-defense", "table-1", f"{network}: Reference", "FGS at 1.0 eps_ref"
        )

    assert [round(gain(n), 2) for n in ("MLP", "ConvNet", "NIN")] == [46.69, 26.15, 16.44]


def test_an_unknown_paper_is_told() -> None:
    with pytest.raises(ConfigError, match="there is no paper 'slta'; did you mean 'slat'"):
        paper("slta")


def damaged(change: Any) -> str:
    body = json.loads((resources.files("layerwise") / "reproduce" / "papers" / "slat.json").read_text())
    change(body)
    return json.dumps(body)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b["tables"].append(b["tables"][0]), "'table-1' is there twice"),
        (
            lambda b: b["tables"][0]["rows"].append(b["tables"][0]["rows"][0]),
            "table-1 is corrupt: 'PGD-7' is there twice",
        ),
        (
            lambda b: b["tables"][0]["rows"][0]["cells"].update(clean="x"),
            "table-1, PGD-7, clean: 'x' is no printed number",
        ),
        (lambda b: b["tables"][0].update(rows=[]), "table-1 has to say why it is empty"),
        (lambda b: b.update(format="other"), "is not what a paper prints"),
    ],
)
def test_damage_is_told(change: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_paper(damaged(change), source="slat.json")


@pytest.mark.parametrize("name", [name for name in PAPERS if name not in BESIDE])
def test_every_number_of_the_text_decides_a_claim(name: str) -> None:
    known = items()
    for number in paper(name).in_text:
        for place in number.claims:
            item, _, claim = place.partition("/")
            assert claim in {one.id for one in known[f"{name}/{item}"].claims}, number.what
        assert number.claims, number.what
