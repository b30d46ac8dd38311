"""Where the disk is full, the run stops with one sentence and goes on from its last good checkpoint once there is room."""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from layerwise.errors import CheckpointError
from layerwise.methods import Standard
from layerwise.training import Training, checkpoint
from tests.forks import exit_code
from tests.networks import TinyMLP
from tests.torture.child import NO_NAMESPACE, on_a_small_disk, starved
from tests.torture.disk import Write, watching
from tests.torture.outcome import differing, outcome
from tests.torture.size import TORTURE, sized
from tests.training.fakes import cheap, pictures, train

SMALL: Training = cheap(epochs=1, checkpoint_every=0.5, log_every=2, eval_every=1, ema_decay=0.9, tensorboard=True)


class Disk:
    """Lets `room` writes through, and half of the next one; then it is full."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, plain: Write, data: Any) -> int:
        self.room -= 1
        if self.room == -1:
            plain(bytes(data)[: len(data) // 2])
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(data)

    @contextmanager
    def mounted(self, folder: Path) -> Iterator[None]:
        """What is written in the folder meets this disk."""
        with pytest.MonkeyPatch.context() as patch:
            watched = watching(folder, self.write)
            patch.setattr(io, "open", watched)
            patch.setattr(builtins, "open", watched)  # the same, under the name that NumPy and others use
            yield


def run(folder: Path) -> None:
    train(TinyMLP(), Standard(), SMALL, pictures(20), run=folder, resume=True)


def test_full_at_every_write_in_turn(tmp_path: Path, figures: dict[str, Any]) -> None:
    enough = Disk(10**6)
    with enough.mounted(tmp_path):
        run(tmp_path / "whole")
    expected, writes = outcome(tmp_path / "whole"), 10**6 - enough.room
    assert writes >= 20  # of metrics, checkpoints, weights and configuration
    # Refused the first one, the note of who holds the lock, a run goes on, and fails at the next.
    chosen = range(writes) if TORTURE else sorted(random.Random(0).sample(range(writes), 10))
    for room in chosen:
        folder = tmp_path / f"run{room}"
        with (
            Disk(room).mounted(tmp_path),
            pytest.raises(CheckpointError, match="No space left on device; free space and resume"),
        ):
            run(folder)
        assert checkpoint.load_latest(folder / "checkpoints")[1] == []
        run(folder)
        assert differing(expected, outcome(folder)) == []
        shutil.rmtree(folder)
    figures.setdefault("full_disk", {})["writes_refused"] = len(chosen)


LIMITS = sized(2, 12)


def test_the_kernel_refuses_to_let_files_grow(tmp_path: Path, figures: dict[str, Any]) -> None:
    """Exit code 2 at once, at whichever file is the first to be too large; then on to the end with room."""
    assert exit_code(starved, str(tmp_path / "whole"), 0) == 0
    expected = outcome(tmp_path / "whole")
    largest = max(p.stat().st_size for p in (tmp_path / "whole").rglob("*") if p.is_file())
    for step in range(LIMITS):
        folder = tmp_path / f"run{step}"
        limit = 1 + largest * step // LIMITS
        assert exit_code(starved, str(folder), limit) == 2
        told = folder.with_suffix(".error").read_text()
        assert "File too large" in told
        assert "free space and resume" in told
        assert exit_code(starved, str(folder), 0) == 0
        assert differing(expected, outcome(folder)) == []
    figures.setdefault("full_disk", {})["file_limits"] = LIMITS


@pytest.mark.parametrize("share", [0.7] if not TORTURE else [0.02, 0.2, 0.5, 0.7, 0.9])
def test_a_disk_that_is_really_full(tmp_path: Path, figures: dict[str, Any], share: float) -> None:
    assert exit_code(starved, str(tmp_path / "whole"), 0) == 0
    whole = tmp_path / "whole"
    size = sum(p.stat().st_size for p in whole.rglob("*") if p.is_file())
    (tmp_path / "disk").mkdir()
    code = exit_code(on_a_small_disk, str(tmp_path / "disk"), str(tmp_path / "run"), max(8192, round(size * share)))
    if code == NO_NAMESPACE:
        pytest.skip("this kernel lets nobody mount a file system of their own")
    assert code == 2
    assert "No space left on device" in (tmp_path / "disk.error").read_text()
    if share >= 0.7:
        assert checkpoint.found(tmp_path / "run" / "checkpoints")
    assert checkpoint.load_latest(tmp_path / "run" / "checkpoints")[1] == []
    assert exit_code(starved, str(tmp_path / "run"), 0) == 0
    assert differing(outcome(whole), outcome(tmp_path / "run")) == []
    figures.setdefault("full_disk", {}).setdefault("real_disks", []).append(share)


def test_a_folder_that_may_only_be_read(tmp_path: Path) -> None:
    """Root may write everywhere but on a file system that is read-only."""
    (tmp_path / "disk").mkdir()
    if os.geteuid() == 0:
        code = exit_code(on_a_small_disk, str(tmp_path / "disk"), str(tmp_path / "run"), 0)
        if code == NO_NAMESPACE:
            pytest.skip("this kernel lets nobody mount a file system of their own")
        assert code == 2
        told = (tmp_path / "disk.error").read_text()
        assert re.search(r"cannot make the run folder .*disk/run: Read-only file system$", told)
        return
    (tmp_path / "disk").chmod(0o500)
    with pytest.raises(CheckpointError, match=r"cannot make the run folder .*run: Permission denied$"):
        run(tmp_path / "disk" / "run")
    (tmp_path / "disk").chmod(0o700)
    (tmp_path / "disk" / "run").mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match=r"cannot write .*run: Permission denied; make it writable and resume"):
        run(tmp_path / "disk" / "run")
