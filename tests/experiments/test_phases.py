"""Recipes as they are changed: optimisers and schedules from the command line, recipes that extend others, phases."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from layerwise.data import Augment
from layerwise.errors import ConfigError
from layerwise.experiments import experiment
from layerwise.experiments.experiment import make_phases
from layerwise.methods import FGSMRS, PGD, Standard
from layerwise.methods.lat import LAT
from layerwise.training import SGD, Adam, Cosine, MultiStep


def test_another_optimizer_keeps_nothing_of_the_recipes(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("extends: slat-digits\ntraining: {optimizer: {lr: 0.3, momentum: 0.5}, schedule: null}\n")
    with pytest.raises(ConfigError, match=re.escape("training.schedule=null does not fit; type one of Constant")):
        experiment.read(str(own))
    own.write_text("extends: slat-digits\ntraining: {optimizer: {lr: 0.3, momentum: 0.5}, schedule: MultiStep}\n")
    chosen, _ = experiment.read(str(own))
    assert isinstance(chosen.training.optimizer, SGD)
    assert (chosen.training.optimizer.lr, chosen.training.schedule) == (0.3, MultiStep())
    assert experiment.read(str(own), ["--training.optimizer", "Adam"])[0].training.optimizer == Adam()


def test_the_command_line_reads_optimisers_and_schedules() -> None:
    given = ["--training.schedule=Cosine", "--training.schedule.warmup=0.1", "--threat.eps=16/255"]
    given += ["--training.optimizer=Adam", "--training.optimizer.weight_decay=0", "--training.augment.crop=2"]
    training = experiment.read("slat-digits", given)[0].training
    assert training.schedule == Cosine(warmup=0.1)
    assert (training.optimizer, training.augment) == (Adam(weight_decay=0.0), Augment(crop=2))


def test_a_recipe_beside_the_extending_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "base.yaml").write_text("extends: slat-digits\ntraining: {epochs: 3}\n")
    (folder / "own.yaml").write_text("extends: base.yaml\nmethod: LAT\n")
    monkeypatch.chdir(tmp_path)
    chosen, _ = experiment.read("recipes/own.yaml")
    assert (chosen.training.epochs, chosen.method, chosen.threat.eps) == (3, LAT(), 0.2)


@pytest.mark.parametrize("text", ["extends: [slat-digits]\n", "extends: {a: 1}\n"])
def test_extends_takes_one_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match="does not fit; type one recipe's name or file"):
        experiment.read(str(tmp_path / "own.yaml"))


PHASES = """
extends: slat-digits
method: {name: SLAT, eta: 0.1, base: {name: FGSMRS, eps: 8/255}}
phases:
  - {epochs: 1, fields: {eta: 4/255}}
  - {epochs: 2, fields: {base.eps: 2/255, num_probes: 2}}
  - {epochs: 3, fields: {base: {step: 1.0}}}
  - {epochs: 4, method: {name: PGD, eps: 6/255}}
  - {epochs: 5, method: Standard}
training: {epochs: 15}
"""


def test_phases_are_typed_like_the_methods_fields(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(PHASES)
    first, second, third, fourth, fifth = make_phases(experiment.read(str(tmp_path / "own.yaml"))[0])
    assert [p.epochs for p in (first, second, third, fourth, fifth)] == [1, 2, 3, 4, 5]
    assert first.fields == {"eta": 4 / 255}
    assert second.fields == {"base.eps": 2 / 255, "num_probes": 2}
    # What an earlier phase changed stays so.
    assert third.fields == {"base": FGSMRS(eps=2 / 255, step=1.0)}
    assert (fourth.method, fifth.method) == (PGD(eps=6 / 255), Standard())


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (
            "[{epochs: 15, fields: {etaa: 1}}]",
            "phases[0]: there is no setting 'method.etaa'; did you mean 'method.eta'",
        ),
        ("[{epochs: 15, fields: {eta: x}}]", "phases[0]: method.eta=x does not fit; type a number or a fraction"),
        ("[{epochs: 15, fields: {eta: 8}}]", "method: eta=8 is in units of 0 to 255 pixels"),
        ("[{epochs: 15, fields: {base.eps: 8}}]", "method.base: eps=8 is in units of 0 to 255 pixels"),
        (
            "[{epochs: 15, fields: {name: ANP}}]",
            "phases[0]: fields={'name': 'ANP'} does not fit; type {k: 1}, or method:",
        ),
        ("[{epochs: 15, fields: [k]}]", "phases[0]: fields=['k'] does not fit"),
        ("[{epochs: 15, field: {k: 1}}]", "phases[0]: {'epochs': 15, 'field': {'k': 1}} is no phase; type {epochs: 40"),
        ("[{epochs: many}]", "phases[0]: {'epochs': 'many'} is no phase"),
        ("[{epochs: 15, method: SLTA}]", "phases[0]: method: there is no 'SLTA'; did you mean 'SLAT'"),
        ("[{epochs: 15, method: PGD, fields: {eps: 1}}]", "not both; leave one"),
        ("[{epochs: 14}]", "the phases have 14 epochs and the run 15; type training.epochs=14"),
        ("[3]", "does not fit; type a list in brackets"),
    ],
)
def test_phases_that_do_not_fit_are_told(tmp_path: Path, phases: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(PHASES)
    with pytest.raises(ConfigError, match=re.escape(message)):
        experiment.read(str(tmp_path / "own.yaml"), ["--phases", phases])
