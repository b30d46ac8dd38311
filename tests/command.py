"""The command line in an empty folder, for the tests that use it."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from layerwise.cli.main import main
from layerwise.experiments import experiment

QUICK = [
    "--training.max_steps=2",
    "--training.eval_every=0",
    "--model.options.width=4",
    "--evaluation.attacks=clean",
    "--evaluation.num_examples=20",
]


@dataclass(frozen=True)
class Said:
    """What a command said."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def layerwise(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`layerwise` in an empty folder, 80 columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("LAYERWISE_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def run(*argv: str) -> Said:
        try:
            code = main(argv)
        except SystemExit as end:  # argparse's --help and --version
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    chosen, tree = experiment.read("slat-digits", QUICK)
    experiment.train(chosen, tree, folder=folder, progress=False)
    return folder


@pytest.fixture
def done(finished: Path, layerwise: Command, tmp_path: Path) -> Path:
    """A copy of the finished run, at runs/done of the current folder."""
    return shutil.copytree(finished, tmp_path / "runs" / "done")


def told(said: Said, message: str) -> None:
    """Check an error: its text, one line, no traceback, exit code 2."""
    lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert said.code == 2, said
    assert len(lines) == 1, said.err
    assert said.err.endswith(lines[0] + "\n")
    assert re.search(message, lines[0]), lines[0]
    assert "Traceback" not in said.err + said.out
