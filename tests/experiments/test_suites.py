"""Suites: every one can be set, says what it holds, and holds what its paper's tables print."""

from __future__ import annotations

import json
from typing import Any

import pytest

from layerwise.attacks import At, ThreatModel, Transfer, parse_attack
from layerwise.errors import ConfigError
from layerwise.evaluation.corruptions.names import chosen_corruptions, chosen_sequences
from layerwise.evaluation.measure import parse_measure
from layerwise.evaluation.settings import EvaluationSettings
from layerwise.experiments.settings import read
from layerwise.experiments.suites import SUITES, find_suite


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_can_be_set(name: str) -> None:
    suite = SUITES[name]
    dotted = {k if "." in k else f"evaluation.{k}": v for k, v in suite.settings.items()}
    tokens = [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in dotted.items()]
    experiment, _ = read("slat-digits", tokens)
    settings = experiment.evaluation
    assert isinstance(settings, EvaluationSettings)
    assert settings.attacks == suite.settings["attacks"]
    assert all(str(parse_attack(text)) == text for text in settings.attacks)
    assert settings.measures == suite.settings.get("measures", [])
    assert all(str(parse_measure(text)) == text for text in settings.measures)
    for attack in settings.attacks:
        assert attack in suite.contents()


def test_an_unknown_suite_is_told_with_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"suite 'paper-lda' is unknown; did you mean .*'paper-lad' .*list suites"):
        find_suite("paper-lda")


def radii(paper: str, kind: str) -> set[float]:
    """The radii at which a suite makes one kind of attack."""
    settings = SUITES[paper].settings
    own = ThreatModel("linf", read("slat-digits", [f"--threat.eps={settings['threat.eps']}"])[0].threat.eps).eps
    attacks: list[Any] = [parse_attack(a) for a in settings["attacks"]]
    found = [(a.attack, a.eps) if isinstance(a, At) else (a, own) for a in attacks]
    return {eps for a, eps in found if (a.attack if isinstance(a, Transfer) else a).name == kind}


def test_the_radii_are_the_papers() -> None:
    assert radii("paper-lad", "fgsm") == radii("paper-lad", "bim") == {8 / 255, 12 / 255}
    assert radii("paper-lat", "fgsm") == {0.02, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2}
    assert radii("paper-anp", "fgsm") == {8 / 255, 16 / 255}
    assert radii("paper-anp-mnist", "fgsm") == {0.1, 0.2, 0.3}
    assert radii("paper-slat", "pgd") == {8 / 255}


def test_names_of_corruptions() -> None:
    assert len(chosen_corruptions(["common"])) == 15
    assert len(chosen_corruptions(["all"])) == 19
    assert chosen_corruptions(["fog", "common"])[0] == "fog"
    assert len(chosen_corruptions(["fog", "common"])) == 15
    assert chosen_corruptions([]) == []
    assert len(chosen_sequences(["common"])) == 10
    assert len(chosen_sequences(["all"])) == 14
    with pytest.raises(ConfigError, match=r"corruption 'foggy' is unknown; did you mean 'fog'"):
        chosen_corruptions(["foggy"])
    with pytest.raises(ConfigError, match=r"sequence 'fog' is unknown"):
        chosen_sequences(["fog"])


def test_quick_and_standard_keep_the_runs_own_radius() -> None:
    for name in ("quick", "standard", "paper-deep-defense"):
        assert not {"eps", "norm"} & SUITES[name].settings.keys()
