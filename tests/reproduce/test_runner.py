"""The runner: systems are shared, finished ones reused, interrupted ones resumed, failed ones recorded."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import layerwise as lw
from layerwise.data.batching import batches
from layerwise.errors import ConfigError
from layerwise.evaluation import rho
from layerwise.experiments import experiment
from layerwise.reproduce import bench as bench_module
from layerwise.reproduce import measures, runner
from layerwise.reproduce.bench import Bench
from layerwise.reproduce.claims import OPEN
from layerwise.reproduce.definitions import System, read_items
from layerwise.reproduce.record import Record
from layerwise.reproduce.systems import resolve, trained
from tests.reproduce.cases import DECIDING, TINY, item

ROWS = {"standard": "standard-digits", "SLAT": "slat-digits"}


def run(folder: Path, scale: Any = TINY, **body: Any) -> Record:
    (record,) = runner.reproduce(
        [item(**{"rows": ROWS, **body})], scale, output=folder / "results", runs=folder / "runs"
    )
    return record


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    folder = tmp_path_factory.mktemp("reproduce")
    claims = {"up": {"says": "Clean is best.", "if": {"greater": ["SLAT / clean", "standard / clean"]}}}
    return folder, run(folder, claims=claims)


def values(record: Record) -> dict[str, dict[str, list[float]]]:
    return {r.name: {name: [o.value for o in c.ours] for name, c in r.cells.items()} for r in record.rows}


def test_measures_of_several_efforts_in_one_store_are_nothing_to_warn_of(
    finished: tuple[Path, Record], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of = item(rows={"SLAT": "slat-digits"}, columns={"PGD": "pgd-3", "few": "apgd-ce"})  # of 20 images and of 10
    runner.reproduce([of], TINY, output=tmp_path, runs=finished[0] / "runs")
    assert "circumstances" not in caplog.text


def test_a_run_leaves_a_complete_record(finished: tuple[Path, Record]) -> None:
    folder, record = finished
    assert record.complete
    assert [row.name for row in record.rows] == list(ROWS)
    outcomes = [outcome for row in record.rows for cell in row.cells.values() for outcome in cell.ours]
    assert len(outcomes) == 4
    assert all(o.images == 20 and o.seconds > 0 and o.low <= o.value <= o.high for o in outcomes)
    assert [column.what for column in record.columns] == [
        "clean, 20 images",
        "pgd-5 alpha=0.1, linf, eps 0.2, 20 images",
    ]
    assert [claim.verdict for claim in record.claims] == [OPEN]
    stored = folder / "results" / "tiny" / "slat" / "table-x.json"
    assert Record.from_json(stored.read_text(), source="x") == record
    assert (folder / "results" / "tiny" / "index.md").is_file()
    assert sorted(p.name for p in (folder / "runs" / "reproduce" / "tiny").iterdir()) == sorted(
        name for row in record.rows for name in row.runs
    )


def test_what_is_there_is_reused(finished: tuple[Path, Record], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, record = finished

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing has to be trained or measured again")

    monkeypatch.setattr(experiment, "train", never)
    monkeypatch.setitem(measures.MEASURES, "attack", never)
    again = run(folder, columns={"PGD": "pgd-50 alpha=0.1"})
    assert values(again) == {name: {"PGD": cells["PGD"]} for name, cells in values(record).items()}


def test_an_interrupted_run_goes_on_and_ends_alike(
    finished: tuple[Path, Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, record = finished
    attack = measures.MEASURES["attack"]
    asked: list[str] = []

    def interrupted(bench: Bench, subject: Any, options: Any) -> Any:
        asked.append(subject.folder.name)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return attack(bench, subject, options)

    monkeypatch.setitem(measures.MEASURES, "attack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    partial = Record.from_json((tmp_path / "results" / "tiny" / "slat" / "table-x.json").read_text(), source="x")
    assert (partial.complete, [row.name for row in partial.rows]) == (False, ["standard"])
    assert values(run(tmp_path)) == values(record)
    assert len(asked) == 5  # the three that were there are not made again


def test_training_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resumed: list[bool] = []
    train = experiment.train

    def stops(*arguments: Any, resume: bool, **options: Any) -> Any:
        resumed.append(resume)
        if len(resumed) == 1:
            raise KeyboardInterrupt
        return train(*arguments, resume=resume, **options)

    monkeypatch.setattr(experiment, "train", stops)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, rows={"standard": "standard-digits"})
    run(tmp_path, rows={"standard": "standard-digits"})
    assert resumed == [True, True]


def test_failures_are_recorded_and_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> Any:
        raise RuntimeError("the network\nexploded")

    monkeypatch.setitem(measures.MEASURES, "rho", breaks)
    record = run(
        tmp_path,
        rows={"none": "no-such-recipe", "bad": {"recipe": "slat-digits", "set": {"method.etaa": 1}}, **ROWS},
        columns={"clean": "clean", "rho": {"measure": "rho", "unit": ""}, "odd": "no-attack"},
    )
    cells = {row.name: row.cells for row in record.rows}
    assert re.search("there is no recipe 'no-such-recipe'", cells["none"]["clean"].failures[0])
    assert re.search("there is no setting 'method.etaa'", cells["bad"]["rho"].failures[0])
    assert cells["SLAT"]["rho"].failures == ("RuntimeError: the network exploded",)
    assert re.search("attack 'no-attack' is unknown", cells["SLAT"]["odd"].failures[0])
    assert [len(cells[name]["clean"].ours) for name in cells] == [0, 0, 1, 1]
    assert record.complete


def test_a_system_that_fails_is_not_trained_again_for_every_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def fails(chosen: Any, tree: Any, *, folder: Path, **_: Any) -> Any:
        tried.append(folder.name)
        raise ValueError("diverged")

    monkeypatch.setattr(experiment, "train", fails)
    columns = {name: {"measure": "times", "base": "SLAT"} for name in "abc"}
    record = run(tmp_path, columns=columns)
    assert len(tried) == 2
    assert {c.failures for r in record.rows for c in r.cells.values()} == {("ValueError: diverged",)}


def test_seeds_are_runs_of_their_own(tmp_path: Path) -> None:
    two = replace(DECIDING, seeds=2)
    record = run(tmp_path, two, rows={"standard": "standard-digits"}, columns={"clean": "clean"})
    (row,) = record.rows
    assert (record.seeds, len(set(row.runs)), len(row.cells["clean"].ours)) == ((0, 1), 2, 2)


def test_systems_are_shared_by_what_their_weights_depend_on() -> None:
    def name(changes: dict[str, Any], recipe: str = "slat-digits", seed: int = 0) -> str:
        return resolve(System(recipe=recipe, set=changes), TINY, seed=seed).name

    same: list[dict[str, Any]] = [{}, {"evaluation.eot": 2}, {"data.download": True, "training.log_every": 3}]
    assert len({name(changes) for changes in same}) == 1
    assert name({"method.eta": 0.1}) == name({"method.eta": "0.1"})
    others = [name({}), name({}, seed=1), name({"method.num_probes": 2}), name({}, "lat-digits")]
    assert len(set(others)) == 4


def test_what_training_starts_from_is_trained_at_the_same_scale(tmp_path: Path) -> None:
    found = resolve(System(recipe="deep-defense-digits"), TINY, seed=0)
    (start,) = found.needs
    assert start == resolve(System(recipe="standard-digits"), TINY, seed=0).name
    folder = trained(found, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([start, folder.name])
    assert str(tmp_path / start) in (folder / "config.yaml").read_text()


def test_runs_of_another_start_have_another_name() -> None:
    one = resolve(System(recipe="deep-defense-digits"), TINY, seed=0)
    other = resolve(System(recipe="deep-defense-digits"), TINY, seed=1)
    assert set(one.needs) != set(other.needs)
    assert one.name != other.name


def test_rows_that_only_the_paper_has_stand_below_ours(tmp_path: Path) -> None:
    body = {"items": {"cifar10": {"rows": {}, "columns": {"clean": "clean"}}}}
    (found,) = read_items(body, "fastat").values()
    (record,) = runner.reproduce([found], TINY, output=tmp_path / "results", runs=tmp_path / "runs")
    assert len(record.rows) == 21
    assert record.rows[0].cells["clean"].paper == "82.36"


def test_selected_weights_are_the_better_on_validation(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").touch()
    (tmp_path / "best-ema.safetensors").touch()
    lines = [
        '{"kind": "epoch", "robust": 0.3, "ema_robust": 0.2}',
        '{"kind": "train", "step": 1}',
        '{"kind": "epoch", "robust": 0.4, "ema_robust": 0.5}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert bench_module._which(tmp_path, "selected") == "best-ema"
    assert bench_module._which(tmp_path, "best") == "best"
    (tmp_path / "metrics.jsonl").write_text('{"kind": "epoch", "robust": null}\n')
    assert bench_module._which(tmp_path, "selected") == "last"


def test_chosen_rows_are_run_and_the_others_stay(
    finished: tuple[Path, Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, record = finished
    options: Any = {"output": tmp_path / "results", "runs": tmp_path / "runs"}
    subject = item(rows=ROWS)
    for machine, pattern, expected in (("one", "SL*", ["SLAT"]), ("two", "standard", ["standard", "SLAT"])):
        monkeypatch.setattr(runner, "_hardware", lambda known, machine=machine: machine)
        (found,) = runner.reproduce([subject], TINY, **options, rows=[pattern])
        assert [row.name for row in found.rows] == expected
    assert found.hardware == "one and two"
    assert values(found) == values(record)
    monkeypatch.setitem(
        measures.MEASURES, "attack", lambda *_: pytest.fail("nothing is measured before a wrong row is refused")
    )
    with pytest.raises(ConfigError, match=r"slat/table-x has no row 'FGSM'; its rows are standard, SLAT, and \*"):
        list(runner.reproduce([subject], TINY, **options, rows=["SLAT", "FGSM"]))


def test_centered_rho_is_that_over_images_without_their_mean(finished: tuple[Path, Record]) -> None:
    folder, _ = finished
    columns = {name: {"measure": "rho", "centered": name == "centered", "unit": ""} for name in ("plain", "centered")}
    found = run(folder, columns=columns, rows={"SLAT": "slat-digits"})
    (plain, centered) = values(found)["SLAT"].values()
    data = lw.load_data("digits")
    ((x, _),) = batches(data.train, len(data.train))
    model = lw.load(folder / "runs" / "reproduce" / "tiny" / found.rows[0].runs[0])
    expected = rho(model, data, num_examples=TINY.few, center=x.mean(0)).value
    assert centered == [pytest.approx(expected, rel=1e-4)]
    assert centered[0] > plain[0]


def test_what_was_run_is_told_for_all_rows_of_a_column(finished: tuple[Path, Record]) -> None:
    folder, _ = finished
    rows = {
        name: {"recipe": recipe, "with": {"eps": eps}}
        for (name, recipe), eps in zip(ROWS.items(), (0.1, 0.2), strict=True)
    }
    found = run(folder, rows=rows, columns={"FGSM": "fgsm"})
    assert found.columns[0].what == "fgsm, linf, eps 0.1, 20 images or fgsm, linf, eps 0.2, 20 images"


def test_kept_rows_are_those_of_the_same_columns(tmp_path: Path) -> None:
    options: Any = {"output": tmp_path / "results", "runs": tmp_path / "runs", "rows": ["SLAT"]}
    list(runner.reproduce([item(rows=ROWS)], TINY, **{**options, "rows": ["standard"]}))
    (found,) = runner.reproduce([item(rows=ROWS, columns={"clean": "clean"})], TINY, **options)
    assert [row.name for row in found.rows] == ["SLAT"]


def test_steps_are_timed_in_turn_with_those_of_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def interleaved(runs: Any, *_: Any, **__: Any) -> dict[str, list[float]]:
        for name, step in runs.items():
            step()
            steps.append(name)
        return {"own": [0.5, 0.25, 0.75], "base": [0.25, 0.125, 0.125]}

    monkeypatch.setattr(measures, "interleaved", interleaved)
    pace = {"measure": "pace", "base": "standard"}
    columns = {"times": {**pace, "unit": "x"}, "seconds": {**pace, "in": "seconds", "unit": "s"}}
    rows = {"standard": "standard-digits", "Adv. Train I": "adv-train-1-digits"}  # which looks at another network
    found = values(run(tmp_path, columns=columns, rows=rows))
    tree = resolve(System(recipe="adv-train-1-digits"), TINY, seed=0).tree
    batches_of_a_run = tree["training"]["epochs"] * -(
        -len(lw.load_data("digits").train) // tree["training"]["batch_size"]
    )
    assert found["Adv. Train I"] == {"times": [2.0], "seconds": [0.5 * batches_of_a_run]}
    assert steps == ["own", "base"] * 2
