"""The definitions cover what is printed, fit the recipes, and their claims say of the papers' own numbers what is stated."""

from __future__ import annotations

import re
from typing import Any

import pytest

from layerwise.errors import ConfigError
from layerwise.evaluation.intervals import Estimate
from layerwise.experiments.experiment import SCHEMA
from layerwise.reproduce.claims import Cells, truth
from layerwise.reproduce.costs import size_of
from layerwise.reproduce.definitions import Item, find, items, read_items
from layerwise.reproduce.figures import LOOKS
from layerwise.reproduce.measures import MEASURES
from layerwise.reproduce.papers import BESIDE, PAPERS, paper
from layerwise.reproduce.scales import scales
from layerwise.reproduce.systems import resolve
from tests.reproduce import cases

ITEMS = items()
UNRUN = {"GB", "CE pixelate"}
"""Columns that are printed and not measured, or not for every row."""


def test_every_printed_table_and_measured_figure_is_defined() -> None:
    printed = {f"{name}/{t.id}" for name in PAPERS for t in paper(name).tables}
    drawn = {f"{name}/{f.id}" for name in PAPERS for f in paper(name).figures if f.drawn_by is not None}
    assert {id for id in ITEMS if "/text-" not in id} == printed | drawn | {
        "comparison/fashion-mnist",
        "comparison/cifar10",
    }


@pytest.mark.parametrize("id", [id for id, item in ITEMS.items() if item.printed])
def test_every_printed_cell_stands_beside_one_of_ours(id: str) -> None:
    item = ITEMS[id]
    assert item.printed is not None
    rows, columns = {row.name for row in item.rows}, {column.name for column in item.columns}
    if item.paper != "fastat":  # of the benchmark's methods only some are run
        assert {row.row for row in item.printed.rows} <= rows
    assert {column for row in item.printed.rows for column in row.cells} - columns <= UNRUN


def test_measures_and_drawings_exist() -> None:
    assert {column.measure for item in ITEMS.values() for column in item.columns} <= set(MEASURES)
    assert {item.draw for item in ITEMS.values()} <= {*LOOKS, "curves", "toy", ""}
    for item in ITEMS.values():
        names = [row.name for row in item.rows]
        assert len(names) == len(set(names)), item.id
        assert item.columns or item.draw, item.id
        bases = {c.options["base"] for c in item.columns if "base" in c.options}
        assert bases | {row.options["base"] for row in item.rows if "base" in row.options} <= set(names), item.id


CLAIMS = [(item.id, claim.id) for item in ITEMS.values() for claim in item.claims]


@pytest.mark.parametrize(("id", "name"), CLAIMS)
def test_a_claim_is_about_cells_of_its_item(id: str, name: str) -> None:
    item = ITEMS[id]
    asked: set[tuple[str, str]] = set()

    def read(row: str, column: str) -> Estimate:
        asked.add((row.removesuffix(" (printed)"), column))
        return Estimate.exactly(0.0)

    (claim,) = [claim for claim in item.claims if claim.id == name]
    truth(claim.predicate, Cells(tuple(row.name for row in item.rows), read))
    toys = item.options["methods"] if item.draw == "toy" else ()  # whose pictures' numbers are read
    assert {row for row, _ in asked} <= {*toys, *(row.name for row in item.rows)}
    assert {column for _, column in asked} <= ({"leaning"} if toys else {column.name for column in item.columns})
    assert re.fullmatch(r"[A-Z].*\.", claim.says)


@pytest.mark.parametrize(("id", "name"), CLAIMS)
def test_the_papers_numbers_say_what_is_claimed_unless_it_is_stated_that_they_do_not(id: str, name: str) -> None:
    item = ITEMS[id]
    (claim,) = [claim for claim in item.claims if claim.id == name]
    printed = item.printed

    def read(row: str, column: str) -> Estimate | None:
        cell = printed.cell(row.removesuffix(" (printed)"), column) if printed else None
        return None if cell is None else Estimate.exactly(cell.value)

    rows = () if printed is None else tuple(row.row for row in printed.rows)
    found = truth(claim.predicate, Cells(rows, read))
    if printed is not None and printed.rows and found is not None:
        assert found == claim.in_paper


