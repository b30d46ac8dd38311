"""The time to a goal: that it is counted, and what is refused. No test looks at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import robust

TINY = [
    "--recipe=n-fgsm-digits",
    "--attack=pgd-3-1",
    "--model.name=digits_cnn",
    "--model.options={width: 8}",
    "--training.epochs=3",
    "--training.max_steps=40",
    "--training.precision=32-true",
    "--training.compile=false",
    "--training.channels_last=false",
    "--training.optimizer.lr=0.05",
    "--evaluation.num_examples=64",
    "--threat.eps=0.02",
]


@pytest.mark.parametrize("goal", [0.3, 1.0])
def test_the_time_to_a_goal(tmp_path: Path, capsys: pytest.CaptureFixture[str], goal: float) -> None:
    file = tmp_path / "robust.json"
    asked = ["--goal", str(goal), "--runs", str(tmp_path), "--name", "timed", "--output", str(file)]
    assert robust.main([*TINY, *asked]) == 0
    record = json.loads(file.read_text())
    evaluation = json.loads((tmp_path / "timed" / "evaluation.json").read_text())
    reached = {r["attack"]: r["count"]["correct"] / r["count"]["total"] for r in evaluation["results"]}
    assert record["accuracies"] == reached
    assert record["reached"] is (reached["pgd-3"] >= goal) is (goal == 0.3)
    assert 0 < record["seconds"] < record["whole_seconds"]
    assert (record["steps"], record["images"], record["data"]) == (40, 64, "digits")
    assert f"{goal:.0%} under pgd-3 {'reached' if goal == 0.3 else 'not reached'}" in " ".join(
        capsys.readouterr().out.split()
    )


def test_what_cannot_be_timed_to_a_goal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, told in (
        ([], "is trained on digits; the benchmark is CIFAR-10's: type a --goal"),
        (["--goal", "45"], "no accuracy to reach"),
        (["--goal", "0.4", "--evaluation.attacks=[clean]"], "leave it among evaluation.attacks"),
        (["--goal", "0.4", "--name", "."], "is there already"),
    ):
        assert robust.main([*TINY, "--runs", str(tmp_path), *wrong]) == 2
        assert told in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []
