"""Evaluating several runs, and runs that lack something: what is missing is said, and what makes it again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from layerwise.files import held
from tests.command import Command, done, finished, layerwise, told

__all__ = ["done", "finished", "layerwise"]  # fixtures

QUICKLY = ["--evaluation.attacks=clean", "--evaluation.num_examples=10", "--quiet"]


@pytest.mark.parametrize("given", [["runs/done", "runs/other"], ["runs/*"], ["runs/other", "runs/*", "runs/done"]])
def test_several_runs_are_evaluated_each_once(layerwise: Command, done: Path, given: list[str]) -> None:
    shutil.copytree("runs/done", "runs/other")
    Path("runs/notes").mkdir()
    said = layerwise("evaluate", *given, *QUICKLY)
    assert said.code == 0, said.err
    assert [said.out.count(f"record: runs/{name}/evaluation-custom.json") for name in ("done", "other")] == [1, 1]


def test_one_that_is_no_run_is_told_before_the_first_is_evaluated(layerwise: Command, done: Path) -> None:
    told(layerwise("evaluate", "runs/done", "runs/nowhere", *QUICKLY), r"runs/nowhere does not exist; .*'?done'?")
    assert not Path("runs/done/evaluation-custom.json").exists()
    told(layerwise("evaluate", "runs/x*", *QUICKLY), r"there is no run runs/x\*")
    shutil.copytree("runs/done", "runs/other")
    told(layerwise("evaluate", "runs/*", "--output", "elsewhere"), r"--output takes the record of one run, not of 2")
    told(layerwise("evaluate", "runs"), r"runs is no run folder: it holds no config.yaml; it holds runs: type runs/\*")


def test_after_ctrl_c_the_rest_is_named(layerwise: Command, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from layerwise.experiments import experiment

    shutil.copytree("runs/done", "runs/other")
    evaluate, calls = experiment.evaluate_run, []

    def stop(*args: object, **options: object) -> object:
        calls.append(options["folder"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(experiment, "evaluate_run", stop)
    said = layerwise("evaluate", "runs/done", "runs/other", "--fresh", *QUICKLY)
    assert said.code == 130
    assert "go on with: layerwise evaluate runs/other --evaluation.attacks=clean" in said.err


def test_weights_that_are_missing_are_written_again_by_what_is_said(layerwise: Command, done: Path) -> None:
    config = done / "config.yaml"
    before = (done / "model.safetensors").read_bytes()
    config.write_text(config.read_text().replace("epochs: 20", "epochs: 1"))
    lines = [{"kind": "epoch", "step": 2}, {"kind": "end"}]
    (done / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (done / "model.safetensors").unlink()
    again = "layerwise train --resume runs/done"
    told(layerwise("evaluate", "runs/done"), rf"runs/done/model.safetensors is missing; `{again}` writes it again")
    said = layerwise("train", "--resume", "runs/done")
    assert "runs/done is complete after 2 batches: there is nothing left to train" in said.err
    assert (done / "model.safetensors").read_bytes() == before


def test_a_run_that_is_still_training_is_told(layerwise: Command, done: Path) -> None:
    (done / "model.safetensors").unlink()
    (done / "metrics.jsonl").write_text('{"kind": "epoch"}\n{"kind": "train"}\n{"kind": "epoch"}\n')
    with held(done):
        said = layerwise("evaluate", "runs/done")
    told(said, r"runs/done is still training \(2 of 20 epochs are done\): runs/done is in use by this process")
    told(
        layerwise("evaluate", "runs/done"), r"has not finished \(2 of 20 epochs\); go on with: layerwise train --resume"
    )


def test_a_configuration_that_is_missing_is_told(layerwise: Command, done: Path) -> None:
    (done / "config.yaml").unlink()
    for argv in (["evaluate", "runs/done"], ["train", "--resume", "runs/done"]):
        told(
            layerwise(*argv),
            r"runs/done has checkpoints, but config.yaml is missing; `layerwise train RECIPE --runs runs",
        )
