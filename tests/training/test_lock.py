from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from layerwise import files
from layerwise.errors import CheckpointError
from layerwise.files import LOCK, held
from layerwise.methods import Standard
from layerwise.training import checkpoint
from layerwise.training.run import Run, nothing_half_made
from tests.forks import forks, started
from tests.networks import TinyMLP
from tests.torture.child import holds
from tests.training.fakes import Scripted, cheap, train

CONFIG = {"the": "same"}


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """Another process that trains in the folder `run`."""
    ready = forks().Event()
    process = started(holds, str(tmp_path / "run"), ready)
    while not ready.wait(0.1):
        assert process.is_alive()
    yield process
    process.kill()
    process.join()


def test_two_processes_do_not_write_one_run_and_a_kill_frees_it(tmp_path: Path, holder: Any) -> None:
    folder = tmp_path / "run"
    message = rf"run is in use by process {holder.pid} on \S+; wait until that ends or stop it, or choose another name"
    with pytest.raises(CheckpointError, match=message):
        train(TinyMLP(), Standard(), cheap(), run=folder, resume=True, config=CONFIG)
    assert (folder / "config.yaml").is_file()
    # A failure here must not remove what the other one has just begun.
    with pytest.raises(ZeroDivisionError), nothing_half_made(folder):
        raise ZeroDivisionError
    assert (folder / "config.yaml").is_file()
    holder.kill()
    holder.join()
    assert train(TinyMLP(), Standard(), cheap(max_steps=1), run=folder, resume=True, config=CONFIG).steps == 1


def test_a_run_that_failed_early_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with nothing_half_made(tmp_path / "run"):
            Run(tmp_path / "run").begin(CONFIG)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not (tmp_path / "run").exists()


def test_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".model.safetensors.77.part", ".config.yaml.77.part", ".evaluation.json.77.part"):
        (folder / name).write_text("half")
    run = Run(folder)
    run.begin(CONFIG)
    run.release()
    names = sorted(p.name for p in folder.iterdir())
    assert names == [".evaluation.json.77.part", "config.yaml", "versions.json"]


def test_the_lock_is_free_after_an_error_and_after_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.begin(CONFIG)
    run.release()
    with pytest.raises(ZeroDivisionError), held(tmp_path / "run"):
        raise ZeroDivisionError
    with held(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_lock_whose_file_was_removed_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the one who had it ends between our opening and our locking."""
    plain, calls = files._lock, [0]

    def removed(file: Any) -> None:
        plain(file)
        calls[0] += 1
        if calls[0] == 1:
            (tmp_path / LOCK).unlink()

    monkeypatch.setattr(files, "_lock", removed)
    with held(tmp_path):
        assert calls[0] == 2
        assert (tmp_path / LOCK).exists()


def test_a_folder_that_is_moved_away_stops_the_run_and_does_not_come_back(tmp_path: Path) -> None:
    def moved(model: object, call: int) -> None:
        if call == 6:
            (tmp_path / "run").rename(tmp_path / "elsewhere")

    whole, net, settings = TinyMLP(), TinyMLP(), cheap(log_every=3, checkpoint_every=0.2)
    train(whole, Scripted(), settings)
    with pytest.raises(CheckpointError, match="the folder of the run was moved or removed: put it back and resume"):
        train(net, Scripted(hook=moved), settings, run=tmp_path / "run", config=CONFIG)
    assert not (tmp_path / "run").exists()
    assert checkpoint.found(tmp_path / "elsewhere" / "checkpoints")
    train(net, Scripted(), settings, run=tmp_path / "elsewhere", resume=True, config=CONFIG)
    assert all((a == b).all() for a, b in zip(whole.parameters(), net.parameters(), strict=True))


def test_a_folder_that_is_removed_stops_the_run(tmp_path: Path) -> None:
    def removed(model: object, call: int) -> None:
        if call == 5:
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(CheckpointError, match="was moved or removed"):
        train(TinyMLP(), Scripted(hook=removed), cheap(log_every=100), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
