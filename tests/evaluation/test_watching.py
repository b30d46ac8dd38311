"""Measures while a network is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from layerwise.core.threat import ThreatModel
from layerwise.data import ImageData, from_tensors
from layerwise.errors import ConfigError
from layerwise.evaluation import rho
from layerwise.evaluation.settings import EvaluationSettings
from layerwise.evaluation.watching import watcher
from tests.networks import TinyConv, batch

X, Y = batch(24, dtype=torch.float32)


def data(validation: float = 0.4) -> ImageData:
    return from_tensors(X, Y, validation=validation)


def settings(*trace: str) -> EvaluationSettings:
    return EvaluationSettings(trace=list(trace))


def test_the_numbers_are_those_of_the_measures_on_the_validation_images() -> None:
    net, found = TinyConv().train(), watcher(settings("rho", "alignment images=8"), data(), threat=ThreatModel(eps=0.1))
    assert found is not None
    numbers = found(net)
    held = replace(data(), test=data().validation)
    assert numbers["rho.value"] == pytest.approx(rho(net, held).value)
    assert -1 <= numbers["alignment.mean"] <= 1
    assert numbers["alignment.eps"] == pytest.approx(0.1)
    assert net.training


def test_nothing_is_watched_unless_it_is_asked_for() -> None:
    assert watcher(settings(), data(0), threat=ThreatModel()) is None


def test_without_validation_images_there_is_nothing_to_watch_on() -> None:
    with pytest.raises(
        ConfigError, match=r"looks at validation images, and there are none; type --data.validation 1000"
    ):
        watcher(settings("rho"), data(0), threat=ThreatModel())


def test_a_measure_that_does_not_exist_is_told_before_the_training() -> None:
    with pytest.raises(ConfigError, match="alignmen"):
        settings("alignmen")
