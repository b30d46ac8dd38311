from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from layerwise.core.sites import Sites
from layerwise.methods import LAT, SLAT, Standard
from layerwise.training import SGD, DivergedError, load_weights
from layerwise.training.metrics import SEVERAL, MetricsFile, Totals, finite
from layerwise.training.monitor import OverfitMonitor, lost_noise, measured
from tests.networks import TinyConv, TinyMLP, batch
from tests.training.fakes import Scripted, apart, cheap, train, weights


def flags(curve: list[float]) -> list[int]:
    monitor = OverfitMonitor()
    return [epoch for epoch, robust in enumerate(curve) if monitor.update(epoch, robust)]


@pytest.mark.parametrize(
    ("curve", "wanted"),
    [
        ([0.3, 0.4, 0.45, 0.02, 0.0, 0.0], [3]),
        ([0.3, 0.4, 0.45, 0.44, 0.43, 0.4], []),
        ([0.3, 0.4, 0.01, 0.41, 0.42, 0.0], [2, 5]),
        ([0.02, 0.0, 0.03, 0.0], []),
        ([0.45, 0.40, 0.35, 0.28, 0.24, 0.20], [5]),
    ],
)
def test_a_collapse_is_told_once(curve: list[float], wanted: list[int]) -> None:
    assert flags(curve) == wanted


def test_a_network_that_guesses_is_not_accused() -> None:
    monitor = OverfitMonitor(chance=0.5)
    accuracies = [(0.5, 0.5), (0.54, 0.5), (0.7, 0.1), (0.8, 0.4), (0.5, 0.0), (0.8, 0.1)]
    told = [monitor.update(epoch, robust, clean=clean) for epoch, (clean, robust) in enumerate(accuracies)]
    # Only the last is a collapse: guessing loses nothing, and is none.
    assert [sentence is not None for sentence in told] == [False, False, False, False, False, True]


@pytest.mark.parametrize("clean", [0.2, 0.9])
def test_the_training_knows_what_guessing_gives(monkeypatch: pytest.MonkeyPatch, clean: float) -> None:
    from layerwise.training import epochs

    curve = iter([0.2, 0.0])
    monkeypatch.setattr(
        epochs, "score", lambda *args, **kwargs: {"clean": clean, "robust": next(curve), "examples": 100}
    )
    flags = train(TinyMLP(), Standard(), cheap(epochs=2, eval_every=1)).flags
    assert flags == (["catastrophic-overfitting"] if clean == 0.9 else [])


@given(st.lists(st.floats(0, 1), min_size=1))
def test_nothing_is_told_while_robustness_grows(curve: list[float]) -> None:
    assert flags(sorted(curve)) == []


