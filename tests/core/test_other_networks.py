"""Methods that look at other networks, from a recipe: runs and recipes in place of modules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import layerwise
from layerwise.errors import ConfigError
from layerwise.experiments import experiment
from layerwise.experiments.plan import plan

SOURCE = """# A source.
extends: standard-digits
model: {options: {width: 2}}
training: {epochs: 1, max_steps: 2, eval_every: 0}
evaluation: {attacks: [clean], num_examples: 4}
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.yaml"
    path.write_text(SOURCE)
    return path


def method_of(kind: str, source: object) -> str:
    field = f"sources: [{source}]" if kind == "EAT" else f"network: {source}, num_steps: 2"
    return f"{{name: {kind}, {field}}}"


def read(source: Path, method: str, more: str = "") -> Any:
    own = source.with_name("own.yaml")
    own.write_text(f"extends: {source}\nmethod: {method}\n{more}")
    return experiment.read(str(own))


@pytest.mark.parametrize("kind", ["EAT", "AdvTrainI"])
def test_a_recipe_is_trained_first_and_a_run_is_taken_as_it_is(kind: str, source: Path, tmp_path: Path) -> None:
    chosen, tree = read(source, method_of(kind, source), "model: {options: {width: 3}}\n")
    runs = tmp_path / "runs"
    experiment.train(chosen, tree, folder=runs / "one", progress=False)
    trained = runs / "source" / "model.safetensors"
    made = trained.stat().st_mtime_ns
    weights = layerwise.load(runs / "one").state_dict()
    chosen, tree = read(source, method_of(kind, runs / "source"), "model: {options: {width: 3}}\n")
    experiment.train(chosen, tree, folder=runs / "two", progress=False)
    assert trained.stat().st_mtime_ns == made
    assert all(torch.equal(v, weights[k]) for k, v in layerwise.load(runs / "two").state_dict().items())
    assert experiment.open_run(runs / "two")[0].method == chosen.method


def test_a_method_inside_another_and_one_of_a_phase_have_theirs_too(source: Path, tmp_path: Path) -> None:
    eat = method_of("EAT", source)
    more = f"phases: [{{epochs: 1, method: {eat}}}]\n"
    chosen, tree = read(source, f"{{name: LAT, base: {eat}}}")
    experiment.train(chosen, tree, folder=tmp_path / "runs" / "inside", progress=False)
    chosen, tree = read(source, "Standard", more)
    experiment.train(chosen, tree, folder=tmp_path / "runs" / "phase", progress=False)
    assert (tmp_path / "runs" / "source" / "model.safetensors").is_file()


def test_a_plan_trains_nothing(source: Path, tmp_path: Path) -> None:
    chosen, _ = read(source, method_of("EAT", source))
    assert "EAT, 8 passes a batch" in plan(chosen)
    assert not list(tmp_path.glob("runs*"))


def test_a_name_that_is_neither_is_told(source: Path, tmp_path: Path) -> None:
    chosen, tree = read(source, method_of("EAT", "standard-digit"))
    message = "method: there is no run, file or recipe 'standard-digit'; did you mean 'standard-digits'"
    with pytest.raises(ConfigError, match=re.escape(message)):
        experiment.train(chosen, tree, folder=tmp_path / "run", progress=False)
