"""Every recipe reads, says what each key means, fits its network and data, and errors say what to type instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from layerwise import models
from layerwise.attacks import parse_attack
from layerwise.errors import ConfigError
from layerwise.experiments import experiment, recipe
from layerwise.experiments.experiment import Experiment
from layerwise.methods import LAD, SLAT, LayerMethod, Standard
from layerwise.methods.wrapper import Wrapper
from layerwise.training.phases import Phases
from layerwise.trees import Tree, dump_yaml

SHAPES = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "fashion-mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "tiny-imagenet": ((3, 64, 64), 200),
    "cifar10 grey": ((1, 32, 32), 10),
    "tiny-imagenet 224": ((3, 224, 224), 200),
    "image-folder 224": ((3, 224, 224), 1000),
}
NAMES = recipe.names()


def failing(check: Callable[[str], bool]) -> list[str]:
    """The recipes for which a property does not hold: all of them are told at once."""
    return [name for name in NAMES if not check(name)]


@cache
def read(name: str) -> tuple[Experiment, Tree]:
    return experiment.read(name)


@cache
def network(settings: str, shape: tuple[int, ...], classes: int) -> tuple[nn.Module, Tensor]:
    """A network that recipes share, and a batch for it, without memory for either."""
    model = yaml.safe_load(settings)
    statistics: dict[str, Any] = {"mean": 0.5, "std": 0.25} if model["normalize"] else {}
    with torch.device("meta"):
        made = models.build(model["name"], num_classes=classes, shape=shape, **statistics, **model["options"])
        example = torch.zeros(2, *shape)
        assert made(example).shape == (2, classes)
    return made, example


def attached(name: str) -> list[str]:
    """The sites of a recipe's method on its network."""
    chosen, tree = read(name)
    options = chosen.data.options
    kind = [
        chosen.data.name,
        *["grey"] * options.get("grey", False),
        *(str(v) for k, v in options.items() if k == "size"),
    ]
    with torch.device("meta"):
        chosen.method.attach(*network(dump_yaml(tree["model"]), *SHAPES[" ".join(kind)]))
    try:
        return [str(site) for sites in chosen.method.attached_sites() for site in sites]
    finally:
        chosen.method.detach()


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_resolved_recipe_is_the_same_experiment(tmp_path: Path) -> None:
    def same(name: str) -> bool:
        return experiment.read(write(tmp_path, "config.yaml", dump_yaml(read(name)[1]))) == read(name)

    assert failing(same) == []


def test_a_file_says_what_it_is_and_explains_every_key() -> None:
    for file in sorted({recipe.path_of(name) for name in NAMES}):
        lines = file.read_text(encoding="utf-8").splitlines()
        assert re.fullmatch(r"# [A-Z][^#]{20,140}\.", lines[0]), lines[0]
        keys = [(a, line) for a, line in pairwise(lines) if re.match(r"[ -]*[\w.-]+:", line) and line != "recipes:"]
        assert keys
        bare = [line for a, line in keys if not re.search(r"\S  # \S", line) and not a.lstrip().startswith("#")]
        assert bare == [], file


def test_a_recipe_says_what_it_is_in_a_sentence_of_its_own() -> None:
    said = [each.summary for each in recipe.listed().values() if each.origin is None]
    assert [s for s in said if not re.fullmatch(r"[A-Z(][^#]{20,160}", s)] == []
    assert len(set(said)) == len(said)


def test_the_list_is_grouped_by_protocol() -> None:
    groups = recipe.protocols()
    assert sum(map(len, groups.values())) == len(NAMES)
    assert len(groups) <= 20
    assert {each.file.parent.name for each in recipe.listed().values()} >= {"digits", "mnist", "cifar10"}


def test_a_method_finds_its_sites_on_the_network() -> None:
    def finds(name: str) -> bool:
        method = read(name)[0].method
        while isinstance(method, Wrapper):
            method = method.base
        return bool(attached(name)) == isinstance(method, LayerMethod)

    assert failing(finds) == []


def test_the_parts_fit_each_other() -> None:
    def fit(name: str) -> bool:
        chosen, _ = read(name)
        Phases(chosen.method, experiment.make_phases(chosen), chosen.training.epochs)
        attacks = chosen.evaluation.attacks
        spelled = [str(parse_attack(a)) for a in attacks] == attacks and attacks[0] == "clean"
        data = {"image-folder": "imagenet"}.get(chosen.data.name, chosen.data.name)
        return spelled and f"-{data}-" in f"-{name}-"

    assert failing(fit) == []


def test_a_method_trains_against_what_it_is_evaluated_against() -> None:
    def same(name: str) -> bool:
        chosen, _ = read(name)
        meant = name.endswith(
            ("-fashion-mnist", "-few-digits")
        )  # where every method has the strength that validation chose
        return meant or set(chosen.method.under(chosen.threat).threats().values()) <= {chosen.threat}

    assert failing(same) == []


def test_another_method_in_a_recipe_trains_at_the_recipes_radius() -> None:
    chosen, _ = experiment.read("slat-digits", ["--method", "PGD"])
    assert chosen.method.threats() == {}
    assert chosen.method.under(chosen.threat).eps == chosen.threat.eps == 0.2  # type: ignore[attr-defined]
    moved, _ = experiment.read("slat-mnist", ["--threat.eps", "0.1"])
    assert moved.method.under(moved.threat).eta_at("input") == 0.1  # type: ignore[attr-defined]


def test_another_protocol_repeats_every_recipe_of_a_file() -> None:
    cifar10, cifar100 = read("fastat-slat-cifar10")[1], read("fastat-slat-cifar100")[1]
    assert cifar100["data"]["name"] == "cifar100"
    assert {k: v for k, v in cifar100.items() if k != "data"} == {k: v for k, v in cifar10.items() if k != "data"}


