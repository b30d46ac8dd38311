"""The same step with other libraries: what fails or is missing is told. No test looks at a time."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import peers
from layerwise.experiments.bench.plain import Step
from layerwise.experiments.bench.stepping import Setup, training

SMALL = ["--network=digits_cnn", "--shape=1,8,8", "--options={width: 4}", "--batch=4", "--accelerator=cpu"]


def test_a_library_that_fails_or_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("torchattacks")

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, method: Any) -> Step:
        assert method.steps == 2
        return lambda x, y: peers.descend(model, optimizer, x, y)

    def broken(model: nn.Module, optimizer: torch.optim.Optimizer, method: Any) -> Step:
        def fail(x: Tensor, y: Tensor) -> None:
            raise RuntimeError("not today")

        return fail

    monkeypatch.setitem(__import__("sys").modules, "torchattacks", fake)
    monkeypatch.setitem(__import__("sys").modules, "art", ModuleType("art"))
    monkeypatch.setitem(__import__("sys").modules, "mair", None)
    monkeypatch.setitem(peers.PEERS, "PGD", {"torchattacks": step, "ART": broken, "MAIR": step})
    said: list[str] = []
    record = peers.bench_peers(
        Setup(
            model="digits_cnn",
            options={"width": 4},
            shape=(1, 8, 8),
            batch=6,
            training=training(batch_size=6, accelerator="cpu"),
        ),
        ["PGD:steps=2"],
        rounds=1,
        seconds=1e-3,
        say=said.append,
    )
    assert {row["library"] for row in record["rows"]} == {"layerwise", "by hand", "torchattacks"}
    assert len(said) == 2
    assert "MAIR is left out" in said[0]
    assert "not today" in said[1]


def test_the_command_prints_a_table_and_writes_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "peers.json"
    quick = ["--rounds=1", "--seconds=0.001", "--methods", "FGSMRS", "--output", str(file)]
    assert peers.main([*SMALL, *quick]) == 0
    assert "times ours" in capsys.readouterr().out
    record = json.loads(file.read_text())
    assert record["kind"] == "peers"
    assert [row["library"] for row in record["rows"]][:2] == ["layerwise", "by hand"]


def test_mistakes_are_answered_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.main([*SMALL, "--methods", "PGDD"]) == 2
    assert "did you mean 'PGD'" in capsys.readouterr().err
