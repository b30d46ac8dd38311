from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerwise.errors import CheckpointError
from layerwise.training import checkpoint, nested
from layerwise.training.randomness import random_states, set_random_states
from tests.torture.outcome import differing

CPU = torch.device("cpu")


def store(folder: Path, step: int, **options: Any) -> Path:
    weights = {"w": torch.arange(6.0).reshape(2, 3).t() + step, "tied": torch.ones(2), "n": torch.tensor(step)}
    weights["tied2"] = weights["tied"]
    state = {"epoch": step, "history": [{"loss": 0.5, "split": None}]}
    return checkpoint.save(
        folder, step=step, weights=weights, state=state, own={"random": random_states(CPU)}, **options
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store(tmp_path, 3, average={"w": torch.zeros(1)})
    contents, said = checkpoint.load_latest(tmp_path)
    assert contents is not None
    assert (contents.step, said) == (3, [])
    assert torch.equal(contents.weights["w"], torch.arange(6.0).reshape(2, 3).t() + 3)
    assert torch.equal(contents.weights["tied2"], torch.ones(2))
    assert contents.state["history"] == [{"loss": 0.5, "split": None}]
    assert contents.average is not None
    assert contents.ranks[0]["random"].keys() >= {"torch", "python", "numpy"}


def test_only_the_newest_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    (tmp_path / ".step-00000001.writing").mkdir()
    for step in (1, 2, 10, 11):
        store(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]


def test_damaged_ones_that_were_passed_over_do_not_count_as_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        store(tmp_path, step, keep=3)
    alter(tmp_path / "step-00000002" / "state.safetensors")
    alter(tmp_path / "step-00000003" / "state.safetensors")
    contents, said = checkpoint.load_latest(tmp_path)
    assert contents is not None
    assert (contents.step, len(said)) == (1, 2)
    store(tmp_path, 1, keep=1)  # goes on from there, with another number to keep
    assert [p.name for p in checkpoint.found(tmp_path)] == ["step-00000001"]
    contents, said = checkpoint.load_latest(tmp_path)
    assert contents is not None
    assert (contents.step, said) == (1, [])


def test_nothing_is_there_before_the_first(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path / "none") == (None, [])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "rank-0.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", [cut, alter, Path.unlink])
def test_a_damaged_checkpoint_is_passed_over_with_a_message(tmp_path: Path, name: str, damage: Any) -> None:
    store(tmp_path, 1)
    damage(store(tmp_path, 2) / name)
    if name == "manifest.json" and damage is alter:
        text = (tmp_path / "step-00000002" / name).read_text(errors="replace")
        assert text != (tmp_path / "step-00000001" / name).read_text()
    contents, said = checkpoint.load_latest(tmp_path)
    assert contents is not None
    assert contents.step == 1
    assert len(said) == 1
    assert "step-00000002 is damaged" in said[0]
    assert said[0].endswith("going on with the one before")


def of_two_ranks(path: Path) -> Path:
    """The checkpoint as if another rank had written to it too."""
    manifest = json.loads((path / "manifest.json").read_text())
    other = path / "rank-1.safetensors"
    other.write_bytes((path / "rank-0.safetensors").read_bytes())
    manifest["files"][other.name] = checkpoint._checksum(other)
    del manifest["sha256"]
    (path / "manifest.json").write_bytes(checkpoint._rendered(manifest))
    return path


@pytest.mark.parametrize("damage", [cut, alter, Path.unlink])
@pytest.mark.parametrize("damaged", [0, 1])
def test_every_rank_passes_over_a_checkpoint_of_which_any_ranks_file_is_damaged(
    tmp_path: Path, damage: Any, damaged: int
) -> None:
    """Though each reads its own only: otherwise one would go on from another step than the rest."""
    of_two_ranks(store(tmp_path, 1))
    newest = of_two_ranks(store(tmp_path, 2))
    for rank in (0, 1):
        whole, said = checkpoint.load_latest(tmp_path, rank=rank, world=2)
        assert whole is not None
        assert (whole.step, whole.world, len(whole.ranks), said) == (2, 2, 1, [])
    damage(newest / f"rank-{damaged}.safetensors")
    for rank in (0, 1):
        contents, said = checkpoint.load_latest(tmp_path, rank=rank, world=2)
        assert contents is not None
        assert (contents.step, len(said)) == (1, 1)
        assert f"step-00000002 is damaged: rank-{damaged}.safetensors" in said[0]


def test_any_bit_of_the_manifest_counts(tmp_path: Path) -> None:
    store(tmp_path, 1)
    path = store(tmp_path, 2) / "manifest.json"
    good = path.read_bytes()
    for index in range(len(good)):
        path.write_bytes(good[:index] + bytes([good[index] ^ 1 << index % 8]) + good[index + 1 :])
        with pytest.raises(CheckpointError, match=r"is damaged: manifest\.json|has format"):
            checkpoint.read(path.parent)
    # The same values in other words are not ours either.
    path.write_text(json.dumps(json.loads(good)))
    with pytest.raises(CheckpointError, match=r"manifest\.json was altered"):
        checkpoint.read(path.parent)


def test_a_checkpoint_under_another_steps_name_is_not_taken(tmp_path: Path) -> None:
    store(tmp_path, 1).rename(tmp_path / "step-00000007")
    with pytest.raises(CheckpointError, match=r"manifest\.json was altered"):
        checkpoint.read(tmp_path / "step-00000007")


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
TENSORS = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]).map(
    lambda kind: torch.ones(2, 3).to(kind)
)
KEYS = st.text(max_size=3) | st.integers() | st.none() | st.tuples(st.integers(), st.text(max_size=2))
STATES = st.recursive(
    PLAIN | TENSORS,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=3),
)