def test_a_file_of_the_users_is_one_recipe(tmp_path: Path) -> None:
    for key in ("recipes: {a: {}}", "repeats: cifar10"):
        own = write(tmp_path, "own.yaml", f"extends: slat-digits\n{key}\n")
        with pytest.raises(ConfigError, match="is for the files of the package; a file of yours is one recipe"):
            experiment.read(own)


def test_a_start_is_a_standard_recipe_of_the_same_network() -> None:
    starts = {name: read(name)[0].model for name in NAMES if name.startswith("deep-defense")}
    assert len(starts) > 8
    for name, model in starts.items():
        reference = read(str(model.start))[0]
        assert isinstance(reference.method, Standard), name
        assert replace(model, start=None) == reference.model, name


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("slat-digits", ["conv1", "layer1"]),
        ("slat-cifar10", ["conv1", "layer1"]),
        ("slat-cifar10-wrn", ["conv1", "layer1"]),
        ("anp-cifar10", ["conv1", "conv2", "conv3", "conv4"]),
        ("anp-cifar10-sign", ["input", *(f"conv{i}" for i in range(1, 14))]),
        ("lad-cifar10", [f"layer{group}.{block}" for group in (1, 2, 3) for block in range(9)]),
        ("lat-cifar10", [f"bn{i}" for i in range(1, 17)]),
    ],
)
def test_the_sites_are_the_papers(name: str, sites: list[str]) -> None:
    assert attached(name) == sites


def test_the_strang_marchuk_recipe_also_perturbs_the_first_blocks_input() -> None:
    assert len(attached("lad-sm-cifar10")) == len(attached("lad-cifar10")) + 1
    assert attached("lad-sm-cifar10")[0] == "layer1.0:input"


def test_extends_lays_a_recipe_on_another(tmp_path: Path) -> None:
    own = write(tmp_path, "own.yaml", "extends: slat-digits\nmethod: {num_probes: 2}\ntraining: {epochs: 3}\n")
    chosen, _ = experiment.read(own, ["--training.batch_size", "32"])
    slat = read("slat-digits")[0]
    assert isinstance(chosen.method, SLAT)
    assert (chosen.method.num_probes, chosen.training.epochs, chosen.training.batch_size) == (2, 3, 32)
    assert (chosen.method.eta, chosen.evaluation) == (slat.method.eta, slat.evaluation)  # type: ignore[attr-defined]


def test_another_method_keeps_nothing_of_the_extended_one(tmp_path: Path) -> None:
    own = write(tmp_path, "own.yaml", "extends: slat-digits\nmethod: {name: LAD, sites: [layer1]}\n")
    assert experiment.read(own)[0].method == LAD(sites=["layer1"])


def test_radii_are_fractions_in_recipes_and_on_the_command_line() -> None:
    assert "eta: 8/255  #" in recipe.path_of("slat-cifar10").read_text(encoding="utf-8")
    assert read("slat-cifar10")[0].method.eta == 8 / 255  # type: ignore[attr-defined]
    assert experiment.read("slat-cifar10", ["--method.eta", "4/255"])[0].method.eta == 4 / 255  # type: ignore[attr-defined]


def test_anp_can_start_in_its_second_phase() -> None:
    chosen, _ = experiment.read("anp-cifar10", ["--phases", "[]", "--training.epochs", "50"])
    second = experiment.make_phases(read("anp-cifar10")[0])[1]
    assert experiment.make_phases(chosen) == []
    assert second.epochs == chosen.training.epochs
    assert second.fields == {name: getattr(chosen.method, name) for name in ("eta", "eps", "k")}


def test_recipes_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    write(tmp_path, "one.yaml", f"extends: {other}\n")
    write(tmp_path, "other.yaml", f"extends: {one}\n")
    with pytest.raises(ConfigError, match=re.escape(f"recipe '{one}' extends itself: {one} -> {other} -> {one}")):
        experiment.read(str(one))


@pytest.mark.parametrize(
    ("source", "overrides", "message"),
    [
        ("slat-digit", [], "there is no recipe 'slat-digit'; did you mean 'slat-digits'"),
        ("nowhere.yaml", [], "there is no file nowhere.yaml"),
        ("slat-digits", ["--method.etaa", "0.1"], "there is no setting '--method.etaa'; did you mean 'method.eta'"),
        ("slat-digits", ["--method", "SLTA"], "method: there is no 'SLTA'; did you mean 'SLAT'"),
        ("slat-digits", ["--training.epochs", "ten"], "training.epochs=ten does not fit; type a whole number"),
        ("slat-digits", ["--threat.eps", "8/ten"], "a number or a fraction such as 8/255"),
        ("slat-digits", ["--method.eta", "8"], "in units of 0 to 255 pixels, ours are 0 to 1; type eta=8/255"),
    ],
)
def test_mistakes_are_told_with_what_to_type(source: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        experiment.read(source, overrides)


def test_a_misspelt_field_of_a_file_is_told_with_the_file(tmp_path: Path) -> None:
    own = write(tmp_path, "own.yaml", "extends: slat-digits\nmethod: {num_probe: 2}\n")
    message = f"{own}: there is no setting 'method.num_probe'; did you mean 'method.num_probes'"
    with pytest.raises(ConfigError, match=re.escape(message)):
        experiment.read(own)


def test_a_file_that_is_no_configuration_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not YAML"):
        experiment.read(write(tmp_path, "own.yaml", "method: [SLAT"))
    with pytest.raises(ConfigError, match="is not a configuration"):
        experiment.read(write(tmp_path, "own.yaml", "- SLAT\n"))
