from __future__ import annotations

import errno
import json
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from layerwise.data import Augment
from layerwise.errors import CheckpointError, ConfigError
from layerwise.methods import ANP, FGSMRS, LAT, SLAT, Method, Standard
from layerwise.training import SGD, AdamW, FitResult, OneCycle, Phase, checkpoint, load_weights, read_config
from tests.networks import TinyConv, TinyMLP
from tests.training.fakes import Scripted, cheap, same, train, weights


class Noisy(nn.Module):
    """Dropout, and noise from NumPy's and Python's random states: all three have to come back."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.dropout = TinyConv(), nn.Dropout(0.2)
        self.after: Callable[[], None] = lambda: None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.after()
            x = x * (1 + 0.01 * random.gauss(0, 1)) + 0.01 * float(np.random.randn())
        out: Tensor = self.net(self.dropout(x))
        return out


class Stop(Exception):
    """Ends a run as a kill would: what is not on the disk is lost."""


METHODS: dict[str, Callable[[], Method]] = {
    "lat": lambda: LAT(eps=2.0),
    "anp": lambda: ANP(k=2, layers=3, noise_std=0.01),
    "slat": lambda: SLAT(sites=["net.conv1"], eta=0.02, base=FGSMRS(eps=0.02)),
}
SETTINGS = cheap(
    epochs=3,
    schedule=OneCycle(),
    ema_decay=0.9,
    clip_norm=1.0,
    augment=Augment(crop=1),
    eval_every=1,
    checkpoint_every=0.4,
    log_every=3,
)
PHASES = (Phase(epochs=1), Phase(epochs=2, fields={"eps": 1.0}))


def history(result: FitResult) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in result.history]


def lines(run: Path) -> list[dict[str, Any]]:
    timed = ("seconds", "images_per_second")
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timed} for line in read]


@pytest.mark.parametrize("name", METHODS)
def test_a_run_killed_three_times_is_the_uninterrupted_one_bit_by_bit(tmp_path: Path, name: str) -> None:
    phases = () if name == "slat" else PHASES
    passes = [0, 10**9]

    def count() -> None:
        passes[0] += 1
        if passes[0] > passes[1]:
            raise Stop

    whole = Noisy()
    whole.after = count
    one = train(whole, METHODS[name](), SETTINGS, run=tmp_path / "whole", phases=phases)
    everything = passes[0]
    for share in (0.12, 0.5, 0.3):  # before the first checkpoint, and twice within an epoch
        passes[:] = [0, int(share * everything)]
        broken = Noisy()
        broken.after = count
        with pytest.raises(Stop):
            train(broken, METHODS[name](), SETTINGS, run=tmp_path / "broken", phases=phases, resume=True)
    assert checkpoint.found(tmp_path / "broken" / "checkpoints")
    again = Noisy()
    two = train(again, METHODS[name](), SETTINGS, run=tmp_path / "broken", phases=phases, resume=True)
    assert same(weights(whole), weights(again))
    assert one.average is not None
    assert two.average is not None
    assert same(one.average, two.average)
    assert history(one) == history(two)
    assert lines(tmp_path / "whole") == lines(tmp_path / "broken")
    for file in ("best.safetensors", "best-ema.safetensors", "model.safetensors", "ema.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "broken" / file).read_bytes()


@pytest.fixture
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that is heard as in a terminal, also where the tests run under nohup."""
    found: signal.Signals = request.param
    before = signal.signal(found, signal.default_int_handler if found == signal.SIGINT else signal.SIG_DFL)
    yield found
    signal.signal(found, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], indirect=True)