@given(state=STATES)
def test_nested_state_comes_back(state: Any) -> None:
    tensors = nested.flatten(state)
    assert differing(state, nested.rebuild(tensors)) == []
    assert all(isinstance(tensor, Tensor) for tensor in tensors.values())


def test_what_no_checkpoint_can_hold_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a checkpoint cannot store a object; keep tensors, numbers and texts"):
        nested.flatten({"a": [object()]})


def test_the_messages_say_which_file_and_how(tmp_path: Path) -> None:
    path = store(tmp_path, 1)
    size = (path / "state.safetensors").stat().st_size
    cut(path / "state.safetensors")
    with pytest.raises(
        CheckpointError, match=f"step-00000001 is damaged: state.safetensors has {size - 7} of {size} bytes"
    ):
        checkpoint.read(path)
    (path / "state.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"state\.safetensors is missing"):
        checkpoint.read(path)


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    for step in (1, 2):
        alter(store(tmp_path, step) / "model.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"all 2 checkpoints in .* cannot be used: .*model.safetensors was altered; delete .*, and resuming",
    ):
        checkpoint.load_latest(tmp_path)
    shutil.rmtree(tmp_path / "step-00000001")
    with pytest.raises(CheckpointError, match=r"the only checkpoint in .* cannot be used"):
        checkpoint.load_latest(tmp_path)


def test_a_kill_while_old_ones_are_removed_leaves_none_that_is_half_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(path: Path, **_: Any) -> None:
        if path.exists():
            next(path.glob("*.safetensors")).unlink()
            raise Killed

    for step in (1, 2, 3):
        store(tmp_path, step, keep=3)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            store(tmp_path, 4, keep=1)
    assert [checkpoint.read(path).step for path in checkpoint.found(tmp_path)] == [2, 3, 4]
    store(tmp_path, 5, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_another_format_is_told(tmp_path: Path) -> None:
    path = store(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(CheckpointError, match="has format 99, this version of layerwise reads 2"):
        checkpoint.read(path)


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"format": 2, "files": {}, "step": 1}', "\x00", '{"format": 2}'])
def test_a_manifest_of_something_else_is_damage(tmp_path: Path, manifest: str) -> None:
    path = store(tmp_path, 1)
    (path / "manifest.json").write_text(manifest)
    with pytest.raises(CheckpointError, match=r"is damaged: manifest.json"):
        checkpoint.read(path)


def seal(path: Path) -> None:
    """Give a checkpoint that was altered the checksums of what it holds now."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"] = {name: checkpoint._checksum(path / name) for name in manifest["files"]}
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    (path / "manifest.json").write_bytes(checkpoint._rendered(body))


class Evil:
    """Pickles to a call."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("executed",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = store(tmp_path / "c", 1)
    torch.save({"epoch": Evil()}, path / "state.safetensors")
    seal(path)
    with pytest.raises(CheckpointError, match=r"state\.safetensors cannot be read"):
        checkpoint.read(path)
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, 1)
    written = checkpoint.write_file

    def full(path: Path, data: bytes) -> None:
        written(path, data[: len(data) // 2])
        if path.name == "state.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_file", full)
    with pytest.raises(
        CheckpointError,
        match=r"cannot write the checkpoint .*step-00000002; the last good one is step-00000001: No space left on device; free space",
    ):
        store(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    contents, said = checkpoint.load_latest(tmp_path)
    assert contents is not None
    assert (contents.step, said) == (1, [])


@pytest.mark.parametrize("fatal", range(5))
def test_killed_while_writing_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fatal: int
) -> None:
    store(tmp_path, 1)
    written, count = checkpoint.write_file, [0]

    def killed(path: Path, data: bytes) -> None:
        if count[0] == fatal:
            path.write_bytes(data[:3])
            raise SystemExit
        count[0] += 1
        written(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_file", killed)
        if fatal < 4:
            with pytest.raises(SystemExit):
                store(tmp_path, 2)
        else:
            store(tmp_path, 2)  # four files and no more
    contents, said = checkpoint.load_latest(tmp_path)
    assert contents is not None
    assert (contents.step, said) == (1 if fatal < 4 else 2, [])
    store(tmp_path, 3)
    assert not list(tmp_path.glob(".*"))


def test_saving_over_a_damaged_one_of_the_same_step(tmp_path: Path) -> None:
    alter(store(tmp_path, 5) / "state.safetensors")
    store(tmp_path, 5)
    contents, said = checkpoint.load_latest(tmp_path)
    assert contents is not None
    assert said == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    checkpoint.replace_file(target, b"old")

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(b"n")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_file", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*file: No space left on device"):
        checkpoint.replace_file(target, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert target.read_bytes() == b"old"


def test_random_states_come_back() -> None:
    import random

    import numpy as np

    def draw() -> tuple[Tensor, float, float, float, float]:
        return torch.rand(3), random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn())

    draw()  # leaves half a Gaussian pair behind in Python and NumPy
    states = random_states(CPU)
    first = draw()
    set_random_states(states, CPU)
    second = draw()
    assert torch.equal(first[0], second[0])
    assert first[1:] == second[1:]


def test_random_states_pass_weights_only(tmp_path: Path) -> None:
    torch.save(random_states(CPU), tmp_path / "r.pt")
    set_random_states(torch.load(tmp_path / "r.pt", weights_only=True), CPU)


def test_a_folder_among_the_checkpoints_that_is_none(tmp_path: Path) -> None:
    store(tmp_path, 1)
    (tmp_path / "step-00000009").mkdir()
    contents, said = checkpoint.load_latest(tmp_path)
    assert contents is not None
    assert contents.step == 1
    assert "manifest.json cannot be read" in said[0]
    shutil.rmtree(tmp_path / "step-00000009")
