"""The evaluation of a run: its record, and what is said of one that does not fit."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from layerwise.attacks import FGSMAttack, PGDAttack, ThreatModel, Transfer
from layerwise.core import registry
from layerwise.data import from_tensors
from layerwise.errors import CheckpointError, ConfigError
from layerwise.evaluation import EpsRef, Evaluation, Measured, Rho, evaluate, evaluate_run, rho
from layerwise.evaluation.conditions import evaluating
from layerwise.evaluation.corruptions import (
    CorruptionErrors,
    CorruptionScores,
    FlipProbabilities,
    FlipRates,
    corruption_errors,
    flip_probabilities,
    flip_rates,
    mce,
)
from layerwise.evaluation.intervals import Count
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.measures import (
    Adversarialness,
    Alignment,
    Example,
    Examples,
    InputGradients,
    Landscape,
    Reassignment,
    Spectrum,
    adversarial_examples,
    gradient_alignment,
)
from layerwise.evaluation.settings import EvaluationSettings
from layerwise.models.stochastic import RandomResizing
from tests.evaluation.measures.cases import CASES
from tests.evaluation.measures.test_manners import network
from tests.evaluation.problems import trained
from tests.evaluation.test_record import RECORD
from tests.networks import TinyMLP, TinyResNet, batch

X, Y = batch(12, dtype=torch.float32)
WRONG = (X, (Y + 1) % 5)
"""A base model of mCE has to err."""


def everything() -> Evaluation:
    net = trained(torch.float32)
    errors = corruption_errors(net, WRONG, names=["contrast", "brightness"])
    flips = flip_probabilities(net, WRONG, names=["rotate"])
    found: dict[str, Measurement] = {
        "rho steps=5": Rho(0.2, 12, 0, 0.25, 5, 2.0),
        "eps-ref": EpsRef(0.05, {1.0: Count(6, 12), 0.5: Count(8, 12)}),
        "corruptions contrast brightness": errors,
        "corruptions contrast brightness, against a": mce(errors, errors),
        "sequences rotate": flips,
        "sequences rotate, against a": flip_rates(flips, flips),
        "alignment": Alignment(None, (), 12, 0.1),
        "jacobian": Spectrum((2.0, 1.0), 2.2, "fc1", (3, 4), 12),
        "pictures images=3": adversarial_examples(
            net, WRONG, attack="fgsm", threat=ThreatModel("linf", 0.1), num_images=3
        ),
    }
    return replace(RECORD, measures=tuple(Measured(text, value) for text, value in found.items()))


def test_a_record_survives_its_files(tmp_path: Path) -> None:
    evaluation = everything()
    evaluation.write(tmp_path, "evaluation-mine")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["evaluation-mine.json", "evaluation-mine.md"]
    assert Evaluation.read(tmp_path, "evaluation-mine") == evaluation
    # A line a measure: a few pictures would be a hundred thousand lines of one number.
    assert len((tmp_path / "evaluation-mine.json").read_text().splitlines()) < 80


def test_markdown_tells_every_measure() -> None:
    evaluation = everything()
    text = evaluation.to_markdown()
    assert text.startswith(RECORD.to_markdown())
    assert "rho: rho_2 with 5 DeepFool steps: 0.2 over 12 images, 25.00 % not fooled.\n" in text
    assert "eps_ref: 0.05 (FGSM halves the accuracy); accuracy under FGSM 50.00 % at 1, 66.67 % at 0.5 of it.\n" in text
    assert "Gradient alignment: no image has a gradient over 0 images" in text
    # mCE needs all fifteen.
    assert "mCE: no mean, which needs every corruption of its kind, against " in text
    for measured in evaluation.measures:
        assert measured.found.sentence() in text


def written(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    measures = (
        Measured("rho steps=5", Rho(0.2, 12, 0, 0.25, 5, 2.0)),
        Measured("alignment", Alignment(0.5, (0.5,), 0, 0.1)),
    )
    replace(RECORD, measures=measures).write(folder)
    path = folder / "evaluation.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def changed(index: int, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda d: d["measures"][index]["found"].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("measures"), "is corrupt: measures is None, which is no list"),
        (lambda d: d.update(measures=3), "measures is 3, which is no list"),
        (lambda d: d["measures"].append(3), "is corrupt: a measure is 3, which is no object"),
        (lambda d: d["measures"][0].pop("says"), "a measure has no measure, says or found; evaluate the run again"),
        (changed(0, images="12"), r"is corrupt: Rho.images is '12', which is no whole number"),
        (changed(0, value=[]), r"is corrupt: Rho.value is \[\], which is no number"),
        (changed(1, kind="Alignmen"), "'Alignmen' is no measurement of this layerwise; did you mean 'Alignment'"),
        (lambda d: d["measures"][1]["found"].pop("kind"), "None is no measurement of this layerwise"),
        (lambda d: d["measures"][1]["found"].pop("eps"), "is corrupt: Alignment has no eps"),
        (changed(1, kind="Examples", attack=3), "is corrupt: Examples has no "),
    ],
)
def test_measures_that_do_not_fit(tmp_path: Path, change: Any, message: str) -> None:
    written(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        Evaluation.read(tmp_path)


def test_a_record_that_is_cut_off(tmp_path: Path) -> None:
    written(tmp_path, lambda d: None)
    file = tmp_path / "evaluation.json"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"evaluation.json is not JSON \(.*\); evaluate the run again"):
        Evaluation.read(tmp_path)


def test_a_folder_without_the_record_names_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"holds no evaluation.json; make it with: layerwise evaluate {tmp_path}"):
        Evaluation.read(tmp_path)
    RECORD.write(tmp_path, "evaluation-quick")
    with pytest.raises(CheckpointError, match=r"holds no evaluation.json; --record takes evaluation-quick$"):
        Evaluation.read(tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_every_measurement_survives_json(name: str) -> None:
    found = CASES[name](network(), 4, 0)
    text = json.dumps(found.to_dict(), allow_nan=False)
    again = Measurement.from_dict(json.loads(text))
    assert type(again) is type(found)
    assert json.dumps(again.to_dict()) == text
    if not isinstance(found, InputGradients):
        assert again == found


def test_numbers_that_were_not_finite_come_back_as_nan() -> None:
    found = Measurement.from_dict(json.loads(json.dumps(Spectrum((math.inf, 1.0), 1.0, "a", (1, 1), 2).to_dict())))
    assert isinstance(found, Spectrum)
    assert math.isnan(found.values[0])


# Pictures.


def test_examples_are_the_first_images_of_the_evaluation() -> None:
    net, threat = trained(torch.float32), ThreatModel("l2", 1.5)
    found = adversarial_examples(net, (X, Y), attack="pgd-5", threat=threat, num_images=4, classes=["a", "b"], seed=3)
    with evaluating(net, (X, Y), num_examples=4, seed=3) as conditions:
        x, y, source = next(iter(conditions.batches))
        x_adv = PGDAttack(5)(net, x, y, threat, generator=source)
    assert [item.label for item in found.items] == y.tolist()
    assert [item.attacked for item in found.items] == net(x_adv).argmax(1).tolist()
    assert [item.predicted for item in found.items] == net(x).argmax(1).tolist()
    assert [item.confidence for item in found.items] == pytest.approx(net(x).softmax(1).amax(1).tolist(), rel=1e-5)
    assert [i.distance for i in found.items] == pytest.approx((x_adv - x).flatten(1).norm(dim=1).tolist(), rel=1e-5)
    pictures = list(found.pictures())
    torch.testing.assert_close(torch.stack([p for p, _ in pictures]) / 255, x, atol=0.5 / 255, rtol=0)
    torch.testing.assert_close(torch.stack([p for _, p in pictures]) / 255, x_adv, atol=0.5 / 255, rtol=0)
    assert [found.class_name(k) for k in range(3)] == ["a", "b", "2"]


def test_examples_of_another_shape_are_refused() -> None:
    item = Example((0, 1), (0, 256), 0, 0, 1.0, 0, 1.0, 0.0)
    with pytest.raises(ConfigError, match=r"an image is not 2 numbers of 0 to 255, as the shape \(1, 1, 2\) says"):
        Examples("fgsm", ThreatModel(), (1, 1, 2), (), (item,))


def test_an_attack_that_makes_no_image_has_no_pictures() -> None:
    with pytest.raises(
        ConfigError, match="attack 'latent' changes no image that could be shown; type one such as pgd-20"
    ):
        adversarial_examples(trained(torch.float32), (X, Y), attack="latent", threat=ThreatModel())


# Evaluating.


def evaluated(folder: Path | None = None, *, net: nn.Module | None = None, **settings: Any) -> Evaluation:
    data = from_tensors(X, Y, test=WRONG, validation=5, classes=list("abcde"), name="pictures")
    options = {name: settings.pop(name) for name in ("record", "load", "fresh", "name") if name in settings}
    threat = ThreatModel("linf", settings.pop("eps", 0.1))
    chosen = EvaluationSettings(**{"attacks": ["clean", "fgsm"], "batch_size": 5, **settings})
    network = net or trained(torch.float32)
    return evaluate_run(network, data, chosen, threat=threat, folder=folder, progress=False, **options)


ASKED: dict[str, Any] = {
    "measures": [
        "rho steps=3",
        "rho steps=5",
        "corruptions contrast fog",
        "sequences rotate",
        "alignment images=5",
        "landscape images=3 points=3",
        "input-gradients images=2",
        "pictures images=2",
    ],
    "num_examples": 10,
}


def test_everything_that_is_asked_for_is_measured_on_the_same_images(tmp_path: Path) -> None:
    found = evaluated(tmp_path, **ASKED, seed=1)
    net, data = trained(torch.float32), WRONG
    subset: dict[str, Any] = {"num_examples": 10, "seed": 1}
    assert [r.attack for r in found.results] == ["clean", "fgsm"]
    assert [m.measure for m in found.measures] == ASKED["measures"]
    assert found.data.seed == 1
    own = [rho(net, data, num_steps=steps, **subset) for steps in (3, 5)]
    assert [r.value for r in found.found(Rho)] == pytest.approx([r.value for r in own], rel=1e-6)
    (errors,) = found.found(CorruptionErrors)
    expected = corruption_errors(net, data, names=["contrast", "fog"], **subset)
    assert (errors.counts, errors.clean) == (expected.counts, expected.clean)
    (flips,) = found.found(FlipProbabilities)
    assert flips.flips == flip_probabilities(net, data, names=["rotate"], **subset).flips
    with evaluating(net, data, seed=1) as conditions:
        x, y = conditions.batches.example(5)
    assert found.found(Alignment) == [gradient_alignment(net, x, y, eps=0.1, seed=1)]
    assert [type(m.found) for m in found.measures[4:7]] == [Alignment, Landscape, InputGradients]
    assert found.found(Examples) == [
        adversarial_examples(
            net, data, attack="fgsm", threat=ThreatModel("linf", 0.1), num_images=2, classes="abcde", seed=1
        )
    ]
    again = Evaluation.read(tmp_path)
    assert again.to_markdown() == found.to_markdown()
    assert again.to_json() == found.to_json()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["evaluation.json", "evaluation.md"]


def test_python_asks_for_measures_as_the_command_does() -> None:
    found = evaluate(
        *(trained(torch.float32), WRONG),
        threat=ThreatModel("linf", 0.1),
        attacks=["clean", "fgsm"],
        measures=["alignment images=5", "reassignment images=3"],
        others={"other": TinyMLP(seed=7)},
        batch_size=5,
        progress=False,
    )
    as_run = evaluated(measures=["alignment images=5", "reassignment images=3"], baseline="runs/other", load=load)
    assert found.measures == as_run.measures


class Stops(nn.Module):
    """Stops after so many passes."""

    def __init__(self, passes: int, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network, self.left = network or trained(torch.float32), passes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        out: torch.Tensor = self.network(x)
        return out


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.95])
def test_an_interrupted_evaluation_goes_on(tmp_path: Path, share: float) -> None:
    counting = Stops(10**9)
    whole = evaluated(tmp_path / "whole", net=counting, **ASKED)
    everything = 10**9 - counting.left
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path, net=Stops(round(share * everything)), **ASKED)
    assert (tmp_path / "evaluation.journal").exists()
    assert not (tmp_path / "evaluation.json").exists()
    rest = Stops(10**9)
    resumed = evaluated(tmp_path, net=rest, **ASKED)
    assert 10**9 - rest.left < everything
    assert replace(resumed, results=whole.results).to_json() == whole.to_json()
    assert [r.count for r in resumed.results] == [r.count for r in whole.results]
    files = [json.loads((tmp_path / place / "evaluation.json").read_text()) for place in ("whole", "")]
    assert files[0]["measures"] == files[1]["measures"]


def test_fresh_begins_anew(tmp_path: Path) -> None:
    counting = Stops(10**9)
    evaluated(None, net=counting)
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path, net=Stops(10**9 - counting.left - 1))
    again = Stops(10**9)
    evaluated(tmp_path, net=again, fresh=True)
    assert again.left == counting.left


def test_another_way_of_calling_the_network_is_another_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counting = Stops(10**9, TinyResNet())
    evaluated(None, net=counting)
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path, net=Stops(10**9 - counting.left - 1, TinyResNet()))
    with caplog.at_level(logging.WARNING):
        evaluated(tmp_path, net=Stops(10**9, TinyResNet()), inference=RandomResizing(largest=9))
    assert "begun under other circumstances" in caplog.text


def test_the_validation_split_is_named(tmp_path: Path) -> None:
    found = evaluated(tmp_path, split="validation")
    assert (found.data.name, found.data.size) == ("pictures validation", 5)
    assert found["clean"].count.correct > 0
    assert evaluated().data.name == "pictures"


def test_mce_and_mfr_need_the_same_record_of_the_base_run(tmp_path: Path) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    asked: dict[str, Any] = {"measures": ["corruptions contrast", "sequences rotate"], "baseline": str(base)}
    with pytest.raises(CheckpointError, match=r"base holds no evaluation.json; make it with: layerwise evaluate"):
        evaluated(run, **asked)
    evaluated(base)
    message = r"base has no corruptions in its evaluation.json to compare with; type first: layerwise evaluate .*base "
    measures = r"'\[corruptions contrast, sequences rotate\]'"
    with pytest.raises(ConfigError, match=message + r"--record evaluation --evaluation.measures " + measures):
        evaluated(run, **asked)
    own = evaluated(base, **asked)
    assert own.found(CorruptionScores)[0].ce["contrast"].value == pytest.approx(100)
    torch.manual_seed(0)
    other = evaluated(run, net=TinyMLP(), **asked)
    (errors,), (theirs,) = other.found(CorruptionErrors), own.found(CorruptionErrors)
    assert len(other.found(FlipRates)) == 1
    assert other.found(CorruptionScores) == [mce(errors, theirs)]
    assert Evaluation.read(run).found(CorruptionScores) == other.found(CorruptionScores)


def test_a_base_run_on_other_images_costs_only_the_comparison(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = tmp_path / "base"
    evaluated(base, measures=["corruptions contrast"], seed=1)
    with caplog.at_level(logging.WARNING):
        found = evaluated(tmp_path, measures=["corruptions contrast"], baseline=str(base))
    assert found.found(CorruptionErrors)
    assert not found.found(CorruptionScores)
    assert f"no comparison with {base}: " in caplog.text


def load(run: str) -> nn.Module:
    assert run == "runs/other"
    return TinyMLP(seed=7)


def test_attacks_are_transferred_from_each_source(caplog: pytest.LogCaptureFixture) -> None:
    found = evaluated(attacks=["clean", "transfer:each:fgsm"], sources=["runs/other"], load=load)
    transfer = Transfer(FGSMAttack(), (TinyMLP(seed=7),), ("runs/other",))
    assert (
        found["transfer:runs/other:fgsm"].count
        == evaluate(trained(torch.float32), WRONG, threat=ThreatModel("linf", 0.1), attacks=[transfer], progress=False)
        .results[0]
        .count
    )
    with caplog.at_level(logging.WARNING):
        alone = evaluated(attacks=["clean", "transfer:each:fgsm"])
    assert [r.attack for r in alone.results] == ["clean"]
    assert (
        "transfer:each:fgsm is left out: it needs other networks, type --evaluation.sources '[RUN, RUN]'" in caplog.text
    )


def test_measures_of_two_networks(caplog: pytest.LogCaptureFixture) -> None:
    asked = ["adversarialness images=3", "reassignment images=3"]
    found = evaluated(measures=asked, baseline="runs/other", load=load, name="mine")
    assert [list(one.accuracies) for one in found.found(Adversarialness)] == [["mine", "other"]]
    assert len(found.found(Reassignment)) == 1
    with caplog.at_level(logging.WARNING):
        assert evaluated(measures=asked).measures == ()
    assert "reassignment images=3 is left out: it needs another network, type --evaluation.baseline RUN" in caplog.text
    with pytest.raises(ConfigError, match="runs/other is needed, and nobody said how it is loaded"):
        evaluated(measures=asked, baseline="runs/other")


def test_what_does_not_fit_is_left_out_and_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: Mapping[str, Any] = registry.entries("measure")
    small = {k: known[k] for k in ("alignment", "state-ratio", "eps-ref", "reassignment")}
    monkeypatch.setitem(registry._ENTRIES, "measure", small)
    with caplog.at_level(logging.WARNING):
        found = evaluated(measures=["all", "alignment images=2"], net=TinyMLP())
    assert [type(m.found) for m in found.measures] == [Alignment]
    assert found.found(Alignment)[0].total == 2
    assert "state-ratio is left out: " in caplog.text
    assert "eps-ref is left out: half of the images are misclassified without any attack" in caplog.text
    assert "reassignment" not in caplog.text


def test_pictures_are_of_the_last_attack_in_the_threat_model(caplog: pytest.LogCaptureFixture) -> None:
    attacks = ["clean", "bim-2", "at:0.2:fgsm", "latent"]
    (found,) = evaluated(attacks=attacks, measures=["pictures images=1"]).found(Examples)
    assert found.attack == "bim-2"
    with caplog.at_level(logging.WARNING):
        assert not evaluated(attacks=["clean", "latent"], measures=["pictures"]).measures
    assert "pictures is left out: no attack makes images within the threat model" in caplog.text


def test_a_long_plan_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with caplog.at_level(logging.INFO, logger="layerwise"):
        evaluated()
        assert not caplog.records
        monkeypatch.setattr(sys.modules["layerwise.evaluation.evaluate"], "LONG", 40)
        evaluated(measures=["rho steps=1"])
    assert caplog.messages == ["2 attacks and 1 measures on 12 images, at most 132 passes of single images"]


@pytest.mark.parametrize("name", ["data", "versions", "a/b", "../evaluation"])
def test_names_that_are_taken(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"a record cannot be called '{name}'; type a name such as evaluation-quick"):
        evaluated(tmp_path, record=name)


def test_bars_move_and_end_on_a_board(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    data = from_tensors(X, Y, test=WRONG, validation=0, classes=list("abcde"), name="pictures")
    asked = ["corruptions contrast", "rho steps=2"]
    chosen = EvaluationSettings(attacks=["clean", "fgsm"], measures=asked)
    with_bars = evaluate_run(trained(torch.float32), data, chosen)
    assert [m.measure for m in with_bars.measures] == asked