def test_ctrl_c_saves_within_an_epoch_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    settings = cheap(checkpoint_every=10, optimizer=AdamW(lr=0.01))
    whole, net = TinyMLP(), TinyMLP()
    train(whole, Scripted(), settings)

    def interrupt(model: nn.Module, call: int) -> None:
        if call == 2:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    method = Scripted(hook=interrupt)
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "the end of the terminal"}[number]
    message = rf"stopped by {name} after batch 3 of 10 and saved; go on with: layerwise train --resume .*run$"
    config = {"training": "the same"}
    with pytest.raises(KeyboardInterrupt, match=message):
        train(net, method, settings, run=tmp_path / "run", config=config)
    assert signal.getsignal(number) is before
    assert [p.name for p in checkpoint.found(tmp_path / "run" / "checkpoints")] == ["step-00000003"]
    again, method = TinyMLP(), Scripted()
    result = train(again, method, settings, run=tmp_path / "run", resume=True, config=config)
    assert result.steps == 10
    assert method.calls == 10
    assert same(weights(whole), weights(again))


def test_nohup_means_it(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        method = Scripted(hook=lambda model, call: signal.raise_signal(signal.SIGHUP) if call == 2 else None)
        assert train(TinyMLP(), method, cheap(), run=tmp_path / "run").steps == 10
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_lines_of_metrics_that_a_power_failure_took_are_told(tmp_path: Path) -> None:
    net = TinyMLP()
    settings = cheap(checkpoint_every=0.2, log_every=1)
    train(net, Standard(), settings, run=tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    there = file.read_bytes()
    file.write_bytes(there[:-10])
    again = train(TinyMLP(), Standard(), settings, run=tmp_path / "run", resume=True)
    message = rf"metrics\.jsonl has {len(there) - 10} of the {len(there)} bytes that the checkpoint remembers"
    assert any(re.match(message, said) for said in again.messages)
    lines(tmp_path / "run")  # half a line would be no JSON


def test_the_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def interrupt(model: nn.Module, call: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="stopped at once"):
        train(TinyMLP(), Scripted(hook=interrupt), cheap(), run=tmp_path / "run")
    assert not checkpoint.found(tmp_path / "run" / "checkpoints")


def test_ctrl_c_without_a_folder_says_that_nothing_is_saved() -> None:
    method = Scripted(hook=lambda model, call: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="nothing is saved, since the run has no folder"):
        train(TinyMLP(), method, cheap())


def test_ctrl_c_in_the_last_evaluation_is_not_swallowed(tmp_path: Path) -> None:
    method = Scripted(hook=lambda model, call: signal.raise_signal(signal.SIGINT) if call == 9 else None)
    with pytest.raises(KeyboardInterrupt, match="after the last batch; the training is complete"):
        train(TinyMLP(), method, cheap(eval_every=1), run=tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = train(TinyMLP(), Standard(), cheap(eval_every=1), run=tmp_path / "run")
    net = TinyMLP(seed=5)
    again = train(net, Standard(), cheap(eval_every=1), run=tmp_path / "run", resume=True)
    assert history(again) == history(first)
    assert again.best == first.best
    loaded = TinyMLP(seed=6)
    load_weights(loaded, tmp_path / "run")
    assert same(weights(net), weights(loaded))


def test_what_a_kill_left_of_the_last_rotation_is_removed(tmp_path: Path) -> None:
    train(TinyMLP(), Standard(), cheap(max_steps=1), run=tmp_path / "run")
    left = tmp_path / "run" / "checkpoints" / ".step-00000000.writing"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    train(TinyMLP(), Standard(), cheap(max_steps=1), run=tmp_path / "run", resume=True)
    assert [path.name for path in left.parent.iterdir()] == ["step-00000001"]


def test_resume_begins_a_run_that_never_saved(tmp_path: Path) -> None:
    nets = [TinyMLP(), TinyMLP()]
    train(nets[0], Standard(), cheap(), run=tmp_path / "a")
    result = train(nets[1], Standard(), cheap(), run=tmp_path / "b", resume=True)
    assert result.steps == 10
    assert same(weights(nets[0]), weights(nets[1]))


def test_a_folder_that_is_taken_is_refused(tmp_path: Path) -> None:
    train(TinyMLP(), Standard(), cheap(max_steps=1), run=tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"already holds a run; type --resume .*run to go on with it"):
        train(TinyMLP(), Standard(), cheap(max_steps=1), run=tmp_path / "run")


def test_resume_with_other_settings_is_refused_with_the_difference(tmp_path: Path) -> None:
    train(TinyMLP(), LAT(eps=3.0), cheap(), run=tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"method.eps: 3.0 before, 4.0 now; training.optimizer.lr: 0.05 before, 0.1 now"
    ):
        train(TinyMLP(), LAT(eps=4.0), cheap(optimizer=SGD(lr=0.1)), run=tmp_path / "run", resume=True)


def test_resume_with_other_workers_and_lines_of_metrics_is_fine(tmp_path: Path) -> None:
    train(TinyMLP(), Standard(), cheap(), run=tmp_path / "run")
    again = train(TinyMLP(), Standard(), cheap(log_every=7, keep=5), run=tmp_path / "run", resume=True)
    assert again.steps == 10
    assert read_config(tmp_path / "run")["training"]["log_every"] == 2


def test_a_damaged_checkpoint_costs_no_more_than_the_way_from_the_one_before(tmp_path: Path) -> None:
    whole, net = TinyMLP(), TinyMLP()
    settings = cheap(checkpoint_every=0.2, keep=3)
    train(whole, Standard(), settings)
    train(net, Standard(), settings, run=tmp_path / "run")
    newest = checkpoint.found(tmp_path / "run" / "checkpoints")[-1]
    (newest / "state.safetensors").write_bytes(b"nothing")
    again = TinyMLP(seed=9)
    result = train(again, Standard(), settings, run=tmp_path / "run", resume=True)
    assert any(
        "state.safetensors has 7 of" in said and "going on with the one before" in said for said in result.messages
    )
    assert same(weights(whole), weights(again))


def test_where_all_checkpoints_are_damaged_the_sentence_says_how_to_begin_anew(tmp_path: Path) -> None:
    whole, settings, folder = TinyMLP(), cheap(checkpoint_every=0.2, keep=2), tmp_path / "run" / "checkpoints"
    train(whole, Standard(), settings)
    train(TinyMLP(), Standard(), settings, run=tmp_path / "run")
    for path in checkpoint.found(folder):
        (path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(
        CheckpointError, match=f"all 2 checkpoints .*; delete {folder}, and resuming begins the run anew"
    ):
        train(TinyMLP(), Standard(), settings, run=tmp_path / "run", resume=True)
    shutil.rmtree(folder)
    again = TinyMLP()
    train(again, Standard(), settings, run=tmp_path / "run", resume=True)
    assert same(weights(whole), weights(again))


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    config = {"the": "same"}
    train(TinyMLP(), Standard(), cheap(), run=tmp_path / "run", config=config)
    with pytest.raises(CheckpointError, match=r"belongs to another network: it lacks 'conv1.weight' \(and"):
        train(TinyConv(), Standard(), cheap(), run=tmp_path / "run", config=config, resume=True)


def test_a_full_disk_stops_the_run_with_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, net, settings = TinyMLP(), TinyMLP(), cheap(checkpoint_every=0.2)
    train(whole, Standard(), settings)
    write, count = checkpoint.write_file, [0]

    def full(path: Path, data: bytes) -> None:
        count[0] += 1
        if count[0] > 15:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_file", full)
        with pytest.raises(
            CheckpointError, match="the last good one is step-00000003: No space left on device; free space and resume"
        ):
            train(net, Standard(), settings, run=tmp_path / "run")
    again = TinyMLP(seed=3)
    train(again, Standard(), settings, run=tmp_path / "run", resume=True)
    assert same(weights(whole), weights(again))


def test_resume_needs_a_folder() -> None:
    with pytest.raises(ConfigError, match="resume=True needs the folder of the run"):
        train(TinyMLP(), Standard(), cheap(), resume=True)
