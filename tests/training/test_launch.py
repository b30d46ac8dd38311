"""The command line in several processes: torchrun's, and those that it starts by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layerwise.models.weights import unpack_tensors
from layerwise.training import checkpoint
from tests.command import QUICK, Command, layerwise
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
SCRIPT = [str(Path(sys.executable).with_name("layerwise"))]

pytestmark = pytest.mark.slow


def start(launcher: list[str], folder: Path, *argv: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    pipe = subprocess.PIPE
    return subprocess.Popen([*launcher, *argv], cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def told(running: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    """Exit code, output, and the lines of ours on standard error."""
    out, err = running.communicate(timeout=300)
    # torchrun reports the exit codes of its processes in its own way.
    ours = [line for line in err.split("Traceback")[0].splitlines() if line and "torch/distributed/elastic" not in line]
    return running.returncode, out, ours


def test_torchrun_trains_and_judges_as_one_process_does(layerwise: Command, tmp_path: Path) -> None:
    code, out, err = told(
        start(TORCHRUN, tmp_path, "train", "slat-digits", *SETTINGS, "--training.devices=2", "--name=two")
    )
    assert (code, len(err)) == (0, 1), err
    assert out.count("run folder: runs/two") == 1
    assert layerwise("train", "slat-digits", *SETTINGS, "--name=one").code == 0
    one, two = (unpack_tensors(tmp_path / "runs" / name / "model.safetensors") for name in ("one", "two"))
    assert apart(one, two) < 1e-6
    arguments = ["evaluate", "runs/two", "--evaluation.attacks=[clean,fgsm]"]
    code, out, err = told(start(TORCHRUN, tmp_path, *arguments, "--record=apart"))
    assert (code, err) == (0, [])
    assert out.count("record: runs/two/apart.json") == 1
    assert layerwise(*arguments, "--record=alone").code == 0
    rows = [
        [line for line in (tmp_path / "runs/two" / name).read_text().splitlines() if "seconds" not in line]
        for name in ("apart.json", "alone.json")
    ]
    assert rows[0] == rows[1]


def test_what_is_wrong_for_all_processes_is_told_once(tmp_path: Path) -> None:
    code, out, err = told(
        start(TORCHRUN, tmp_path, "train", "slat-digits", *SETTINGS, "--quiet", "--training.devices=3")
    )
    assert (code != 0, out) == (True, "")
    assert err == [
        "error: torchrun has started 2 processes, and training is set to 3; type --training.devices 2, as many as --nproc-per-node"
    ]


def test_a_command_starts_its_own_processes_stops_them_and_goes_on_in_one(layerwise: Command, tmp_path: Path) -> None:
    steps = ["--training.max_steps=60", "--training.log_every=1", "--training.checkpoint_every=0.2"]
    arguments = [*SETTINGS, *steps, "--training.devices=2", "--training.strategy=fsdp2", "--name=two"]
    running = start(SCRIPT, tmp_path, "train", "slat-digits", *arguments)
    begun = time.monotonic()
    while len(checkpoint.found(tmp_path / "runs/two/checkpoints")) < 2:
        assert time.monotonic() < begun + 300
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    code, out, err = told(running)
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
    running = start(SCRIPT, tmp_path, "train", "slat-digits", *arguments)
    begun = time.monotonic()
    while not checkpoint.found(tmp_path / "runs/two/checkpoints"):
        assert time.monotonic() < begun + 300
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    os.kill(max(children(running.pid)), signal.SIGKILL)
    code, out, err = told(running)
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
