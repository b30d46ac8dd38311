"""Every command on a full disk: one sentence, nothing lost that was there, and the same typed again goes on to the same end."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from layerwise.errors import CheckpointError, DataError
from layerwise.evaluation.corruptions import store
from layerwise.evaluation.store import Store
from layerwise.experiments.tune.trials import TRIALS, read_trials
from layerwise.reproduce import runner
from layerwise.reproduce.record import Record
from layerwise.training import WEIGHTS
from tests.command import QUICK, Command, finished, layerwise, told
from tests.reproduce.cases import TINY, item
from tests.torture.outcome import untimed
from tests.torture.size import TORTURE
from tests.torture.test_full_disk import Disk
from tests.training.fakes import pictures

__all__ = ["finished", "layerwise"]

FULL = "No space left on device; free space and resume"
FEW = ["--evaluation.attacks=[clean, fgsm]", "--evaluation.num_examples=20", "--evaluation.batch_size=10"]
TRIAL = [*QUICK, "--training.eval_steps=1", "--training.eval_examples=20", "--trials=2", "--budget=1"]
TRIAL += ["--range", "method.num_probes=1,2"]


@dataclass(frozen=True)
class Case:
    """A command.

    Args:
        words: what is typed; RUNS stands for the folder of the runs.
        again: what is typed to go on.
        left: what a finished one left, but for the times.
        least: writes that there are at least.
    """

    words: list[str]
    again: list[str]
    left: Callable[[Path], Any]
    least: int


def trained(runs: Path) -> Any:
    kept = {name: (runs / "new" / name).read_bytes() for name in (WEIGHTS["last"], "data.json", "config.yaml")}
    return kept, evaluated(runs / "new" / "evaluation.json")


def evaluated(file: Path) -> Any:
    return untimed(json.loads(file.read_text()))


def tuned(runs: Path) -> Any:
    folder = runs / "tune" / "slat-digits"
    trials = [replace(trial, seconds=0.0) for trial in read_trials(Store(folder / TRIALS))]
    best = [line for line in (folder / "best.yaml").read_text().splitlines() if not line.startswith("#")]
    return trials, best, (folder / "tune.png").stat().st_size > 0, (folder / "tune.md").stat().st_size > 0


def reported(runs: Path) -> Any:
    text = (runs / "report.json").read_text().replace(str(runs), "RUNS")
    return json.loads(text), (runs / "report.html").stat().st_size > 0


CASES = {
    "train": Case(
        ["train", "slat-digits", *QUICK, "--runs=RUNS", "--name=new"],
        ["train", "--resume", "RUNS/new"],
        trained,
        12,
    ),
    "evaluate": Case(
        ["evaluate", "RUNS/done", *FEW, "--record=more"],
        ["evaluate", "RUNS/done", *FEW, "--record=more"],
        lambda runs: evaluated(runs / "done" / "more.json"),
        8,
    ),
    "tune": Case(
        ["tune", "slat-digits", *TRIAL, "--runs=RUNS"],
        ["tune", "slat-digits", *TRIAL, "--runs=RUNS", "--resume"],
        tuned,
        30,
    ),
    "report": Case(["report", "RUNS/done", "--output=RUNS"], ["report", "RUNS/done", "--output=RUNS"], reported, 3),
}


def chosen(writes: int, few: int) -> list[int]:
    """The writes to refuse: some, or as many as time allows."""
    return sorted(random.Random(0).sample(range(writes), min(writes, 10 if TORTURE else few)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", CASES)
def test_a_command_goes_on_when_there_is_room(
    tmp_path: Path, layerwise: Command, finished: Path, figures: dict[str, Any], name: str
) -> None:
    case = CASES[name]

    def run(words: list[str], runs: Path) -> Any:
        return layerwise(*(word.replace("RUNS", str(runs)) for word in words), *["--quiet"] * (name != "report"))

    def fresh(number: int) -> Path:
        shutil.copytree(finished, tmp_path / str(number) / "done")
        return tmp_path / str(number)

    enough, whole = Disk(10**6), fresh(-1)
    with enough.mounted(whole):
        assert run(case.words, whole).code == 0
    expected, writes = case.left(whole), 10**6 - enough.room
    assert writes >= case.least
    rooms = chosen(writes, 2)
    for room in rooms:
        runs = fresh(room)
        before = contents(runs / "done")
        with Disk(room).mounted(runs):
            told(run(case.words, runs), FULL)
        assert contents(runs / "done").items() >= before.items()
        said = run(case.again if any(runs.glob("*/*/tune.yaml")) or (runs / "new").exists() else case.words, runs)
        assert said.code == 0, said
        assert case.left(runs) == expected
        shutil.rmtree(runs)
    figures.setdefault("full_disk", {}).setdefault("commands", {})[name] = len(rooms)


def test_a_reproduction_goes_on_when_there_is_room(tmp_path: Path, figures: dict[str, Any]) -> None:
    def run(folder: Path) -> Record:
        (record,) = runner.reproduce(
            [item(rows={"standard": "standard-digits", "SLAT": "slat-digits"})],
            TINY,
            output=folder / "results",
            runs=folder / "runs",
        )
        return record

    def numbers(record: Record) -> Any:
        cells = {row.name: row.cells for row in record.rows}
        return {name: {c: [o.value for o in cell.ours] for c, cell in of.items()} for name, of in cells.items()}

    enough = Disk(10**6)
    with enough.mounted(tmp_path):
        expected = numbers(run(tmp_path / "whole"))
    rooms = chosen(10**6 - enough.room, 3)
    for room in rooms:
        folder = tmp_path / f"run{room}"
        with Disk(room).mounted(tmp_path), pytest.raises(CheckpointError, match=FULL):
            run(folder)
        for file in (folder / "results").rglob("*.json"):  # what was told before is whole, and blames no row
            half = Record.from_json(file.read_text(), source=str(file))
            assert [cell.failures for row in half.rows for cell in row.cells.values() if cell.failures] == []
        assert numbers(run(folder)) == expected
        shutil.rmtree(folder)
    figures.setdefault("full_disk", {}).setdefault("commands", {})["reproduce"] = len(rooms)


def test_corrupted_images_are_whole_or_not_there(tmp_path: Path, figures: dict[str, Any]) -> None:
    images = pictures(10).train

    def make(folder: Path) -> None:
        store(folder, images, names=["contrast", "brightness"], batch_size=5)

    enough = Disk(10**6)
    with enough.mounted(tmp_path):
        make(tmp_path / "whole")
    expected, writes = contents(tmp_path / "whole"), 10**6 - enough.room
    assert set(expected) == {"labels.npy", *(f"{n}.{e}" for n in ("contrast", "brightness") for e in ("npy", "json"))}
    rooms = chosen(writes, 8)
    for room in rooms:
        folder = tmp_path / f"run{room}"
        with (
            Disk(room).mounted(tmp_path),
            pytest.raises(DataError, match=r"cannot be written \(No space left on device\); free space or"),
        ):
            make(folder)
        there = contents(folder)
        assert there.items() <= expected.items()
        make(folder)
        assert contents(folder) == expected
    figures.setdefault("full_disk", {}).setdefault("commands", {})["corruptions"] = len(rooms)
