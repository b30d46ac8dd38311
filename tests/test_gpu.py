"""What a GPU has to show: on a CUDA device if this machine has one, else rehearsed on that of `tests.elsewhere` with the CPU's recorder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

import layerwise.core.random
from layerwise.attacks import ThreatModel
from layerwise.evaluation import evaluate
from layerwise.experiments.bench.stepping import Setup, somewhere, training
from layerwise.methods import ANP, FGSMRS, SLAT, Method
from layerwise.training import Adam, Cosine, FitResult, Phase, capture
from tests.elsewhere import ELSEWHERE, training_there
from tests.evaluation.problems import trained
from tests.methods.cases import METHODS, make
from tests.networks import TinyResNet, batch
from tests.training.fakes import apart, cheap, pictures, train, weights
from tests.training.graphs import Recorder
from tests.training.test_capture import HOST, Dropping

REAL = torch.cuda.is_available()

NO_DRAWS = ("Standard", "FGSM", "SLAT", "ANP", "LAT", "DeepDefense")
"""Methods that draw no numbers on the device, whose generator is another one than the CPU's."""


T = TypeVar("T")


def rehearsed(every: Iterable[T], *some: T) -> list[T]:
    """What a rehearsal goes through: what it could find is found by `test_capture` and `test_elsewhere`, for every method."""
    return list(every) if REAL else list(some)


@dataclass
class Gpu:
    """Where to train, and how many steps were replayed there."""

    device: torch.device
    accelerator: str
    replayed: int = 0

    def run(
        self, method: Method, net: Callable[[], nn.Module] = TinyResNet, **options: Any
    ) -> tuple[FitResult, dict[str, Tensor]]:
        """What two epochs gave, three batches of 8 images and one of 4, and the weights on the CPU."""
        model, phases = net(), options.pop("phases", ())
        settings = cheap(accelerator=self.accelerator, **{"log_every": 3, **options})
        result = train(model, method, settings, pictures(28), phases=phases)
        return result, {k: v.cpu() for k, v in weights(model).items()}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    found = Gpu(torch.device("cuda"), "cuda") if REAL else Gpu(ELSEWHERE, "cpu")
    replay = capture.Captured._replay

    def counted(self: Any, *arguments: Any) -> None:
        found.replayed += 1
        replay(self, *arguments)

    monkeypatch.setattr(capture.Captured, "_replay", counted)
    if REAL:
        # The same kernels in the same order each time: what differs then is the recording's doing.
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
        yield found
        return
    monkeypatch.setattr(capture, "recorder_on", lambda device: Recorder())
    with training_there(monkeypatch):
        yield found


def replays_as_it_runs(gpu: Gpu, method: Callable[[], Method], limit: float = 1e-6, **options: Any) -> None:
    """Recorded steps end in the weights of eager ones."""
    eager, expected = gpu.run(method(), capture=False, **options)
    assert gpu.replayed == 0
    captured, ours = gpu.run(method(), capture=True, **options)
    assert gpu.replayed == 3
    assert not captured.messages
    assert apart(ours, expected) <= (limit if REAL else 0)
    assert captured.history[-1]["loss"] == pytest.approx(eager.history[-1]["loss"], rel=1e-6 if limit < 1e-3 else 0.05)


@pytest.mark.parametrize("name", rehearsed((name for name in METHODS if name not in HOST), "FreeAT", "LAT", "ANP"))
def test_recorded_steps_are_eager_ones(name: str, gpu: Gpu) -> None:
    replays_as_it_runs(gpu, lambda: make(name))


SETTINGS: list[dict[str, Any]] = [
    {"ema_decay": 0.9, "clip_norm": 0.1, "eval_every": 1},
    {"accumulate": 2},
    {"optimizer": Adam(lr=0.01), "schedule": Cosine()},
    {"channels_last": True},
    {"precision": "64-true"},
]


