"""The diagnostics by name: what each looks at, and how it is written."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from layerwise.attacks.gradient import FGSMAttack
from layerwise.core.random import Stream
from layerwise.core.threat import ThreatModel
from layerwise.errors import ConfigError
from layerwise.evaluation.measures import (
    DIAGNOSTICS,
    Adversarialness,
    BoundaryDistance,
    Diagnostic,
    FeatureClouds,
    InputGradients,
    Landscape,
    NoiseInsensitivity,
    RadiusCurve,
    Subject,
    boundary_distance,
    parse_diagnostic,
    representation_insensitivity,
)
from layerwise.evaluation.measures.base import examining
from layerwise.evaluation.measures.registry import NOISES
from tests.evaluation.measures.cases import OnPairs
from tests.networks import TinyResNet, batch

X, Y = batch(12, dtype=torch.float32)
SUBJECT = Subject(TinyResNet(), X, Y, ThreatModel("linf", 0.1), others={"other": TinyResNet(seed=1)})
SMALL = {"images": 6, "points": 3, "directions": 2, "copies": 1, "steps": 1, "top": 3}


def small(name: str) -> str:
    return " ".join([name, *(f"{k}={v}" for k, v in SMALL.items() if k in DIAGNOSTICS[name].sizes)])


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_every_diagnostic_looks_at_one_network(name: str) -> None:
    subject = SUBJECT
    if name == "decision-boundary":
        subject = replace(SUBJECT, model=OnPairs(TinyResNet()), x=X[:, :2, 0, 0])
    plan = parse_diagnostic(small(name))
    found = plan(subject)
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.dumps(Diagnostic.from_dict(json.loads(text)).to_dict()) == text
    assert json.dumps(plan(subject).to_dict()) == text
    assert parse_diagnostic(str(plan)) == plan
    assert set(str(plan).split()) == set(small(name).split())
    assert str(parse_diagnostic(name)) == name
    assert plan.passes > 0
    assert len(plan.look.summary) > 10


def test_sizes_reach_the_diagnostic() -> None:
    found = parse_diagnostic("boundary-distance images=3 directions=2")(SUBJECT)
    assert isinstance(found, BoundaryDistance)
    assert found == boundary_distance(SUBJECT.model, X[:3], Y[:3], directions=2)
    landscape = parse_diagnostic("landscape images=2 points=3")(SUBJECT)
    assert isinstance(landscape, Landscape)
    assert (landscape.adversarial, landscape.images, landscape.eps) == ((-1.0, 0.0, 1.0), 2, 0.1)
    pictures = parse_diagnostic("input-gradients images=2")(SUBJECT)
    assert isinstance(pictures, InputGradients)
    torch.testing.assert_close(pictures.images, X[:2].double(), atol=5.1e-5, rtol=0)
    noise = parse_diagnostic("noise-insensitivity images=4 copies=3 noise=gaussian")(SUBJECT)
    assert isinstance(noise, NoiseInsensitivity)
    assert (noise.images, noise.copies) == (4, 3)


def test_the_radius_of_an_l2_ball_is_spread_over_the_pixels() -> None:
    subject = replace(SUBJECT, threat=ThreatModel("l2", 1.5))
    assert subject.eps == pytest.approx(1.5 / (3 * 8 * 8) ** 0.5)
    curve = parse_diagnostic("radius-curve images=2 steps=1")(subject)
    assert isinstance(curve, RadiusCurve)
    assert (curve.radii[-1], curve.unit) == (6.0, "l2, pixels in [0, 1]")
    wide = parse_diagnostic("radius-curve images=2 steps=1")(replace(SUBJECT, threat=ThreatModel("linf", 0.6)))
    assert isinstance(wide, RadiusCurve)
    assert max(wide.radii) <= 1


def test_representations_are_compared_under_the_noise_that_was_named() -> None:
    found = parse_diagnostic("representation-insensitivity images=5")(SUBJECT)
    with examining(SUBJECT.model, X) as network:
        polluted = FGSMAttack()(network, X[:5], Y[:5], SUBJECT.threat)
    assert found == representation_insensitivity(SUBJECT.model, X[:5], polluted)


def test_classes_limit_the_clouds() -> None:
    found = parse_diagnostic("features images=8 classes=2")(replace(SUBJECT, x=X.repeat(4, 1, 1, 1), y=Y.repeat(4)))
    assert isinstance(found, FeatureClouds)
    assert set(found.labels) == set(sorted(set(Y.tolist()))[:2])
    assert len(found.labels) == 8


def test_networks_are_judged_on_each_others_images() -> None:
    found = parse_diagnostic("adversarialness images=4")(SUBJECT)
    assert isinstance(found, Adversarialness)
    assert list(found.accuracies) == ["network", "other"]


@pytest.mark.parametrize("name", NOISES)
def test_noise_keeps_to_its_radius_and_belongs_to_the_images(name: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    made = NOISES[name](net, X, Y, 0.07, Stream(3, total=12))
    assert 0.5 * 0.07 < (made - X).abs().max() <= 0.07 + 1e-6
    assert ((made >= 0) & (made <= 1)).all()
    rest = NOISES[name](net, X[5:], Y[5:], 0.07, Stream(3, start=5, total=12))
    torch.testing.assert_close(rest, made[5:])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("landscap", r"diagnostic 'landscap' is unknown; did you mean 'landscape'\? \(`layerwise list diagnostics`\)"),
        ("", "diagnostic '' is unknown"),
        ("landscape points", "diagnostic 'landscape points': landscape has no 'points'"),
        ("landscape copies=3", "landscape has no 'copies'; "),
        ("landscape points=three", "points=three has to be a whole number"),
        ("landscape images=0", "images=0"),
        ("noise-insensitivity noise=shoot", "noise=shoot is unknown; did you mean 'shot'"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_diagnostic(text)
