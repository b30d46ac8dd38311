"""Files are whole or not there."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from layerwise.errors import CheckpointError
from layerwise.evaluation.store import Store
from layerwise.experiments.tune.trials import TRIALS, Trial, add_trial, read_trials
from layerwise.files import LOCK, append, atomic, held, open_in_place, own_folder
from layerwise.training import checkpoint
from layerwise.training.metrics import MetricsFile
from layerwise.training.run import Run


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "new" / "record.json"
    for text in ("first", "second"):
        with atomic(target) as partial:
            partial.write_text(text)
            assert not target.exists() or target.read_text() == "first"
        assert target.read_text() == text
    assert [p.name for p in target.parent.iterdir()] == ["record.json"]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "record.json"
    target.write_text("old")

    def write() -> None:
        with atomic(target) as partial:
            partial.write_text("half")
            raise ValueError("interrupted")

    with pytest.raises(ValueError, match="interrupted"):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]
    assert target.read_text() == "old"


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write() -> None:
        with atomic(tmp_path / "record.json") as partial:
            partial.write_text("new")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_nobody_can_guess_where_a_file_is_made(tmp_path: Path) -> None:
    names = set()
    for _ in range(4):
        with atomic(tmp_path / "record.json") as partial:
            names.add(partial.name)
            partial.write_text("new")
    assert len(names) == 4


MODES: tuple[Literal["ab", "a+b", "r+b"], ...] = ("ab", "a+b", "r+b")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("there", ["file", "nothing", "pipe", "folder"])
def test_a_link_and_a_special_file_are_not_written_in_place(
    tmp_path: Path, mode: Literal["ab", "a+b", "r+b"], there: str
) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    if there == "file":
        outside.write_bytes(b"mine")
    if there == "pipe":
        os.mkfifo(outside)
    if there == "folder":
        outside.mkdir()
    inside.symlink_to(outside)
    with pytest.raises(
        CheckpointError, match=rf"{inside} is a link to {outside}, and has to be a plain file: remove it"
    ):
        open_in_place(inside, mode)
    assert there == "nothing" or outside.exists()
    assert there != "nothing" or not outside.exists()
    assert there != "file" or outside.read_bytes() == b"mine"


@pytest.mark.parametrize("mode", MODES)
def test_a_named_pipe_does_not_hang(tmp_path: Path, mode: Literal["ab", "a+b", "r+b"]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is something else, and has to be a plain file"):
        open_in_place(tmp_path / "pipe", mode)


def _hold(folder: Path) -> None:
    with held(folder):
        pass


def _append(folder: Path) -> None:
    append(folder / "file", b"x", sync=True)


def _cut(folder: Path) -> None:
    MetricsFile(folder / "metrics.jsonl").truncate(1)


def _log(folder: Path) -> None:
    MetricsFile(folder / "metrics.jsonl").write({"kind": "end"})


def _keep(folder: Path) -> None:
    with Store(folder / "evaluation.journal").open():
        pass


def _try(folder: Path) -> None:
    add_trial(
        Store(folder / TRIALS), Trial(trial=0, rung=0, epochs=1, settings={}, state="failed", seconds=0.0, run="a")
    )


def _go_on(folder: Path) -> None:
    read_trials(Store(folder / TRIALS))


IN_PLACE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "lock": (LOCK, _hold),
    "metrics, appended": ("metrics.jsonl", _log),
    "metrics, cut": ("metrics.jsonl", _cut),
    "append": ("file", _append),
    "store": ("evaluation.journal", _keep),
    "lock of a file": (f".evaluation.journal{LOCK}", _keep),
    "trials": (TRIALS, _try),
    "trials, cut": (TRIALS, _go_on),
}
"""What is written in place in a folder that may come from a stranger."""


def test_a_link_that_comes_between_the_look_and_the_opening_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outside := tmp_path / "outside").write_text("mine")
    (tmp_path / "log").symlink_to(outside)
    looks = iter([False])
    monkeypatch.setattr(Path, "is_symlink", lambda self: next(looks, True))
    with pytest.raises(CheckpointError, match="is a link to"):
        open_in_place(tmp_path / "log", "ab")


@pytest.mark.parametrize("what", IN_PLACE)
def test_a_link_in_a_strangers_folder_changes_nothing_outside(tmp_path: Path, what: str) -> None:
    name, act = IN_PLACE[what]
    secret, folder = tmp_path / "secret", tmp_path / "run"
    secret.write_bytes(b"mine, and half a line")
    folder.mkdir()
    (folder / name).symlink_to(secret)
    with pytest.raises(CheckpointError, match="is a link to"):
        act(folder)
    assert secret.read_bytes() == b"mine, and half a line"


def test_event_files_do_not_follow_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/tensorboard").symlink_to(tmp_path / "elsewhere")
    metrics = MetricsFile(tmp_path / "run/metrics.jsonl", tensorboard=tmp_path / "run/tensorboard")
    with pytest.raises(CheckpointError, match="is a link to"):
        metrics.write({"kind": "train", "step": 1, "loss": 0.5})
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_checkpoints_of_another_run_are_neither_cleared_nor_written_through_a_link(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / ".step-00000001.writing").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").symlink_to(other)
    with pytest.raises(CheckpointError, match=r"is a link to .*, and has to be a folder"):
        Run(tmp_path / "run").begin({"seed": 0})
    with pytest.raises(CheckpointError, match="is a link to"):
        checkpoint.save(tmp_path / "run/checkpoints", step=1, weights={}, state={}, own={})
    assert [path.name for path in other.iterdir()] == [".step-00000001.writing"]


def test_a_folder_of_a_run_is_no_link_and_no_file(tmp_path: Path) -> None:
    assert own_folder(tmp_path / "measures").is_dir()
    assert own_folder(tmp_path / "measures").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is something else, and has to be a folder"):
        own_folder(tmp_path / "file")


def test_one_process_takes_a_lock_once_and_it_is_free_afterwards(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "a.jsonl"):
        message = f"{path} is in use by this process; wait until that ends or stop it, or type another --name"
        with (
            held(path),
            pytest.raises(CheckpointError, match=re.escape(message)),
            held(path, instead="type another --name"),
        ):
            pass
        with held(path):
            pass
    assert list(tmp_path.iterdir()) == []