def test_the_collapse_is_flagged_in_the_history(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from layerwise.training import epochs

    curve = iter([0.4, 0.5, 0.01])
    monkeypatch.setattr(epochs, "score", lambda *args, **kwargs: {"clean": 0.9, "robust": next(curve), "examples": 100})
    result = train(TinyMLP(), Standard(), cheap(epochs=3, eval_every=1), run=tmp_path / "run")
    assert result.flags == ["catastrophic-overfitting"]
    assert [h["flags"] for h in result.history] == [[], [], ["catastrophic-overfitting"]]
    assert "robust accuracy fell to 1.0% in epoch 3, from 50.0% at best" in result.messages[0]
    assert result.best is not None
    assert (result.best["epoch"], result.best["robust"]) == (2, 0.5)


def test_of_equally_good_epochs_the_first_is_the_best(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A later one would be preferred for nothing that was measured, and the best weights would be written anew each epoch."""
    from layerwise.training import epochs

    curve = iter([0.4, 0.5, 0.5, 0.5])
    monkeypatch.setattr(epochs, "score", lambda *args, **kwargs: {"clean": 0.9, "robust": next(curve), "examples": 100})
    result = train(TinyMLP(), Standard(), cheap(epochs=4, eval_every=1), run=tmp_path / "run")
    assert result.best is not None
    assert result.best["epoch"] == 2
    after_two, best = TinyMLP(), TinyMLP()
    train(after_two, Standard(), cheap(epochs=2))
    load_weights(best, tmp_path / "run", "best")
    assert apart(weights(best), weights(after_two)) == 0


def test_perturbations_are_measured_once_an_epoch(tmp_path: Path) -> None:
    eta = 0.03
    train(TinyConv(), SLAT(sites=["conv1", "bn2"], eta=eta), cheap(), run=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    sites = [line for line in lines if line["kind"] == "sites"]
    assert [line["step"] for line in sites] == [1, 2, 6]
    for line in sites:
        assert line["sites"].keys() == {"conv1", "bn2"}
        for sizes in line["sites"].values():
            assert sizes["max"] == pytest.approx(eta, rel=1e-4)
            assert 0 < sizes["rms"] <= eta * 1.0001
            assert sizes["survival"] == pytest.approx(1, abs=1e-3)


def test_the_first_noise_of_lat_is_measured_too(tmp_path: Path) -> None:
    train(TinyConv(), LAT(), cheap(epochs=1), run=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "sites"] == [2]


def test_measuring_stops_after_the_step() -> None:
    net = TinyMLP()
    sites = Sites(net, ["fc1"], example=batch(2, dtype=torch.float32)[0])
    with measured([sites]) as sizes:
        assert sites.monitor is sizes
    assert sites.monitor is None
    with measured([sites], wanted=False) as sizes:
        assert sites.monitor is None
    assert sizes == {}


def test_noise_that_rounding_swallows_is_told() -> None:
    said = lost_noise({"a": {"survival": 0.95}, "b": {"survival": 0.5}, "c": {"rms": 1.0}, "d": {"survival": math.nan}})
    assert said is not None
    assert "at 'b' (50 %)" in said
    assert lost_noise({"a": {"survival": 0.95}}) is None


class Overflowing(nn.Module):
    """Three layers; `broken` says what goes wrong and where, after the check of the first batch and so many passes."""

    def __init__(self, broken: str, *, after: int = 4) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(192, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.middle = Middle(broken, 1 + after)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.middle(self.second(torch.relu(self.first(x.flatten(1))))))
        return out


class Middle(nn.Module):
    """Passes on its input until it has been called so often in training."""

    def __init__(self, broken: str, after: int) -> None:
        super().__init__()
        self.broken, self.after = broken, after

    def forward(self, h: Tensor) -> Tensor:
        self.after -= self.training
        if self.after >= 0 or not self.training:
            return h
        if self.broken == "forward":
            return h / torch.zeros_like(h)
        # Finite, but its derivative at 0 is not.
        return h + (h - h.detach()).abs().sqrt() if self.broken == "backward" else h


def test_a_loss_that_is_not_finite_stops_with_the_layer_that_went_first() -> None:
    message = (
        r"the loss is not finite at batch 5 of epoch 1: layer 'middle' \(Middle\) was the first to give values that "
        r"are not finite; lower the learning rate \(peak 0.05\)"
    )
    with pytest.raises(DivergedError, match=message):
        train(Overflowing("forward"), Standard(), cheap(log_every=1000))


def test_a_gradient_that_is_not_finite_is_named_by_the_weights_it_spoilt() -> None:
    message = r"at batch 1 of epoch 2: '(first|second)\.(weight|bias)' already holds values that are not finite, so the gradient"
    with pytest.raises(DivergedError, match=message):
        train(Overflowing("backward"), Standard(), cheap())


def test_noise_that_is_not_finite_is_named_by_its_site() -> None:
    class Exploding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(144, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.conv1(x).flatten(1))
            return out

    method = LAT(sites=["conv1"], eps=math.inf, relative=False)
    with pytest.raises(DivergedError, match=r"at batch 2 of epoch 1: the perturbation at site 'conv1' was the first"):
        train(Exploding(), method, cheap())


def test_a_loss_that_overflows_by_itself_is_told() -> None:
    with pytest.raises(DivergedError, match="the loss itself was the first, not a layer of the network"):
        train(TinyMLP(), Scripted(scale=math.inf), cheap())


def test_images_that_are_not_finite_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from layerwise.training.session import Session

    original = Session.images

    def spoilt(self: Session, start: int | None = None):  # type: ignore[no-untyped-def]
        for x, y in original(self, start):
            yield x * math.nan, y

    monkeypatch.setattr(Session, "images", spoilt)
    with pytest.raises(DivergedError, match="the images hold values that are not finite"):
        train(TinyMLP(), Standard(), cheap())


def test_where_looking_costs_time_the_steps_after_a_bad_loss_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from layerwise.training.fit import Loop

    monkeypatch.setattr(Loop, "sees", False)  # as on a GPU
    net, good = Overflowing("forward", after=3), Overflowing("none")
    good.load_state_dict(net.state_dict())
    with pytest.raises(DivergedError, match=r"at batch 4 of epoch 1: layer 'middle'"):
        train(net, Standard(), cheap(log_every=5, optimizer=SGD(lr=0.01)))
    train(good, Standard(), cheap(max_steps=3, optimizer=SGD(lr=0.01)))
    for ours, wanted in zip(net.parameters(), good.parameters(), strict=True):
        assert torch.equal(ours, wanted)


def test_a_bad_loss_that_is_found_late_is_not_put_down_to_the_noise_it_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from layerwise.training.fit import Loop

    monkeypatch.setattr(Loop, "sees", False)
    method = LAT(sites=["first"], eps=0.01, relative=False)
    with pytest.raises(DivergedError, match=r"at batch 3 of epoch 1: layer 'middle'"):
        # Six passes go to the canary and to finding the sites.
        train(Overflowing("forward", after=6 + 2), method, cheap(log_every=5, optimizer=SGD(lr=0.01)))


def test_a_run_that_diverged_keeps_its_last_checkpoint(tmp_path: Path) -> None:
    from layerwise.training import checkpoint

    with pytest.raises(DivergedError):
        train(Overflowing("forward", after=7), Standard(), cheap(), run=tmp_path / "run")
    contents, _ = checkpoint.load_latest(tmp_path / "run" / "checkpoints")
    assert contents is not None
    assert contents.step == 5
    assert all(v.isfinite().all() for v in contents.weights.values())


def test_totals_count_what_is_finite() -> None:
    totals = Totals(torch.device("cpu"))
    logits, y = torch.eye(4), torch.tensor([0, 1, 2, 0])
    for loss in (1.0, 2.0, math.nan, 4.0):
        totals.add(torch.tensor(loss), logits[2:], y[2:], later=loss > 2)
        totals.end_batch()
    assert bool(totals.bad())
    loss, correct, rows, good = totals.read()
    assert math.isnan(loss)
    assert (correct, rows, good) == (4, 8, 2)
    assert not totals.bad()
    totals.add(torch.tensor(3.0), logits, y)
    totals.add(torch.tensor(1.0), None, y)
    totals.end_batch()
    assert totals.read() == (16.0, 3, 8, 1)


def test_answers_that_are_counted_later_are_the_same() -> None:
    at_once, later = Totals(torch.device("cpu")), Totals(torch.device("cpu"))
    stream = torch.Generator().manual_seed(0)
    for size in [*range(1, 2 * SEVERAL), 7]:
        logits, y = torch.randn(size, 3, generator=stream), torch.randint(0, 3, (size,), generator=stream)
        at_once.add(logits.sum(), logits, y)
        later.add(logits.sum(), logits, y, later=True)
        if size == 5:
            kept = later.state_dict()
            assert all(
                torch.equal(torch.as_tensor(v), torch.as_tensor(kept[k])) for k, v in at_once.state_dict().items()
            )
    assert at_once.read() == later.read()


def test_metrics_that_are_not_finite_are_valid_json(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "m.jsonl")
    file.write({"kind": "train", "step": 1, "loss": math.inf, "grad_norm": math.nan})
    size = file.size
    file.write({"kind": "train", "step": 2})
    file.truncate(size)
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {
        "kind": "train",
        "step": 1,
        "loss": "inf",
        "grad_norm": "nan",
    }
    assert finite([1, (2.0,)]) == [1, [2.0]]


def test_tensorboard_gets_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    train(TinyMLP(), Standard(), cheap(epochs=1, tensorboard=True), run=run)
    shutil.rmtree(run / "checkpoints")  # from the beginning again: what was told before is taken back
    train(TinyMLP(), Standard(), cheap(epochs=1, tensorboard=True), run=run, resume=True)
    assert len(list((run / "tensorboard").glob("events.out.*"))) == 2
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = {(line["step"], line["loss"]) for line in lines if line["kind"] == "train"}
    told = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert told == [(step, pytest.approx(loss)) for step, loss in sorted(expected)]
    assert set(board.Tags()["scalars"]) >= {"train/grad_norm", "epoch/accuracy"}


def test_the_bar_shows_only_where_it_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    from layerwise.training import fit
    from tests.training.fakes import pictures

    for progress, shown in ((False, False), (True, False), ("force", True)):
        fit(TinyMLP(), Standard(), pictures(), training=cheap(eval_every=1), progress=progress)  # type: ignore[arg-type]
        captured = capsys.readouterr()
        assert captured.out == ""
        assert ("10/10" in captured.err and "images per second" in captured.err and "robust" in captured.err) is shown


def test_a_log_file_gets_a_sentence_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layerwise.training import fit, metrics
    from tests.training.fakes import pictures

    sentence = r"batch \d+ of 10, about \d+(?:\.\d)? s left, epoch [12]/2, loss \d\.\d+, training accuracy "
    for pause, progress, count in ((0.0, True, range(10, 21)), (0.0, False, [0]), (3600.0, True, [0])):
        caplog.clear()
        monkeypatch.setattr(metrics, "PAUSE", pause)
        with caplog.at_level("INFO", logger="layerwise"):
            fit(TinyMLP(), Standard(), pictures(), training=cheap(log_every=1), progress=progress)
        assert len(re.findall(sentence, caplog.text)) in count