@pytest.mark.parametrize("options", rehearsed(SETTINGS, SETTINGS[0]), ids=lambda options: next(iter(options)))
def test_so_they_are_with_the_settings(options: dict[str, Any], gpu: Gpu) -> None:
    def method() -> Method:
        return SLAT(sites=("conv1", "blocks.block1"), eta=0.1, base=FGSMRS(eps=0.1))

    replays_as_it_runs(gpu, method, net=lambda: TinyResNet(channels=8), **options)


def test_in_low_precision_they_are_so_but_for_rounding(gpu: Gpu) -> None:
    replays_as_it_runs(gpu, lambda: SLAT(sites=("conv1",), eta=0.1), limit=0.1, precision="bf16-mixed")


def test_dropout_draws_the_same_numbers(gpu: Gpu) -> None:
    replays_as_it_runs(gpu, lambda: FGSMRS(eps=0.1), net=Dropping)


def test_a_phase_is_recorded_anew(gpu: Gpu) -> None:
    phases = (Phase(epochs=1), Phase(epochs=1, fields={"eps": 0.6}))
    replays_as_it_runs(gpu, lambda: ANP(k=2, layers=2), phases=phases)


@pytest.mark.parametrize("name", rehearsed(HOST, "GradAlign"))
def test_what_the_host_decides_runs_eagerly(name: str, gpu: Gpu) -> None:
    result, _ = gpu.run(make(name), capture=True)
    assert gpu.replayed == 0
    assert any(HOST[name] in message for message in result.messages)


@pytest.mark.parametrize("name", rehearsed(NO_DRAWS, "SLAT"))
def test_training_gives_the_weights_of_the_cpu(name: str, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(layerwise.core.random, "_draw")
    # Double precision: a sign that rounding turns would be a different perturbation.
    _, ours = gpu.run(make(name), precision="64-true")
    net = TinyResNet()
    train(net, make(name), cheap(precision="64-true", log_every=3), pictures(28))
    assert apart(ours, {k: v.cpu() for k, v in weights(net).items()}) < 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_count_what_they_count_on_the_cpu(norm: Any, gpu: Gpu) -> None:
    threat = ThreatModel(norm, 0.1 if norm == "linf" else 1.0)
    attacks, images = ["clean", "fgsm", "bim-5", "mi-fgsm-5", "step-ll", "deepfool-5"], batch(60, seed=3)
    expected = evaluate(trained(), images, threat=threat, attacks=attacks, progress=False)
    found = evaluate(trained().to(gpu.device), images, threat=threat, attacks=attacks, progress=False)
    assert found.accuracies == expected.accuracies


if REAL:  # what only CUDA has

    def test_no_batch_waits_for_the_device(gpu: Gpu) -> None:
        small = {"model": "digits_cnn", "options": {"width": 4}, "shape": (1, 8, 8), "batch": 6}
        for name in ("Standard", "PGD", "TRADES", "SLAT", "LAT", "ANP:k=2"):
            with ExitStack() as stack:
                setup = Setup(**small, training=training(accelerator="cuda", batch_size=6, clip_norm=1.0))  # type: ignore[arg-type]
                contestant = stack.enter_context(somewhere(name, setup))
                torch.cuda.set_sync_debug_mode("error")
                stack.callback(torch.cuda.set_sync_debug_mode, "default")
                contestant.run()

    def test_a_recorded_step_takes_about_the_memory_of_an_eager_one(gpu: Gpu) -> None:
        peaks = []
        for captured in (False, True):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            settings = training(accelerator="cuda", capture=captured)
            setup = Setup(model="preact_resnet18", options={}, shape=(3, 32, 32), training=settings)
            with somewhere("SLAT", setup) as contestant:
                for _ in range(3):
                    contestant.run()
                assert contestant.captured == captured
            peaks.append(torch.cuda.max_memory_reserved())
        assert peaks[1] < 1.5 * peaks[0]
