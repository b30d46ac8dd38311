"""Captured steps, on the CPU: a recorder that replays kernels on fixed memory stands for CUDA's."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerwise.core.cost import Passes
from layerwise.core.criteria import CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.random import Bank, Stream
from layerwise.errors import ConfigError
from layerwise.methods import (
    ANP,
    AWP,
    FGSM,
    FGSMRS,
    LAT,
    PGD,
    SLAT,
    GradAlign,
    Losses,
    Method,
    Parseval,
    Standard,
)
from layerwise.training import Adam, Cosine, Phase, capture
from tests.methods.cases import METHODS, CheckpointedResNet, make
from tests.networks import TinyResNet
from tests.training.fakes import cheap, pictures, same, train, weights
from tests.training.graphs import Recorder

HOST = {
    "EAT": "draws numbers for the whole batch on the CPU",
    "Parseval": "draws numbers for the whole batch on the CPU",
    "ManifoldMixup": "draws numbers for the whole batch on the CPU",
    "NFM": "draws numbers for the whole batch on the CPU",
    "AdvTrainI": "reads values back",
    "DeepDefense": "differentiates gradients",
    "GradAlign": "differentiates gradients",
}
"""Methods whose steps the host decides, and how they are told."""


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(capture, "recorder_on", lambda device: made)
    return made


def both(
    method: Callable[[], Method], net: Callable[[], nn.Module] = TinyResNet, **options: Any
) -> tuple[Any, Any, dict[str, Tensor], dict[str, Tensor]]:
    """A run with recorded steps and one without: two epochs of three batches of 8 images and one of 4."""
    found: list[Any] = []
    phases = options.pop("phases", tuple)
    settings: dict[str, Any] = {"log_every": 3, **options}
    for captured in (True, False):
        model = net()
        result = train(model, method(), cheap(capture=captured, **settings), pictures(28), phases=phases())
        found.append((result, weights(model)))
    (a, ours), (b, theirs) = found
    return a, b, ours, theirs


@pytest.mark.parametrize("name", [name for name in METHODS if name not in HOST])
def test_replayed_steps_give_the_bits_of_eager_ones(name: str, recorder: Recorder) -> None:
    captured, eager, ours, theirs = both(lambda: make(name))
    # Batches 1 and 2 of the run, the first of the second epoch and the ragged ones are eager.
    assert (recorder.recorded, recorder.replayed) == (1, 3)
    assert not captured.messages
    assert same(ours, theirs)
    assert [{**line, "seconds": 0} for line in captured.history] == [{**line, "seconds": 0} for line in eager.history]


@pytest.mark.parametrize("name", HOST)
def test_what_the_host_decides_runs_eagerly_and_is_told_once(name: str, recorder: Recorder) -> None:
    captured, _, ours, theirs = both(lambda: make(name))
    assert recorder.recorded == 0
    assert same(ours, theirs)
    (message,) = [m for m in captured.messages if "not captured" in m]
    assert f"steps of {name} are not captured" in message
    assert HOST[name] in message


@pytest.mark.parametrize(
    "options",
    [
        {"ema_decay": 0.9, "clip_norm": 0.1, "eval_every": 1},
        {"accumulate": 2},
        {"optimizer": Adam(lr=0.01), "schedule": Cosine()},
        {"channels_last": True, "precision": "bf16-mixed"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_it_goes_with_the_settings(options: dict[str, Any], recorder: Recorder) -> None:
    captured, eager, ours, theirs = both(
        lambda: SLAT(sites=("conv1", "blocks.block1"), eta=0.1, base=FGSMRS(eps=0.1)),
        net=lambda: TinyResNet(channels=8),
        **options,
    )
    assert recorder.replayed == 3
    assert same(ours, theirs)
    if captured.average is not None:
        assert same(captured.average, eager.average)
    for key in ("loss", "accuracy", "lr"):
        assert captured.history[-1][key] == eager.history[-1][key]


@dataclass(kw_only=True)
class Counting(Method):
    """A method with a schedule of its own, in Python."""

    batches: int = 0

    def batch_losses(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
        self.batches += 1
        yield CrossEntropy()(model(x), y).mean() / self.batches

    @property
    def passes(self) -> Passes:
        return Passes()


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.dropout = TinyResNet(), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self.dropout(x))
        return out


def test_dropout_draws_the_same_numbers(recorder: Recorder) -> None:
    _, _, ours, theirs = both(lambda: FGSMRS(eps=0.1), Dropping)
    assert recorder.replayed == 3
    assert same(ours, theirs)


def test_a_phase_is_recorded_anew(recorder: Recorder) -> None:
    changes = lambda: (Phase(epochs=1), Phase(epochs=1, fields={"eps": 0.6}))  # noqa: E731
    _, _, ours, theirs = both(lambda: ANP(k=2, layers=2), phases=changes)
    assert (recorder.recorded, recorder.replayed) == (2, 3)
    assert same(ours, theirs)


def test_another_method_is_recorded_anew(recorder: Recorder) -> None:
    changes = lambda: (Phase(epochs=1, method=Standard()), Phase(epochs=1))  # noqa: E731
    _, _, ours, theirs = both(lambda: LAT(eps=2.0), phases=changes)
    assert (recorder.recorded, recorder.replayed) == (2, 3)
    assert same(ours, theirs)


def test_a_killed_run_goes_on_with_recorded_steps(recorder: Recorder, tmp_path: Path) -> None:
    def part(folder: str, *, capture: bool, resume: bool = False, **options: Any) -> dict[str, Tensor]:
        net = TinyResNet()
        settings = cheap(capture=capture, checkpoint_every=0.01, keep=99, **options)
        train(net, LAT(eps=2.0), settings, pictures(44), run=tmp_path / folder, resume=resume)
        return weights(net)

    whole = part("eager", capture=False)
    part("captured", capture=True)
    for path in sorted((tmp_path / "captured" / "checkpoints").iterdir())[3:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    assert same(part("captured", capture=True, resume=True), whole)
    assert recorder.recorded == 2


class Rolling(nn.Module):
    """Drops its branch as Python's dice say."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TinyResNet()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x if random.random() < 0.5 else 1 - x)
        return out


