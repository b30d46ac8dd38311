"""Records: intervals from images and seeds, verdicts from the numbers alone, JSON that reads back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from layerwise.errors import CheckpointError, ConfigError
from layerwise.evaluation.intervals import mean_of
from layerwise.evaluation.record import packed
from layerwise.reproduce.bench import Outcome
from layerwise.reproduce.claims import FAILS, HOLDS, OPEN
from layerwise.reproduce.definitions import items
from layerwise.reproduce.index import records, write_index
from layerwise.reproduce.record import CellRecord, ClaimRecord, ColumnRecord, Picture, Record, RowRecord, failures
from layerwise.reproduce.render import render, to_markdown, write


def outcome(value: float, half: float = 1.0) -> Outcome:
    return Outcome(value=value, low=value - half, high=value + half, images=1000, what="pgd-5, linf, eps 8/255")


def cell(*values: float, paper: str | None = None, failed: tuple[str, ...] = ()) -> CellRecord:
    return CellRecord(paper=paper, ours=tuple(map(outcome, values)), failures=failed)


def row(name: str, **cells: CellRecord) -> RowRecord:
    return RowRecord(name=name, runs=(f"{name}-abc",), cells=cells, at=None, series="")


def made(**changes: Any) -> Record:
    fields: dict[str, Any] = {
        "item": "slat/table-x",
        "title": "Robust accuracy | all methods",
        "paper": "Park and Lee 2021",
        "scale": "reduced",
        "scale_title": "one GPU",
        "decides": True,
        "seeds": (0,),
        "columns": (
            ColumnRecord(name="PGD", unit="%", what="pgd-5, 1000 images"),
            ColumnRecord(name="time", unit="x", what=""),
        ),
        "rows": (
            row("A", PGD=cell(50.0, paper="51.63 +- 0.13"), time=cell(3.0)),
            row("B", PGD=cell(40.0, paper="48.90"), time=cell(failed=("no log",))),
        ),
        "claims": (ClaimRecord(id="order", says="A is above B.", predicate={"order": ["A", "B"], "in": "PGD"}),),
        "pictures": (),
        "axis": "",
        "notes": ("A note.",),
        "failures": (),
        "hardware": "a machine",
        "versions": {"torch": "2.13"},
        "complete": True,
        **changes,
    }
    return Record(**fields).with_verdicts()


def test_one_seed_has_the_images_interval_and_the_usual_scatter() -> None:
    found = cell(50.0).measured("%")
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((50, 50 - math.hypot(1, 0.5), 50 + math.hypot(1, 0.5)))
    ratio = cell(2.0).measured("x")
    assert ratio is not None
    assert ratio.high - ratio.value == pytest.approx(math.hypot(1, 0.1))


def test_several_seeds_have_students_interval() -> None:
    found = cell(50.0, 52.0, 51.0).measured("%")
    expected = mean_of([50.0, 52.0, 51.0])
    assert found is not None
    assert expected.half_width is not None
    assert found.value == 51
    assert found.high - 51 == pytest.approx(math.hypot(1, expected.half_width))


def test_no_seed_is_no_number() -> None:
    assert CellRecord(failures=("no",)).measured("%") is None


def test_verdicts_follow_from_the_numbers() -> None:
    assert [c.verdict for c in made().claims] == [HOLDS]
    near = made(rows=(row("A", PGD=cell(50.0)), row("B", PGD=cell(49.5))))
    assert [(c.verdict, c.would_be) for c in near.claims] == [(OPEN, HOLDS)]
    other = made(rows=(row("A", PGD=cell(30.0)), row("B", PGD=cell(40.0))))
    assert [c.verdict for c in other.claims] == [FAILS]
    assert [c.in_paper for c in made().claims] == [HOLDS]
    assert (made().held, other.held, near.held) == ((1, 1), (0, 1), (0, 0))


def test_a_scale_that_decides_nothing_only_tells_what_would_be() -> None:
    (claim,) = made(decides=False).claims
    assert (claim.verdict, claim.would_be) == (OPEN, HOLDS)


def test_a_claim_may_be_about_the_papers_number() -> None:
    near = ClaimRecord(id="n", says="Near.", predicate={"near": ["A", "A (printed)"], "within": 5, "in": "PGD"})
    (claim,) = made(claims=(near,)).claims
    assert (claim.verdict, claim.in_paper) == (HOLDS, HOLDS)


def test_a_record_reads_back(tmp_path: Path) -> None:
    record = made(pictures=(Picture(file="a.png", alt="A curve.", data={"A": {"x": [1.0]}}),), failures=("no picture",))
    file = write(record, tmp_path)
    assert file == tmp_path / "reduced" / "slat" / "table-x.json"
    assert Record.from_json(file.read_text(), source="x") == record
    summary = json.loads(file.read_text())["rows"][0]["cells"]["PGD"]["summary"]
    assert summary["difference"] == pytest.approx(50 - 51.63)


def test_changing_a_number_in_the_file_changes_the_verdict(tmp_path: Path) -> None:
    file = write(made(), tmp_path)
    body = json.loads(file.read_text())
    assert body["claims"][0]["verdict"] == HOLDS
    body["rows"][0]["cells"]["PGD"]["ours"][0].update(value=20.0, low=19.0, high=21.0)
    file.write_text(json.dumps(body))
    (record,) = render([file])
    assert record.claims[0].verdict == FAILS
    assert json.loads(file.read_text())["claims"][0]["verdict"] == FAILS
    assert "| A is above B. | holds | **does not hold** | does not hold |" in file.with_suffix(".md").read_text()


def test_a_verdict_that_is_written_by_hand_is_not_believed(tmp_path: Path) -> None:
    file = write(made(), tmp_path)
    file.write_text(file.read_text().replace('"verdict": "holds"', '"verdict": "does not hold"'))
    (record,) = render([file])
    assert record.claims[0].verdict == HOLDS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("seeds"), "has no seeds"),
        (lambda b: b.update(format="x"), "is not the record of a reproduction"),
        (lambda b: b["claims"][0].update(predicate={"grater": []}), "is no predicate of a claim"),
        (lambda b: b.update(rows=[1]), "has no rows of cells"),
    ],
)
def test_damage_is_told(change: Any, message: str) -> None:
    body = json.loads(made().to_json())
    change(body)
    with pytest.raises(CheckpointError, match=message):
        Record.from_json(json.dumps(body), source="a.json")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*table-9.json"):
        render([tmp_path / "table-9.json"])


def test_the_page_has_ours_beside_the_papers() -> None:
    page = to_markdown(made())
    assert page.startswith("# slat/table-x: Robust accuracy \\| all methods")
    assert "| A | 50.00 (48.88 to 51.12) \\[51.63 +- 0.13, -1.63\\] | 3 (1.99 to 4.01) |" in page
    assert "| B | 40.00 (38.88 to 41.12) \\[48.90, -8.9\\] | not available |" in page
    assert "Not available: no log (B / time)" in page
    assert "A note." in page
    assert "Not finished" not in page
    assert "Not finished" in to_markdown(replace(made(), complete=False))


def test_failures_are_told_once_with_their_places() -> None:
    lost = row("C", **{name: cell(failed=("gone",)) for name in "abcde"})
    assert failures(made(rows=(lost,))) == ["gone (C / a; C / b; C / c; and 2 more)"]


def test_what_the_self_checks_found_is_told() -> None:
    odd = replace(outcome(50.0), findings=("masked: many images",))
    page = to_markdown(made(rows=(row("A", PGD=CellRecord(ours=(odd, odd))), row("B", PGD=cell(40.0)))))
    assert "\nSelf-checks warn: masked (A / PGD)\n" in page
    assert "Self-checks" not in to_markdown(made())


def test_the_index_counts_what_holds_and_shows_every_page(tmp_path: Path) -> None:
    picture = Picture(file="figure-4.png", alt="A landscape.")
    write(made(item="slat/table-1"), tmp_path)
    write(made(item="slat/figure-4", claims=(), pictures=(picture,), columns=(), rows=()), tmp_path)
    Image.new("RGB", (30, 20)).save(tmp_path / "reduced" / "slat" / "figure-4.png")
    file = write_index(tmp_path / "reduced")
    assert [record.item for record in records(tmp_path / "reduced")] == ["slat/table-1", "slat/figure-4"]
    row = "| [slat/table-1](slat/table-1.md) | Robust accuracy \\| all methods | 3 | 1 of 1 | 1 | 1 |"
    assert row in file.read_text()
    assert "![A landscape.](slat/figure-4.png)" in file.read_text()
    page = file.with_suffix(".html").read_text()
    assert "<td>40.00 (38.88 to 41.12) [48.90, -8.9]</td>" in page
    assert "<td>holds</td>" in page
    assert 'width="30" height="20"' in page
    assert "no log" in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_record_is_rendered_with_the_claims_that_its_item_has_now(tmp_path: Path) -> None:
    (record,) = render([write(made(item="slat/table-1"), tmp_path)])
    assert [claim.id for claim in record.claims] == [claim.id for claim in items()["slat/table-1"].claims]


def test_rows_are_compared_with_the_controls_image_by_image() -> None:
    def kept(right: int, first: int = 0) -> CellRecord:
        bits = packed(first <= n < first + right for n in range(1000))
        return CellRecord(ours=(replace(outcome(right / 10), kept=bits),))

    rows = (
        row("A", PGD=kept(400)),
        row("B", PGD=kept(405, first=20)),
        row("C", PGD=kept(500)),
        row("D", PGD=kept(300)),
    )
    page = to_markdown(made(rows=rows, controls=("A", "gone")))
    assert "PGD beside A. Above: 1 (C). Below: 1 (D). Not told apart: 1 (B)." in page
    assert "Highest PGD: C (50.0 %); B (40.5 %); A (40.0 %)." in page
    assert "| C | +10.0 points \\[+8.1, +11.8\\], better |" in page
    assert "Accuracy minus that of A, with its 95 % interval: the same 1,000 images, McNemar's test." in page
    assert "beside A" not in to_markdown(made(rows=rows, controls=("A",), decides=False))
    assert "beside" not in to_markdown(made(rows=rows)).replace("beside it", "")
    assert "minus" not in to_markdown(made(controls=("A",)))  # nothing is known of single images
