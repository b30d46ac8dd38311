"""Tab completion: what a shell offers, asked of bash itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import Command, layerwise, told

__all__ = ["layerwise"]  # a fixture

ASK = """
source "$1"; shift
COMP_WORDS=(layerwise "$@"); COMP_CWORD=$#; COMPREPLY=()
_shtab_layerwise layerwise "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    code = "from layerwise.cli.main import main; main(['--print-completion', 'bash'])"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    path = tmp_path_factory.mktemp("completion") / "layerwise.bash"
    path.write_text(made.stdout)
    return path


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["tr"], ["train"]),
        (["train", "slat-dig"], ["slat-digits"]),
        (["train", "own"], ["own.yaml"]),
        (["train", "slat-digits", "--method", "AN"], ["ANP"]),
        (["train", "slat-digits", "--model", "digits"], ["digits_cnn"]),
        (["train", "slat-digits", "--training.optimizer.l"], ["--training.optimizer.lr"]),
        (["train", "slat-digits", "--method.num_pr"], ["--method.num_probes"]),
        (["tune", "slat-dig"], ["slat-digits"]),
        (["evaluate", "run"], ["runs"]),
        (["evaluate", "runs", "--suite", "stand"], ["standard"]),
        (["evaluate", "runs", "--evaluation.att"], ["--evaluation.attacks"]),
        (["evaluate", "runs", "--training.op"], []),
        (["report", "run"], ["runs"]),
        (["list", "sui"], ["suites"]),
        (["sites", "digits"], ["digits_cnn"]),
    ],
)
def test_bash_offers(script: Path, tmp_path: Path, typed: list[str], offered: list[str]) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "own.yaml").touch()
    said = subprocess.run(["bash", "-c", ASK, "bash", script, *typed], capture_output=True, text=True, cwd=tmp_path)
    assert (said.stderr, said.stdout.split()) == ("", offered)


def test_other_shells_have_a_script(layerwise: Command) -> None:
    for shell in ("zsh", "fish"):
        said = layerwise("--print-completion", shell)
        assert said.code == 0
        assert "slat-digits" in said.out
        assert "training.optimizer.lr" in said.out


def test_what_cannot_be_completed_is_told(layerwise: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    told(layerwise("--print-completion", "cmd"), r"there is no completion for 'cmd'; type one of bash, zsh")
    told(layerwise("--print-completion"), r"argument --print-completion: expected one argument; see `layerwise --help`")
    monkeypatch.setitem(sys.modules, "shtab", None)
    told(layerwise("--print-completion", "bash"), r"needs shtab; type pip install 'layerwise\[completion\]'")
