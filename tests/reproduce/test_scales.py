"""Scales: which rules apply, what becomes of schedules, which attack runs in place of which."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from layerwise.attacks import parse_attack
from layerwise.errors import ConfigError
from layerwise.experiments import experiment
from layerwise.reproduce.definitions import Item, System, items
from layerwise.reproduce.scales import scale, scales
from layerwise.reproduce.systems import _decisive, resolve


@pytest.mark.parametrize("name", list(scales()))
def test_every_attack_of_every_column_reads_at_every_scale(name: str) -> None:
    texts = {c.options["attack"] for item in items().values() for c in item.columns if "attack" in c.options}
    texts |= {"autoattack", "pgd-50-10"}
    for text in texts:
        replaced = scales()[name].attack(text)
        parse_attack(replaced)
        assert name == "smoke" or replaced.partition(" ")[0].startswith(text.partition("-")[0].partition(" ")[0])


def test_the_strong_attacks_are_cut_at_smoke_and_whole_at_full() -> None:
    smoke, full = scale("smoke"), scale("full")
    assert smoke.attack("pgd-50-10 alpha=2/255") == "pgd-5 alpha=2/255"
    assert smoke.attack("fgsm") == "fgsm"
    assert [full.attack(a) for a in ("pgd-50-10", "autoattack")] == ["pgd-50-10", "autoattack"]
    assert (
        smoke.images_under("pgd-5"),
        smoke.images_under(smoke.attack("autoattack")),
        smoke.images_under("cw-20"),
    ) == (
        64,
        16,
        16,
    )
    assert [smoke.decides, scale("reduced").decides, full.decides] == [False, True, True]


def test_a_rule_applies_where_its_conditions_do_and_sees_what_earlier_ones_set() -> None:
    rules: list[dict[str, Any]] = [
        {"when": {"data.name": ["digits", "mnist"]}, "set": {"training.epochs": 7}},
        {"when": {"training.epochs": 7}, "set": {"training.batch_size": 3}},
        {"when": {"model.name": "lenet"}, "set": {"training.batch_size": 99}},
        {"when": {"evaluation.inference.name": "NoisyAveraging"}, "set": {"training.batch_size": 98}},
    ]
    _, tree = experiment.read("slat-digits")
    assert replace(scale("smoke"), rules=rules).apply(tree) == {"training.epochs": 7, "training.batch_size": 3}


def test_shorter_runs_keep_the_shape_of_their_schedule_and_phases() -> None:
    full = resolve(System(recipe="lad-cifar10"), scale("full"), seed=0).tree["training"]
    short = resolve(System(recipe="lad-cifar10"), scale("reduced"), seed=0).tree["training"]
    assert (full["epochs"], list(full["schedule"]["milestones"])) == (160, [80, 120])
    assert (short["epochs"], list(short["schedule"]["milestones"])) == (30, [0.5, 0.75])
    anp = resolve(System(recipe="anp-cifar10"), scale("reduced"), seed=0).tree
    assert [phase["epochs"] for phase in anp["phases"]] == [9, 10, 11]
    assert sum(phase["epochs"] for phase in anp["phases"]) == anp["training"]["epochs"]


def test_runs_that_are_short_already_stay_as_they_are() -> None:
    tree = resolve(System(recipe="slat-cifar10"), scale("reduced"), seed=0).tree
    assert (tree["training"]["epochs"], tree["training"]["schedule"]["peak_at"]) == (30, 0.4)


def test_wide_networks_become_the_usual_one_at_reduced_and_keep_their_dropout() -> None:
    model = resolve(System(recipe="slat-cifar10-wrn"), scale("reduced"), seed=0).tree["model"]
    assert (model["name"], model["options"]) == ("preact_resnet18", {"dropout": 0.3})
    model = resolve(System(recipe="slat-cifar10-wrn"), scale("full"), seed=0).tree["model"]
    assert model["options"] == {"depth": 28, "width": 10, "dropout": 0.3}


def test_an_unknown_scale_is_told() -> None:
    with pytest.raises(ConfigError, match="there is no scale 'smok'; did you mean 'smoke'"):
        scale("smok")


def test_a_setting_that_older_runs_lack_changes_no_name_at_its_default() -> None:
    def decisive(trace: list[str], **training: Any) -> Any:
        settings = {"lr": 0.1, "augment": None, **training}
        return _decisive({"data": {}, "training": settings, "evaluation": {"trace": trace, "attacks": ["clean"]}})

    old = {"data": {}, "training": {"lr": 0.1, "augment": None}}
    assert decisive([]) == decisive([], batch_norm="per-rank") == old
    assert decisive([], batch_norm="synchronised")["training"] == {**old["training"], "batch_norm": "synchronised"}
    assert decisive(["rho"]) == {**old, "trace": ["rho"]}


def test_at_full_every_image_trains_unless_something_is_chosen_or_drawn_by_validation_images() -> None:
    full = scale("full")
    table, curves = items()["deep-defense/table-1"], items()["deep-defense/figure-2"]

    def held_out(item: Item, row: str) -> list[Any]:
        found = resolve(next(r.system for r in item.rows if r.name == row), full, seed=0)
        return [part.tree["data"]["validation"] for part in (found, *found.needs.values())]

    assert held_out(table, "LeNet: Ours") == [0, 0]  # and the reference that it starts from
    assert held_out(curves, "LeNet: Ours") == [1000, 1000]
    assert held_out(items()["fastat/cifar10"], "n_fgsm") == [1000]  # its best weights are chosen
    assert resolve(table.rows[0].system, scale("reduced"), seed=0).tree["data"]["validation"] == 1000
