"""The measures by name: what each looks at, and how it is written."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from layerwise.attacks.gradient import FGSMAttack
from layerwise.core import registry
from layerwise.core.random import Stream
from layerwise.core.registry import entries, find, names
from layerwise.core.threat import ThreatModel
from layerwise.errors import ConfigError
from layerwise.evaluation import evaluate
from layerwise.evaluation.conditions import evaluating
from layerwise.evaluation.measure import Target, choose_measures, parse_measure, result_of, usual_sizes
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.measures import (
    Adversarialness,
    BoundaryDistance,
    FeatureClouds,
    InputGradients,
    Landscape,
    NoiseInsensitivity,
    RadiusCurve,
    boundary_distance,
    representation_insensitivity,
)
from layerwise.evaluation.measures.base import NOISES, NoiseName, examining
from layerwise.evaluation.record import Evaluation
from layerwise.experiments import experiment
from tests.evaluation.measures.cases import OnPairs
from tests.evaluation.problems import trained
from tests.networks import TinyResNet, batch

X, Y = batch(12, dtype=torch.float32)
LINF = ThreatModel("linf", 0.1)
SMALL: dict[str, Any] = {"images": 6, "points": 3, "directions": 2, "copies": 1, "steps": 1, "top": 3}
WORDS = {"corruptions": " contrast", "sequences": " rotate"}


def small(name: str) -> str:
    sizes = inspect.signature(find("measure", name).thing).parameters
    return " ".join([name + WORDS.get(name, ""), *(f"{k}={v}" for k, v in SMALL.items() if k in sizes)])


@contextmanager
def target(
    model: nn.Module | None = None, x: Tensor = X, y: Tensor = Y, threat: ThreatModel = LINF, **more: Any
) -> Iterator[Target]:
    with evaluating(model or TinyResNet(), (x, y)) as conditions:
        others = {"other": TinyResNet(seed=1)}
        yield Target(conditions, threat, attacks=(FGSMAttack(),), **{"others": others, **more})


@pytest.mark.parametrize("name", names("measure"))
def test_every_measure_looks_at_one_network(name: str) -> None:
    flat = name == "decision-boundary"
    model: nn.Module = OnPairs(TinyResNet()) if flat else TinyResNet()
    x = X[:, :2, :1, :1] if flat else X
    if name == "eps-ref":  # half of the labels have to be what the network says, and an attack has to move it
        model = trained(torch.float32)
    measure = parse_measure(small(name))
    with target(model, x) as on:
        found, again = measure(on), measure(on)
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.dumps(Measurement.from_dict(json.loads(text)).to_dict()) == text
    assert json.dumps(again.to_dict()) == text
    assert isinstance(found, measure.result)
    assert parse_measure(str(measure)) == measure
    assert set(str(measure).split()) == set(small(name).split())
    assert str(parse_measure(name)) == name
    assert measure.passes(12, 5) > 0
    said = found.sentence()
    assert said.endswith(".")
    assert "nan" not in said
    if found.drawn:
        assert found.figure().alt.endswith(".")  # type: ignore[attr-defined]
    else:
        with pytest.raises(TypeError, match="has no figure"):
            found.figure()


@pytest.mark.parametrize("name", names("measure"))
def test_every_measure_says_what_lists_and_reports_need(name: str) -> None:
    entry = find("measure", name)
    assert len(entry.summary) > 10
    kind = result_of(entry)
    assert kind.title
    assert kind.caption or not kind.drawn
    assert usual_sizes(entry) or name == "eps-ref"
    assert kind.__module__.startswith("layerwise.evaluation.")


def test_a_file_makes_a_measure() -> None:
    """Each is named in its own file only, but for those whose functions are public."""
    assert {entry.thing.__module__.rpartition(".")[2] for entry in entries("measure").values()} <= {
        path.stem for path in (Path(inspect.getfile(Measurement)).parent / "measures").glob("*.py")
    }


def test_sizes_reach_the_measure() -> None:
    with target() as on:
        x, y = on.images(3)
        found = parse_measure("boundary-distance images=3 directions=2")(on)
        landscape = parse_measure("landscape images=2 points=3")(on)
        pictures = parse_measure("input-gradients images=2")(on)
        noise = parse_measure("noise-insensitivity images=4 copies=3 noise=gaussian")(on)
    assert isinstance(found, BoundaryDistance)
    assert found == boundary_distance(TinyResNet(), x, y, directions=2)
    assert isinstance(landscape, Landscape)
    assert (landscape.adversarial, landscape.images, landscape.eps) == ((-1.0, 0.0, 1.0), 2, 0.1)
    assert isinstance(pictures, InputGradients)
    torch.testing.assert_close(pictures.images, x[:2].double(), atol=5.1e-5, rtol=0)
    assert isinstance(noise, NoiseInsensitivity)
    assert (noise.images, noise.copies) == (4, 3)


def test_more_images_than_the_evaluation_counts_are_there() -> None:
    with evaluating(TinyResNet(), (X, Y), num_examples=4) as conditions:
        x, _ = Target(conditions).images(10)
        assert len(x) == 10
        assert torch.equal(x[:4], conditions.batches.example(4)[0])


def test_the_radius_of_an_l2_ball_is_spread_over_the_pixels() -> None:
    with target(threat=ThreatModel("l2", 1.5)) as on:
        assert on.eps == pytest.approx(1.5 / (3 * 8 * 8) ** 0.5)
        curve = parse_measure("radius-curve images=2 steps=1")(on)
    assert isinstance(curve, RadiusCurve)
    assert (curve.radii[-1], curve.unit) == (6.0, "l2, pixels in [0, 1]")
    with target(threat=ThreatModel("linf", 0.6)) as on:
        wide = parse_measure("radius-curve images=2 steps=1")(on)
    assert isinstance(wide, RadiusCurve)
    assert max(wide.radii) <= 1


def test_representations_are_compared_under_the_noise_that_was_named() -> None:
    with target() as on:
        x, y = on.images(5)
        found = parse_measure("representation-insensitivity images=5")(on)
    with examining(TinyResNet(), x) as network:
        polluted = FGSMAttack()(network, x, y, LINF)
    assert found == representation_insensitivity(TinyResNet(), x, polluted)


def test_classes_limit_the_clouds() -> None:
    with target(x=X.repeat(4, 1, 1, 1), y=Y.repeat(4)) as on:
        found = parse_measure("features images=8 classes=2")(on)
    assert isinstance(found, FeatureClouds)
    assert set(found.labels) == set(sorted(set(Y.tolist()))[:2])
    assert len(found.labels) == 8


def test_networks_are_evaluated_on_each_others_images() -> None:
    with target() as on:
        found = parse_measure("adversarialness images=4")(on)
    assert isinstance(found, Adversarialness)
    assert list(found.accuracies) == ["network", "other"]


@pytest.mark.parametrize("name", NOISES)
def test_noise_keeps_to_its_radius_and_belongs_to_the_images(name: NoiseName) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    made = NOISES[name](net, X, Y, 0.07, Stream(3, total=12))
    assert 0.5 * 0.07 < (made - X).abs().max() <= 0.07 + 1e-6
    assert ((made >= 0) & (made <= 1)).all()
    rest = NOISES[name](net, X[5:], Y[5:], 0.07, Stream(3, start=5, total=12))
    torch.testing.assert_close(rest, made[5:])


def test_every_noise_has_a_name() -> None:
    assert set(NOISES) == set(get_args(NoiseName))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("landscap", r"there is no measure 'landscap'; did you mean 'landscape'\?"),
        ("", "there is no measure ''"),
        ("landscape points", "measure 'landscape points': landscape has no 'points'; did you mean 'points'"),
        ("landscape copies=3", "landscape has no 'copies'; "),
        ("landscape points=three", "points=three does not fit; type a whole number"),
        ("landscape images=0", "images=0"),
        (
            "noise-insensitivity noise=shoot",
            "noise=shoot does not fit; type one of uniform, gaussian, shot, fgsm, step-ll",
        ),
        ("corruptions fogg", "corruption 'fogg' is unknown; did you mean 'fog'"),
        ("sequences common tild", "sequence 'tild' is unknown"),
        ("rho steps=0", "steps=0 is too small"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_measure(text)


def test_all_stands_for_every_other_measure() -> None:
    chosen = choose_measures(["all", "alignment images=2"], other=False)
    assert str(chosen[0]) == "alignment images=2"
    two = {name for name, entry in entries("measure").items() if entry.facts.get("other")}
    assert {m.entry.name for m in chosen} == set(names("measure")) - two
    assert two == {"adversarialness", "reassignment"}
    assert {m.entry.name for m in choose_measures(["all"], other=True)} == set(names("measure"))
    with pytest.raises(ConfigError, match="measure 'alignment' is given 2 times; give it once"):
        choose_measures(["alignment", "alignment"])


OWN = """
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from layerwise.evaluation import Measurement, Target


