"""Runs that `fit` made in Python: commands go on with those whose network and data have names, and say the call for all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import layerwise as lw
from layerwise.data import Augment
from layerwise.errors import ConfigError
from layerwise.methods import Method
from layerwise.training import FitResult
from tests.command import Command, layerwise, told

__all__ = ["layerwise"]  # a fixture


def small(**options: Any) -> lw.Training:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 64, "max_steps": 3, "eval_every": 0, "accelerator": "cpu"}
    return lw.Training(**(settings | options))


def fitted(method: Method, *, data: Any = None, width: int = 4, **options: Any) -> FitResult:
    digits = lw.load_data("digits")
    torch.manual_seed(0)
    net = lw.build_model("digits_cnn", shape=(1, 8, 8), mean=digits.mean, std=digits.std, width=width)
    return lw.fit(net, method, digits if data is None else data, run="runs/mine", progress=False, **options)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (lw.SLAT(eta={"input": 0.1, "conv1": 0.02}, sites=["conv1"]), {"training": small()}),
        (lw.AWP(base=lw.TRADES(attack=lw.PGD(steps=1))), {"training": small(), "threat": lw.ThreatModel(eps=0.1)}),
        (lw.FGSM(criterion=lw.CrossEntropy(label_smoothing=0.1)), {"training": small(augment=Augment())}),
        (
            lw.ANP(k=2, sites=["conv1"], layers=1),
            {"training": small(), "phases": [lw.Phase(epochs=1, fields={"k": 1}), lw.Phase(epochs=1)]},
        ),
        (lw.PGD(steps=1), {"training": small(), "phases": [lw.Phase(epochs=2, method=lw.FGSM(eps=0.1))]}),
    ],
    ids=["mapping", "nested", "criterion and augmentation", "phases", "another method"],
)
def test_commands_go_on_with_them(layerwise: Command, method: Method, options: dict[str, Any]) -> None:
    fitted(method, **options)
    shown = lw.load("runs/mine").state_dict()
    evaluating = ["--evaluation.attacks=clean", "--evaluation.num_examples=20", "--quiet"]
    assert layerwise("evaluate", "runs/mine", *evaluating, "--record=evaluation").code == 0
    assert layerwise("report", "runs/mine").code == 0
    again = layerwise("train", "--resume", "runs/mine", *evaluating)
    assert again.code == 0, again.err
    assert all(torch.equal(shown[name], value) for name, value in lw.load("runs/mine").state_dict().items())


def test_resumed_by_command_it_is_as_if_nothing_had_stopped_it(
    layerwise: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layerwise.training.session import Session

    fitted(lw.LAT(eps=0.1, sites=["conv1"]), training=small())
    whole = lw.load("runs/mine").state_dict()
    Path("runs/mine").rename("runs/whole")
    end = Session.end_batch

    def stop(session: Session, *args: Any) -> None:
        end(session, *args)
        session.interrupt.requested = "Ctrl-C" if session.step == 2 else None

    with monkeypatch.context() as patch:
        patch.setattr(Session, "end_batch", stop)
        with pytest.raises(KeyboardInterrupt):
            fitted(lw.LAT(eps=0.1, sites=["conv1"]), training=small())
    said = layerwise("train", "--resume", "runs/mine", "--evaluation.attacks=clean", "--quiet")
    assert said.code == 0, said.err
    assert all(torch.equal(whole[name], value) for name, value in lw.load("runs/mine").state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"data": (torch.rand(40, 1, 8, 8), torch.arange(40) % 10)},
            r"the network 'Sequential' and the data 'custom' ca",
        ),
        ({"data": lw.load_data("digits", seed=1)}, r"the data 'digits' cannot be made again by name"),
    ],
)
def test_of_all_others_the_call_is_said_and_it_works(layerwise: Command, change: dict[str, Any], message: str) -> None:
    fitted(lw.FGSM(eps=0.1), training=small(), **change)
    call = r"; type there layerwise.load\('runs/mine', model=network\), or layerwise.fit\(..., run='runs/mine', resume="
    for argv in (["evaluate", "runs/mine"], ["train", "--resume", "runs/mine"]):
        told(layerwise(*argv), rf"^error: runs/mine was trained in Python: .*{message}.*{call}")
    with pytest.raises(ConfigError, match=message):
        lw.load("runs/mine")
    net = lw.build_model("digits_cnn", shape=(1, 8, 8), mean=0.5, std=0.5, width=4)
    assert lw.load("runs/mine", model=net) is net
    assert not net.training


class Mine(lw.FGSM):
    """A method of one's own."""


def test_a_method_of_ones_own_is_said_too_and_a_mistake_in_what_is_typed_is_told_as_ever(layerwise: Command) -> None:
    fitted(Mine(eps=0.1), training=small())
    told(
        layerwise("evaluate", "runs/mine"),
        r"was trained in Python: .*names code of its own, 'tests.*:Mine'.*type there",
    )
    Path("runs/mine").rename("runs/own")
    fitted(lw.FGSM(eps=0.1), training=small())
    told(layerwise("evaluate", "runs/mine", "--evaluation.epz", "8"), r"^error: there is no setting '--evaluation.epz'")