@pytest.mark.slow  # each of some 230 systems is read once: a new setting anywhere has to fit every one of them
def test_every_system_has_settings_and_a_network() -> None:
    for item in ITEMS.values():
        for row in item.rows:
            system = resolve(row.system, scales()["smoke"], seed=0)
            flops, layers = size_of(system.tree)  # builds the network, without memory for it
            assert flops > 0 < layers


@pytest.mark.parametrize("id", ["slat/table-1", "anp/table-5", "lad/table-4", "lat/table-7", "deep-defense/table-1"])
@pytest.mark.parametrize("name", list(scales()))
def test_resolved_settings_are_settings(id: str, name: str) -> None:
    found = resolve(ITEMS[id].rows[-1].system, scales()[name], seed=3)
    tree = {**found.tree, "model": {**found.tree["model"], "start": None}}
    experiment, again = SCHEMA.read(tree)
    assert again == tree
    assert experiment.training.seed == 3


def test_a_command_names_items_papers_or_all() -> None:
    assert [item.id for item in find("slat/table-2")] == ["slat/table-2"]
    assert {item.paper for item in find("lat")} == {"lat"}
    assert {item.paper for item in find("all")} == set(PAPERS) - set(BESIDE)
    with pytest.raises(ConfigError, match="no table or figure 'slat/table-11'; did you mean 'slat/table-1'"):
        find("slat/table-11")


def test_a_grid_makes_a_row_for_each_combination() -> None:
    grid = {"a": [1, 2], "b": ["x", "y"]}
    row = {"recipe": "slat-digits", "set": {"method.num_probes": "{a}"}, "at": "{a}", "series": "{b}", "grid": grid}
    rows = cases.item(rows={"{b} {a}": row}).rows
    assert [(r.name, r.at, r.series, r.system.set) for r in rows] == [
        ("x 1", 1.0, "x", {"method.num_probes": 1}),
        ("y 1", 1.0, "y", {"method.num_probes": 1}),
        ("x 2", 2.0, "x", {"method.num_probes": 2}),
        ("y 2", 2.0, "y", {"method.num_probes": 2}),
    ]


def test_settings_of_a_table_come_before_the_rows_and_systems_build_on_each_other() -> None:
    body: Any = {
        "systems": {"a": {"recipe": "slat-digits", "set": {"x": 1, "y": 1}}, "b": {"system": "a", "set": {"y": 2}}},
        "items": {"t": {"title": "T", "set": {"x": 5, "z": 5}, "rows": {"r": {"system": "b", "set": {"z": 6}}}}},
    }
    (row,) = read_items(body, "slat")["slat/t"].rows
    assert (row.system.recipe, row.system.set) == ("slat-digits", {"x": 5, "y": 2, "z": 6})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"rows": {"r": {"recip": "slat-digits"}}}, "slat/table-x, r: there is no 'recip'; did you mean 'recipe'"),
        ({"rows": {"r": {"set": {}}}}, "slat/table-x, r: no system is named"),
        ({"columns": {"c": {"eps": 0.1}}}, "slat/table-x, c: a column needs an attack or a measure"),
        ({"claim": {}}, "slat/table-x: there is no 'claim'; did you mean 'claims'"),
        ({"title": ""}, "the paper has no such table or figure, so it needs a title"),
    ],
)
def test_mistakes_in_a_definition_are_told(body: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        cases.item(**body)


def test_items_know_what_is_printed() -> None:
    table: Item = ITEMS["slat/table-1"]
    assert table.printed is not None
    assert table.figure is None
    figure = ITEMS["anp/figure-2a"].figure
    assert figure is not None
    assert figure.drawn_by == "sweep"


def test_what_is_drawn_over_epochs_comes_from_the_log() -> None:
    for item in ITEMS.values():
        if item.figure is not None and item.figure.x == "epoch":
            assert (item.draw, item.figure.drawn_by, item.figure.note) == ("curves", "training curves", None), item.id