@pytest.mark.parametrize(
    ("method", "net", "why"),
    [
        (lambda: Counting(), TinyResNet, "a field of Counting changes"),
        (lambda: FGSM(eps=0.1), CheckpointedResNet, "activation checkpoints"),
        (lambda: FGSM(eps=0.1), Rolling, "random numbers of python"),
    ],
    ids=["counts", "checkpoints", "rolls"],
)
def test_what_python_decides_is_found_out(
    method: Callable[[], Method], net: Callable[[], nn.Module], why: str, recorder: Recorder
) -> None:
    captured, _, ours, theirs = both(method, net)
    assert recorder.recorded == 0
    assert same(ours, theirs)
    (message,) = captured.messages
    assert why in message


def test_a_base_that_differentiates_gradients_is_found_inside_another_method() -> None:
    inner = GradAlign(eps=0.1)
    assert Parseval(base=inner).second_order
    assert AWP(base=Parseval(base=inner)).second_order
    assert not AWP(base=PGD()).second_order


def test_without_a_cuda_device_it_is_refused_if_asked_for_and_left_out_otherwise() -> None:
    with pytest.raises(ConfigError, match=r"on cpu; type training\.capture=auto"):
        train(TinyResNet(), Standard(), cheap(capture=True))
    assert not train(TinyResNet(), Standard(), cheap(capture="auto", epochs=1)).messages


def test_a_bank_gives_each_draw_its_step_s_numbers() -> None:
    bank, cpu = Bank(), torch.device("cpu")
    for step in (3, 5):
        bank.seed(1, step)
        for key in ("start", "start", "radius"):
            ours = torch.rand(4, generator=Stream(1, step, bank=bank).generator(key, cpu))
            assert torch.equal(ours, torch.rand(4, generator=Stream(1, step).generator(key, cpu)))
    assert len(bank.generators) == 3
