"""The command line in several processes: torchrun's, and those that it starts by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layerwise.cli import console
from layerwise.models.weights import unpack_tensors
from layerwise.training import checkpoint
from tests.command import QUICK, Command, Said, layerwise
from tests.forks import typed, typed_together
from tests.training.fakes import apart

__all__ = ["layerwise"]  # a fixture

SETTINGS = [*QUICK, "--training.accelerator=cpu", "--training.precision=64-true", "--training.batch_norm=synchronised"]
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--nproc-per-node",
    "2",
    "--standalone",
    "-m",
    "layerwise",
]

pytestmark = pytest.mark.slow


def torchrun(folder: Path, *argv: str) -> tuple[int, str, list[str]]:
    """Exit code, output, and the lines of ours on standard error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    ran = subprocess.run([*TORCHRUN, *argv], cwd=folder, env=environment, capture_output=True, text=True)
    # torchrun reports the exit codes of its processes in its own way.
    ours = [line for line in ran.stderr.splitlines() if line and "torch/distributed/elastic" not in line]
    return ran.returncode, ran.stdout, ours


def test_torchrun_trains_and_judges_as_one_process_does(layerwise: Command, tmp_path: Path) -> None:
    code, out, err = torchrun(tmp_path, "train", "slat-digits", *SETTINGS, "--training.devices=2", "--name=two")
    assert (code, len(err)) == (0, 1), err
    assert out.count("run folder: runs/two") == 1
    assert layerwise("train", "slat-digits", *SETTINGS, "--name=one").code == 0
    one, two = (unpack_tensors(tmp_path / "runs" / name / "model.safetensors") for name in ("one", "two"))
    assert apart(one, two) < 1e-6
    arguments = ["evaluate", "runs/two", "--evaluation.attacks=[clean,fgsm]"]
    assert typed_together(tmp_path, *arguments, "--record=apart").count("record: runs/two/apart.json") == 1
    assert layerwise(*arguments, "--record=alone").code == 0
    rows = [
        [line for line in (tmp_path / "runs/two" / name).read_text().splitlines() if "seconds" not in line]
        for name in ("apart.json", "alone.json")
    ]
    assert rows[0] == rows[1]


def test_what_is_wrong_for_all_processes_is_told_once(layerwise: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one waits until the launcher has gone, which ends all processes as soon as one has ended."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            monkeypatch.setattr(os, "getppid", lambda: console.PARENT + 1)

    monkeypatch.setattr(console, "PARENT", os.getppid())
    monkeypatch.setattr(time, "sleep", sleep)
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}
    said = {}
    for rank in ("0", "1"):
        for name, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, value)
        said[rank] = layerwise("train", "slat-digits", *SETTINGS, "--quiet", "--training.devices=3")
        assert len(waits) == 3 * int(rank)
    sentence = "error: torchrun has started 2 processes, and training is set to 3; type --training.devices 2, as many as --nproc-per-node"
    assert said == {"0": Said(2, "", f"{sentence}\n"), "1": Said(2, "", "")}


def test_a_command_starts_its_own_processes_stops_them_and_goes_on_in_one(layerwise: Command, tmp_path: Path) -> None:
    steps = ["--training.max_steps=60", "--training.log_every=1", "--training.checkpoint_every=0.2"]
    arguments = [*SETTINGS, *steps, "--training.devices=2", "--training.strategy=fsdp2", "--name=two"]
    running = typed(tmp_path, "train", "slat-digits", *arguments)
    while len(checkpoint.found(tmp_path / "runs/two/checkpoints")) < 2:
        assert running.process.is_alive(), running.told()
        time.sleep(0.01)
    running.stop(signal.SIGTERM)
    code, out, err = running.told()
    assert (code, out, len(err)) == (130, "", 2), err
    assert "stopped by SIGTERM after batch" in err[1]
    alone = ["--training.devices=1", "--training.strategy=auto"]
    assert layerwise("train", "--resume", "runs/two", *alone).code == 0
    assert layerwise("train", "slat-digits", *SETTINGS, *steps, "--name=one").code == 0
    one, two = (unpack_tensors(tmp_path / "runs" / name / "model.safetensors") for name in ("one", "two"))
    assert apart(one, two) < 1e-6


def test_a_killed_process_of_several_is_a_sentence_that_goes_on(layerwise: Command, tmp_path: Path) -> None:
    steps = ["--training.max_steps=4000", "--training.epochs=400", "--training.checkpoint_every=0.2"]
    arguments = [*SETTINGS, *steps, "--training.devices=2", "--name=two"]
    running = typed(tmp_path, "train", "slat-digits", *arguments)
    while not checkpoint.found(tmp_path / "runs/two/checkpoints"):
        assert running.process.is_alive(), running.told()
        time.sleep(0.01)
    assert running.process.pid is not None
    os.kill(max(children(running.process.pid)), signal.SIGKILL)
    code, out, err = running.told()
    assert (code != 0, out) == (True, "")
    (sentence,) = [line for line in err if line.startswith("error: ")]
    assert sentence.endswith(", and none can go on alone; go on with: layerwise train --resume runs/two")
    assert not [line for line in err if "Traceback" in line or "fit.py" in line]
    go_on = layerwise("train", "--resume", "runs/two", "--training.devices=1", "--training.strategy=auto", "--dry-run")
    assert go_on.code == 0


def children(parent: int) -> list[int]:
    """The processes that a process has started, and theirs; multiprocessing's helper is none."""
    done = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    below = [int(pid) for pid, above, text in rows if int(above) == parent and "resource_tracker" not in text]
    return [*below, *(other for child in below for other in children(child))]
