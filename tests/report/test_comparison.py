"""Tables of runs: means and intervals against their formulas, and what cannot stand in one table."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise.attacks import ThreatModel
from layerwise.errors import CheckpointError
from layerwise.evaluation import Evaluation, Finding
from layerwise.report import compare
from tests.report.folders import record

T_2 = 4.302652729911275
"""Student's t with 2 degrees of freedom, two-sided 95 %, from a printed table."""


def put(folder: Path, evaluation: Evaluation, *, epochs: tuple[float, ...] = (), name: str = "evaluation") -> Path:
    """A run folder with a record and the seconds that its epochs end at."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(evaluation.to_json())
    lines = [json.dumps({"kind": "train", "seconds": 99})] + [
        json.dumps({"kind": "epoch", "seconds": s}) for s in epochs
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_seeds_become_one_row_with_students_interval(tmp_path: Path) -> None:
    right = (50, 60, 55)
    folders = [put(tmp_path / f"slat-seed{i}", record(clean=90, pgd=r)) for i, r in enumerate(right)]
    (row,) = compare(folders).rows
    spread = math.sqrt(sum((r / 100 - 0.55) ** 2 for r in right) / 2)
    assert (row.name, row.seeds, row.images) == ("slat", 3, 100)
    assert row.cells["pgd"].value == pytest.approx(0.55)
    assert row.cells["pgd"].high - 0.55 == pytest.approx(T_2 * spread / math.sqrt(3), rel=1e-4)
    assert 0.55 - row.cells["pgd"].low == pytest.approx(T_2 * spread / math.sqrt(3), rel=1e-4)
    arm = 100 * T_2 * spread / math.sqrt(3)
    assert rf"55.0 \[{55 - arm:.1f}, {55 + arm:.1f}\]" in compare(folders).to_markdown()


def test_one_seed_has_wilsons_interval(tmp_path: Path) -> None:
    cell = compare([put(tmp_path / "slat", record(pgd=30))]).rows[0].cells["pgd"]
    z, p, n = 1.959963984540054, 0.3, 100
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    arm = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert [cell.low, cell.high] == pytest.approx([center - arm, center + arm])


def test_the_best_is_marked_where_its_interval_stands_alone(tmp_path: Path) -> None:
    folders = [put(tmp_path / "a", record(clean=95, pgd=20)), put(tmp_path / "b", record(clean=94, pgd=80))]
    _, _, a, b = [line for line in compare(folders).to_markdown().splitlines() if line.startswith("|")]
    assert re.fullmatch(r"\| a \| 1 \| 95.0 [^|*]+ \| 20.0 [^|*]+ \|  \|", a)
    assert re.fullmatch(r"\| b \| 1 \| 94.0 [^|*]+ \| \*\*80.0 [^|*]+\*\* \|  \|", b)


def test_runs_of_equal_names_in_other_folders_are_other_rows(tmp_path: Path) -> None:
    folders = [put(tmp_path / sub / "slat-seed0", record(pgd=r)) for sub, r in (("x", 10), ("y", 20))]
    assert [(row.name, row.seeds, row.cells["pgd"].value) for row in compare([*folders, folders[0]]).rows] == [
        ("x/slat", 1, 0.1),
        ("y/slat", 1, 0.2),
    ]


def test_an_attack_that_one_run_lacks_is_a_blank(tmp_path: Path) -> None:
    folders = [put(tmp_path / "a", record(clean=95, pgd=20)), put(tmp_path / "b", record(clean=94))]
    assert re.search(r"^\| b \| 1 \| 94.0 [^|]+ \|  \|  \|$", compare(folders).to_markdown(), re.MULTILINE)


@pytest.mark.parametrize(
    ("epochs", "seconds"),
    [((2.0, 4.5), 4.5), ((2.0, 4.5, 1.0, 2.5), 7.0), ((), None)],
    ids=["one call", "resumed", "not recorded"],
)
def test_training_time_is_the_sum_over_the_calls(
    tmp_path: Path, epochs: tuple[float, ...], seconds: float | None
) -> None:
    assert compare([put(tmp_path / "a", record(clean=1), epochs=epochs)]).rows[0].train_seconds == seconds


@pytest.mark.parametrize("damage", ["{", "[1]\n", '{"kind": "epoch"}\n'])
def test_damaged_metrics_cost_only_the_time(tmp_path: Path, damage: str) -> None:
    folder = put(tmp_path / "a", record(clean=1), epochs=(1.0,))
    (folder / "metrics.jsonl").write_text(damage)
    assert compare([folder]).rows[0].train_seconds is None


def test_findings_stand_above_the_table(tmp_path: Path) -> None:
    found = replace(record(clean=90), findings=(Finding("zero-gradients", 0.1, 0.9, "most gradients are zero"),))
    folders = [put(tmp_path / "a-seed0", found), put(tmp_path / "a-seed1", found)]
    text = compare(folders).to_markdown()
    assert text.count("most gradients are zero") == 1
    assert text.index("> **Warning** a: ") < text.index("| run |")


def other_threat(evaluation: Evaluation) -> Evaluation:
    return replace(evaluation, threat=ThreatModel(eps=0.1))


def other_images(evaluation: Evaluation) -> Evaluation:
    return replace(evaluation, data=replace(evaluation.data, fingerprint="cc"))


def fewer_images(evaluation: Evaluation) -> Evaluation:
    return replace(record(total=50, clean=40), data=evaluation.data)


@pytest.mark.parametrize("change", [other_threat, other_images, fewer_images])
def test_runs_that_were_evaluated_differently_make_no_table(tmp_path: Path, change: object) -> None:
    assert callable(change)
    folders = [put(tmp_path / "a", record(clean=90)), put(tmp_path / "b", change(record(clean=90)))]
    with pytest.raises(
        CheckpointError, match=r"b was evaluated in .*/a in linf, eps 0.2 on 100 .* evaluate them alike"
    ):
        compare(folders)


def test_seeds_under_different_attacks_make_no_row(tmp_path: Path) -> None:
    folders = [put(tmp_path / "a-seed0", record(clean=90)), put(tmp_path / "a-seed1", record(clean=90, pgd=3))]
    with pytest.raises(
        CheckpointError, match="the seeds of a were evaluated under different attacks; evaluate them alike"
    ):
        compare(folders)


def test_a_missing_record_is_told_with_those_there(tmp_path: Path) -> None:
    empty = tmp_path / "a"
    with pytest.raises(CheckpointError, match=r"a holds no evaluation.json; make it with: layerwise evaluate .*a"):
        compare([empty])
    put(empty, record(clean=1), name="evaluation-best")
    with pytest.raises(CheckpointError, match=re.escape("a holds no evaluation.json; --record takes evaluation-best")):
        compare([empty])
    assert compare([empty], record="evaluation-best").rows[0].cells["clean"].value == 0.01


def test_the_worst_case_has_a_column_where_several_attacks_were_run(tmp_path: Path) -> None:
    table = compare([put(tmp_path / "a", record(clean=95, fgsm=40, pgd=30, worst=25))]).table()
    assert table.header == ("run", "seeds", "clean", "fgsm", "pgd", "worst case", "train s")
    assert table.rows[0][5].startswith("25.0 [")
