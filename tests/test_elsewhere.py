"""Everything on a device that is not the CPU: `tests.elsewhere` minds it as a GPU would."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerwise.attacks import APGDCE, APGDT, Square, ThreatModel
from layerwise.cli import main as cli
from layerwise.core.cost import Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.registry import names
from layerwise.evaluation import evaluate
from layerwise.evaluation.measure import parse_measure
from layerwise.methods import Losses, Method
from layerwise.training import SGD, Adam, Cosine, FitResult, capture, optim
from tests.elsewhere import ELSEWHERE, Held, Place, elsewhere, training_there
from tests.evaluation.measures.test_by_name import small, target
from tests.evaluation.problems import trained
from tests.methods.cases import METHODS, make
from tests.networks import TinyResNet, batch
from tests.training.fakes import apart, cheap, pictures, same, train, weights
from tests.training.graphs import Recorder

HOST = ("Parseval", "AdvTrainI", "DeepDefense")
"""Methods that wait in every batch: one draws its rows on the host, two ask which images are fooled."""
IMAGES = batch(30, seed=3, dtype=torch.float32)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with training_there(monkeypatch) as opened:
        yield opened


def run(method: Method, *, images: int = 28, channels: int = 4, **options: Any) -> tuple[FitResult, dict[str, Tensor]]:
    """What a run gave, and its weights on the CPU."""
    net = TinyResNet(channels=channels)
    # "auto" means other things elsewhere.
    result = train(net, method, cheap(**{"channels_last": False, **options}), pictures(images))
    return result, {k: v.cpu() for k, v in weights(net).items()}


def there(monkeypatch: pytest.MonkeyPatch, method: Method, **options: Any) -> tuple[FitResult, dict[str, Tensor]]:
    """The same, elsewhere."""
    with training_there(monkeypatch):
        return run(method, **options)


def test_the_place_minds_what_a_gpu_minds(place: Place) -> None:
    x = torch.ones(2, 3, device=ELSEWHERE)
    assert isinstance(x, Held)
    assert (x + 1).device == (x + torch.zeros(())).device == ELSEWHERE
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match="same device"):
        x.index_select(0, torch.tensor([0]))
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    assert not place.waits
    assert x.sum().item() == 6
    assert bool(x.cpu().eq(1).all())
    torch.zeros(3).to(ELSEWHERE)
    x[x > 1]
    assert place.waits == {"aten._local_scalar_dense": 1, "aten._to_copy": 2, "aten.index": 1}


@dataclass(kw_only=True)
class Planted(Method):
    """Does what a GPU suffers from."""

    reads: bool = False
    mixes: bool = False
    criterion: Criterion = field(default_factory=CrossEntropy)

    def batch_losses(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
        loss = self.criterion.mean(model(x + torch.zeros(x.shape) if self.mixes else x), y)
        yield loss * 1.0 if self.reads and loss.item() > 100 else loss

    @property
    def passes(self) -> Passes:
        return Passes()


def waits(place: Place, method: str | Planted, images: int) -> Counter[str]:
    place.waits.clear()
    run(make(method) if isinstance(method, str) else method, images=images, log_every=1000)
    return place.waits.copy()


def test_planted_mistakes_are_found(place: Place) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        run(Planted(mixes=True))
    more = waits(place, Planted(reads=True), 20) - waits(place, Planted(reads=True), 12)
    assert more == {"aten._local_scalar_dense": 2}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_there_to_the_bits_of_the_cpu_and_no_batch_makes_the_host_wait(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, expected = run(make(name), images=20, log_every=1000)
    with training_there(monkeypatch) as place:
        found, ours = run(make(name), images=20, log_every=1000)  # 6 batches
        more = place.waits.copy() - waits(place, name, 12)  # 4 batches
    assert same(ours, expected)
    assert [{**line, "seconds": 0} for line in found.history] == [{**line, "seconds": 0} for line in here.history]
    assert bool(more) == (name in HOST), more


@pytest.mark.parametrize(
    "options",
    [
        {"ema_decay": 0.9, "clip_norm": 0.1, "eval_every": 1},
        {"accumulate": 2},
        # Rates that float32 has too: on other devices than the CPU they are of that type.
        {"optimizer": Adam(lr=2**-6)},
        {"precision": "64-true", "optimizer": SGD(lr=2**-4)},
        {"schedule": Cosine(), "channels_last": True},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("captured", [False, True])
def test_so_it_does_with_the_settings(options: dict[str, Any], captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(make("SLAT"), channels=8, **options)
    recorder = Recorder()
    monkeypatch.setattr(capture, "recorder_on", lambda device: recorder)
    found = there(monkeypatch, make("SLAT"), channels=8, **options, log_every=3, capture=captured)
    assert recorder.replayed == 3 * captured
    assert not found[0].messages
    assert same(found[1], expected[1])


def test_an_optimiser_without_fused_kernels_works_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = optim.FUSED
    with training_there(monkeypatch), monkeypatch.context() as patched:
        patched.setattr(optim, "FUSED", fused)
        _, ours = run(make("FGSM"))
    assert apart(ours, run(make("FGSM"))[1]) < 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_attack_counts_the_same_there(norm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threat = ThreatModel(norm, 0.1 if norm == "linf" else 1.0)
    plain = ["clean", "fgsm", "bim-5", "pgd-5-3", "mi-fgsm-5", "step-ll", "deepfool-5", "latent", "eot-2:pgd-5"]
    attacks: list[Any] = [*plain, "at:0.2:fgsm", APGDCE(steps=20), APGDT(steps=10), Square(queries=20)]
    expected = evaluate(trained(), IMAGES, threat=threat, attacks=attacks, progress=False)
    with elsewhere(monkeypatch):
        found = evaluate(trained().to(ELSEWHERE), IMAGES, threat=threat, attacks=attacks, progress=False)
    assert found.accuracies == expected.accuracies
    assert found.findings == expected.findings
    assert len(set(found.accuracies.values())) > 4


@pytest.mark.parametrize("name", [name for name in names("measure") if name not in ("decision-boundary", "eps-ref")])
def test_every_measure_sees_the_same_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = parse_measure(small(name))
    with target() as on:
        expected = measure(on).to_dict()
    with elsewhere(monkeypatch):
        others = {"other": TinyResNet(seed=1).to(ELSEWHERE)}
        with target(TinyResNet().to(ELSEWHERE), others=others) as on:
            found = measure(on).to_dict()
    assert rounded(found) == rounded(expected)


def rounded(value: Any) -> Any:
    """Without the last bits, which a matrix's layout decides."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def test_the_commands_work_there(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "slat-digits", "--training.max_steps", "4", "--name", "a", "--quiet"]) == 0
    copies = sum(place.waits.values())
    assert copies > 100
    assert cli.main(["evaluate", "runs/a", "--suite", "quick", "--num-examples", "8"]) == 0
    assert cli.main(["report", "runs/a"]) == 0
    assert sum(place.waits.values()) > copies