@dataclass(frozen=True)
class Margin(Measurement):
    title: ClassVar[str] = "Margin"
    caption: ClassVar[str] = "Larger is better."
    drawn: ClassVar[bool] = False

    mean: float
    images: int

    def sentence(self) -> str:
        return f"the margin is {self.mean:.3f} over {self.images} images."

    def cells(self) -> dict[str, str]:
        return {"margin": f"{self.mean:.3f}"}


def margin(target: Target, *, images: int = 5) -> Margin:
    "Gap between the two largest logits."
    model, x, _ = target.first(images)
    best = model(x).topk(2, dim=1).values
    return Margin((best[:, 0] - best[:, 1]).mean().item(), len(x))


def nothing(target: Target):
    return None
"""


@pytest.fixture
def their_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_measures.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(registry._ENTRIES, "measure", {e.name: e for e in entries("measure").values()})


@pytest.mark.usefixtures("their_measures")
def test_a_measure_of_the_users_own_is_evaluated_recorded_and_read() -> None:
    text = "their_measures:margin images=3"
    record = evaluate(TinyResNet(), (X, Y), attacks=["clean"], measures=[text, "alignment images=2"], progress=False)
    assert [m.measure for m in record.measures] == [text, "alignment images=2"]
    found = record.measures[0].found
    assert found.total == 3
    assert f"Margin: {found.sentence()}" in record.to_markdown()
    again = Evaluation.from_json(record.to_json(), trust=True)
    assert again.measures[0].found == found
    assert again.to_json() == record.to_json()


@pytest.mark.usefixtures("their_measures")
def test_what_gives_no_measurement_is_refused() -> None:
    with pytest.raises(ConfigError, match="the measure 'their_measures:nothing' does not say what it gives"):
        parse_measure("their_measures:nothing", trust=True)


def test_a_measure_of_somebody_elses_is_shown_as_it_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code is not imported; what it says is known all the same."""
    (tmp_path / "whose_measures.py").write_text("raise AssertionError")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="names code of its own, 'whose_measures:margin', which would be executed"):
        parse_measure("whose_measures:margin")
    record = evaluate(TinyResNet(), (X, Y), attacks=["clean"], progress=False)
    value = {
        "measure": "whose_measures:margin",
        "says": "3 is the margin.",
        "found": {"kind": "whose_measures:M", "mean": 3},
    }
    body = {**json.loads(record.to_json()), "measures": [value]}
    again = Evaluation.from_json(json.dumps(body))
    assert again.measures[0].found.sentence() == "3 is the margin."
    assert json.loads(again.to_json()) == body


@pytest.mark.usefixtures("their_measures")
def test_a_recipe_names_a_measure_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("method: {name: Standard}\nevaluation:\n  measures: ['their_measures:margin images=3']\n")
    chosen, tree = experiment.read(str(file), [], trust=True)
    assert chosen.evaluation.measures == ["their_measures:margin images=3"] == tree["evaluation"]["measures"]
    found = evaluate(TinyResNet(), (X, Y), attacks=["clean"], measures=chosen.evaluation.measures, progress=False)
    assert type(found.measures[0].found).__module__ == "their_measures"
