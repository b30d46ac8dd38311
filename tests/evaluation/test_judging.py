"""The judgement of a run: its files beside one another, and what is said of those that do not fit."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from layerwise.attacks import FGSMAttack, PGDAttack, ThreatModel, Transfer
from layerwise.data import from_tensors
from layerwise.errors import CheckpointError, ConfigError
from layerwise.evaluation import EpsRef, Rho, evaluate, rho
from layerwise.evaluation.corruptions import corruption_errors, flip_probabilities, flip_rates, mce
from layerwise.evaluation.examples import Example, Examples, adversarial_examples
from layerwise.evaluation.judgement import Judgement, plain
from layerwise.evaluation.judging import judge
from layerwise.evaluation.measures import (
    DIAGNOSTICS,
    Adversarialness,
    Alignment,
    Diagnostic,
    InputGradients,
    Reassignment,
    Spectrum,
    gradient_alignment,
)
from layerwise.evaluation.metrics import Count
from layerwise.evaluation.session import judging
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


def everything() -> Judgement:
    net = trained(torch.float32)
    errors = corruption_errors(net, WRONG, names=["contrast", "brightness"])
    flips = flip_probabilities(net, WRONG, names=["rotate"])
    return Judgement(
        evaluation=RECORD,
        rho=(Rho(0.2, 12, 0, 0.25, 5, 2.0),),
        eps_ref=EpsRef(0.05, {1.0: Count(6, 12), 0.5: Count(8, 12)}),
        corruptions=errors,
        corruption_scores=mce(errors, errors),
        sequences=flips,
        flip_rates=flip_rates(flips, flips),
        diagnostics=(Alignment(None, (), 12, 0.1), Spectrum((2.0, 1.0), 2.2, "fc1", (3, 4), 12)),
        examples=adversarial_examples(net, WRONG, attack="fgsm", threat=ThreatModel("linf", 0.1), num_images=3),
    )


def test_a_judgement_survives_its_files(tmp_path: Path) -> None:
    judgement = everything()
    judgement.write(tmp_path, "evaluation-mine")
    names = sorted(f.name for f in tmp_path.iterdir())
    assert names == [f"evaluation-mine.{ending}" for ending in ("json", "md", "measures.json")]
    assert Judgement.read(tmp_path, "evaluation-mine") == judgement


def test_a_record_without_measures_is_read_alone(tmp_path: Path) -> None:
    Judgement(evaluation=RECORD).write(tmp_path)
    (tmp_path / "evaluation.measures.json").unlink()
    assert Judgement.read(tmp_path) == Judgement(evaluation=RECORD)


def test_markdown_tells_every_measure() -> None:
    judgement = everything()
    text = judgement.to_markdown()
    assert text.startswith(RECORD.to_markdown())
    assert "rho_2 with 5 DeepFool steps: 0.2 over 12 images, 25.00 % not fooled\n" in text
    assert "eps_ref: 0.05 (FGSM halves the accuracy); accuracy under FGSM 50.00 % at 1, 66.67 % at 0.5 of it\n" in text
    assert judgement.corruptions is not None
    assert f"| contrast | {100 * judgement.corruptions.error('contrast'):.1f} |\n" in text
    assert "| sequence | flips % (benchmark rule) |\n| --- | ---: |\n| rotate | " in text
    assert "Gradient alignment: no image has a gradient over 0 images" in text
    # mCE needs all fifteen.
    assert "mCE" not in text


def written(folder: Path, file: str, change: Callable[[dict[str, Any]], object]) -> None:
    Judgement(
        evaluation=RECORD, rho=(Rho(0.2, 12, 0, 0.25, 5, 2.0),), diagnostics=(Alignment(0.5, (0.5,), 0, 0.1),)
    ).write(folder)
    path = folder / file
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.update(format="layerwise-evaluation"),
            "measures.json is not what was measured beside an evaluation; give a file",
        ),
        (
            lambda d: d.update(version=7),
            "measures.json has version 7, this layerwise reads 1; use the one that wrote it",
        ),
        (
            lambda d: d["evaluation"].update(model="ff"),
            r"measured on other weights or images than .*evaluation.json; evaluate the run again",
        ),
        (lambda d: d.pop("evaluation"), "measured on other weights or images"),
        (lambda d: d.pop("rho"), "is corrupt: it has no rho; evaluate the run again"),
        (lambda d: d.update(more=1), "is corrupt: it has an unknown more"),
        (lambda d: d["rho"][0].update(images="12"), r"is corrupt: rho\[0\].images is '12', which is no whole number"),
        (lambda d: d["rho"][0].update(value=None), r"is corrupt: rho\[0\].value is None, which is no number"),
        (
            lambda d: d.update(eps_ref={"eps": 0.1, "accuracies": {"x": {"right": 1, "total": 2}}}),
            "eps_ref.accuracies.x is 'x', which is no name that is a number",
        ),
        (
            lambda d: d["diagnostics"][0].update(diagnostic="Alignmen"),
            "'Alignmen' is no diagnostic of this layerwise; did you mean 'Alignment'",
        ),
        (lambda d: d["diagnostics"][0].pop("diagnostic"), "None is no diagnostic of this layerwise"),
        (lambda d: d["diagnostics"][0].pop("eps"), "is corrupt: Alignment has no eps"),
        (lambda d: d.update(diagnostics=3), "diagnostics is 3, which is no list"),
        (lambda d: d.update(examples={"attack": 3}), "is corrupt: examples has no "),
    ],
)
def test_measures_that_do_not_fit(tmp_path: Path, change: Any, message: str) -> None:
    written(tmp_path, "evaluation.measures.json", change)
    with pytest.raises(CheckpointError, match=message):
        Judgement.read(tmp_path)


def test_measures_that_are_cut_off(tmp_path: Path) -> None:
    written(tmp_path, "evaluation.measures.json", lambda d: None)
    file = tmp_path / "evaluation.measures.json"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"evaluation.measures.json is not JSON \(.*\); evaluate the run again"):
        Judgement.read(tmp_path)


def test_a_folder_without_the_record_names_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"holds no evaluation.json; make it with: layerwise evaluate {tmp_path}"):
        Judgement.read(tmp_path)
    Judgement(evaluation=RECORD).write(tmp_path, "evaluation-quick")
    with pytest.raises(CheckpointError, match=r"holds no evaluation.json; --record takes evaluation-quick$"):
        Judgement.read(tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_every_diagnostic_survives_json(name: str) -> None:
    found = CASES[name](network(), 4, 0)
    text = json.dumps(found.to_dict(), allow_nan=False)
    again = Diagnostic.from_dict(json.loads(text))
    assert type(again) is type(found)
    assert json.dumps(again.to_dict()) == text
    if not isinstance(found, InputGradients):
        assert again == found


def test_numbers_that_were_not_finite_come_back_as_nan() -> None:
    found = Diagnostic.from_dict(json.loads(json.dumps(Spectrum((math.inf, 1.0), 1.0, "a", (1, 1), 2).to_dict())))
    assert isinstance(found, Spectrum)
    assert math.isnan(found.values[0])


# Pictures.


def test_examples_are_the_first_images_of_the_evaluation() -> None:
    net, threat = trained(torch.float32), ThreatModel("l2", 1.5)
    found = adversarial_examples(net, (X, Y), attack="pgd-5", threat=threat, num_images=4, classes=["a", "b"], seed=3)
    with judging(net, (X, Y), num_examples=4, seed=3) as session:
        x, y, source = next(iter(session.batches))
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


# Judging.


def judged(folder: Path | None = None, *, net: nn.Module | None = None, **settings: Any) -> Judgement:
    data = from_tensors(X, Y, test=WRONG, validation=5, classes=list("abcde"), name="pictures")
    options = {name: settings.pop(name) for name in ("record", "load", "fresh", "name") if name in settings}
    threat = ThreatModel("linf", settings.pop("eps", 0.1))
    chosen = EvaluationSettings(**{"attacks": ["clean", "fgsm"], "batch_size": 5, **settings})
    network = net or trained(torch.float32)
    return judge(network, data, chosen, threat=threat, folder=folder, progress=False, **options)


ASKED: dict[str, Any] = {
    "rho_steps": [3, 5],
    "corruptions": ["contrast", "fog"],
    "sequences": ["rotate"],
    "diagnostics": ["alignment images=5", "landscape images=3 points=3", "input-gradients images=2"],
    "num_pictures": 2,
    "num_examples": 10,
}


def test_everything_that_is_asked_for_is_measured_on_the_same_images(tmp_path: Path) -> None:
    found = judged(tmp_path, **ASKED, seed=1)
    net, data = trained(torch.float32), WRONG
    subset: dict[str, Any] = {"num_examples": 10, "seed": 1}
    assert [r.attack for r in found.evaluation.results] == ["clean", "fgsm"]
    assert found.evaluation.data.seed == 1
    for ours, steps in zip(found.rho, (3, 5), strict=True):
        theirs = rho(net, data, num_steps=steps, **subset)
        assert ours.value == pytest.approx(theirs.value, rel=1e-5)  # other batches round apart
        assert replace(ours, value=theirs.value) == theirs
    assert found.corruptions is not None
    expected = corruption_errors(net, data, names=["contrast", "fog"], **subset)
    assert (found.corruptions.counts, found.corruptions.clean) == (expected.counts, expected.clean)
    assert found.sequences is not None
    assert found.sequences.flips == flip_probabilities(net, data, names=["rotate"], **subset).flips
    with judging(net, data, seed=1) as session:
        x, y = session.batches.example(5)
    assert found.diagnostics[0] == gradient_alignment(net, x, y, eps=0.1, seed=1)
    assert [type(d).__name__ for d in found.diagnostics] == ["Alignment", "Landscape", "InputGradients"]
    assert found.examples == adversarial_examples(
        net, data, attack="fgsm", threat=ThreatModel("linf", 0.1), num_images=2, classes="abcde", seed=1
    )
    again = Judgement.read(tmp_path)
    assert again.to_markdown() == found.to_markdown()
    assert plain(again.diagnostics) == plain(found.diagnostics)
    assert not (tmp_path / "evaluation.journal").exists()


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
def test_an_interrupted_judgement_goes_on(tmp_path: Path, share: float) -> None:
    counting = Stops(10**9)
    whole = judged(tmp_path / "whole", net=counting, **ASKED)
    everything = 10**9 - counting.left
    with pytest.raises(KeyboardInterrupt):
        judged(tmp_path, net=Stops(round(share * everything)), **ASKED)
    assert (tmp_path / "evaluation.journal").exists()
    assert not (tmp_path / "evaluation.json").exists()
    rest = Stops(10**9)
    resumed = judged(tmp_path, net=rest, **ASKED)
    assert 10**9 - rest.left < everything
    assert replace(resumed, evaluation=whole.evaluation).to_markdown() == whole.to_markdown()
    assert [r.count for r in resumed.evaluation.results] == [r.count for r in whole.evaluation.results]
    files = [(tmp_path / place / "evaluation.measures.json").read_text() for place in ("whole", "")]
    assert files[0] == files[1]


def test_fresh_begins_anew(tmp_path: Path) -> None:
    counting = Stops(10**9)
    judged(None, net=counting)
    with pytest.raises(KeyboardInterrupt):
        judged(tmp_path, net=Stops(10**9 - counting.left - 1))
    again = Stops(10**9)
    judged(tmp_path, net=again, fresh=True)
    assert again.left == counting.left


def test_another_way_of_calling_the_network_is_another_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counting = Stops(10**9, TinyResNet())
    judged(None, net=counting)
    with pytest.raises(KeyboardInterrupt):
        judged(tmp_path, net=Stops(10**9 - counting.left - 1, TinyResNet()))
    with caplog.at_level(logging.WARNING):
        judged(tmp_path, net=Stops(10**9, TinyResNet()), inference=RandomResizing(largest=9))
    assert "begun under other circumstances" in caplog.text


def test_the_validation_split_is_named(tmp_path: Path) -> None:
    found = judged(tmp_path, split="validation").evaluation
    assert (found.data.name, found.data.size) == ("pictures validation", 5)
    assert found["clean"].count.right > 0
    assert judged().evaluation.data.name == "pictures"


def test_mce_and_mfr_need_the_same_record_of_the_base_run(tmp_path: Path) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    asked: dict[str, Any] = {"corruptions": ["contrast"], "sequences": ["rotate"], "corruption_base": str(base)}
    with pytest.raises(CheckpointError, match=r"base holds no evaluation.json; make it with: layerwise evaluate"):
        judged(run, **asked)
    judged(base)
    message = r"base has no corruptions in its evaluation.json to compare with; type first: layerwise evaluate .*base "
    with pytest.raises(ConfigError, match=message + r"--record evaluation --evaluation.corruptions '\[contrast\]'"):
        judged(run, **asked)
    own = judged(base, **asked)
    assert own.corruption_scores is not None
    assert own.corruption_scores.ce["contrast"].value == pytest.approx(100)
    torch.manual_seed(0)
    other = judged(run, net=TinyMLP(), **asked)
    assert other.corruptions is not None
    assert own.corruptions is not None
    assert other.flip_rates is not None
    assert other.corruption_scores == mce(other.corruptions, own.corruptions)
    assert Judgement.read(run).corruption_scores == other.corruption_scores


def test_a_base_run_on_other_images_costs_only_the_comparison(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = tmp_path / "base"
    judged(base, corruptions=["contrast"], seed=1)
    with caplog.at_level(logging.WARNING):
        found = judged(tmp_path, corruptions=["contrast"], corruption_base=str(base))
    assert found.corruptions is not None
    assert found.corruption_scores is None
    assert f"no comparison with {base}: " in caplog.text


def load(run: str) -> nn.Module:
    assert run == "runs/other"
    return TinyMLP(seed=7)


def test_attacks_are_transferred_from_each_source(caplog: pytest.LogCaptureFixture) -> None:
    found = judged(attacks=["clean", "transfer:each:fgsm"], sources=["runs/other"], load=load).evaluation
    transfer = Transfer(FGSMAttack(), (TinyMLP(seed=7),), ("runs/other",))
    assert (
        found["transfer:runs/other:fgsm"].count
        == evaluate(trained(torch.float32), WRONG, threat=ThreatModel("linf", 0.1), attacks=[transfer], progress=False)
        .results[0]
        .count
    )
    with caplog.at_level(logging.WARNING):
        alone = judged(attacks=["clean", "transfer:each:fgsm"])
    assert [r.attack for r in alone.evaluation.results] == ["clean"]
    assert (
        "transfer:each:fgsm is left out: it needs other networks, type --evaluation.sources '[RUN, RUN]'" in caplog.text
    )


def test_diagnostics_of_two_networks(caplog: pytest.LogCaptureFixture) -> None:
    asked = ["adversarialness images=3", "reassignment images=3"]
    found = judged(diagnostics=asked, diagnostics_other="runs/other", load=load, name="mine")
    first, second = found.diagnostics
    assert isinstance(first, Adversarialness)
    assert list(first.accuracies) == ["mine", "other"]
    assert isinstance(second, Reassignment)
    with caplog.at_level(logging.WARNING):
        assert judged(diagnostics=asked).diagnostics == ()
    assert "reassignment images=3 is left out: it needs another network" in caplog.text
    with pytest.raises(ConfigError, match="runs/other is needed, and nobody said how it is loaded"):
        judged(diagnostics=asked, diagnostics_other="runs/other")


def test_what_does_not_fit_is_left_out_and_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {k: v for k, v in DIAGNOSTICS.items() if k in ("alignment", "state-ratio", "reassignment")}
    monkeypatch.setattr("layerwise.evaluation.judging.DIAGNOSTICS", small)
    with caplog.at_level(logging.WARNING):
        found = judged(diagnostics=["all", "alignment images=2"])
    assert [type(d).__name__ for d in found.diagnostics] == ["Alignment"]
    assert len(found.diagnostics[0].cosines) <= 2  # type: ignore[attr-defined]
    assert "state-ratio is left out, it does not fit this network: " in caplog.text
    assert "reassignment is left out: it needs another network" in caplog.text


def test_pictures_are_of_the_last_attack_in_the_threat_model(caplog: pytest.LogCaptureFixture) -> None:
    attacks = ["clean", "bim-2", "at:0.2:fgsm", "latent"]
    found = judged(attacks=attacks, num_pictures=1).examples
    assert found is not None
    assert found.attack == "bim-2"
    with caplog.at_level(logging.WARNING):
        assert judged(attacks=["clean", "latent"], num_pictures=1).examples is None
    assert "pictures are left out: no attack makes images within the threat model" in caplog.text


def test_a_long_plan_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with caplog.at_level(logging.INFO, logger="layerwise"):
        judged()
        assert not caplog.records
        monkeypatch.setattr("layerwise.evaluation.judging.LONG", 40)
        judged(rho_steps=[1])
    assert caplog.messages == ["2 attacks and 1 measures on 12 images, at most 132 passes of single images"]


@pytest.mark.parametrize("name", ["data", "versions", "a/b", "../evaluation"])
def test_names_that_are_taken(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"a record cannot be called '{name}'; type a name such as evaluation-quick"):
        judged(tmp_path, record=name)


def test_bars_move_and_end_on_a_board(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    data = from_tensors(X, Y, test=WRONG, validation=0, classes=list("abcde"), name="pictures")
    chosen = EvaluationSettings(attacks=["clean", "fgsm"], corruptions=["contrast"], rho_steps=[2])
    with_bars = judge(trained(torch.float32), data, chosen)
    assert with_bars.corruptions is not None
