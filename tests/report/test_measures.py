"""Measures of somebody's own, and new ones: each has its place on the page."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, final

from layerwise.evaluation import Measured
from layerwise.evaluation.measurement import Measurement, Unknown
from layerwise.evaluation.measures import Alignment
from layerwise.report import report
from layerwise.report.document import Table
from layerwise.report.measures import parts
from layerwise.report.tables import evaluated_again
from layerwise.trees import parse_yaml
from tests.report.folders import put, record


def test_a_measure_of_somebody_elses_is_shown_as_it_speaks(tmp_path: Path) -> None:
    theirs = Unknown("theirs:Margin", "the margin is 3.", {"mean": 3})
    folder = put(tmp_path / "a", replace(record(clean=90, fgsm=40), measures=(Measured("theirs:margin", theirs),)))
    markdown = report([folder]).to_markdown()
    assert "## Measures of somebody's own" in markdown
    assert "| a | theirs:Margin | the margin is 3. |" in markdown


@final
@dataclass(frozen=True)
class Margin(Measurement):
    """A measurement that no other file names."""

    title: ClassVar[str] = "Margin"
    caption: ClassVar[str] = "Larger is better."
    drawn: ClassVar[bool] = False

    mean: float

    def sentence(self) -> str:
        return f"the margin is {self.mean}."

    def cells(self) -> dict[str, str]:
        return {"margin": str(self.mean)}


def test_a_new_measurement_has_its_place(tmp_path: Path) -> None:
    found = (Measured("margin", Margin(3.0)), Measured("alignment", Alignment(0.5, (0.5,), 0, 0.1)))
    (tmp_path / "a").mkdir()
    entry = report([put(tmp_path / "a", record(clean=90, fgsm=40))]).entries[0]
    run = replace(entry.first, evaluation=replace(entry.first.evaluation, measures=found))
    titles = [title for title, _ in parts([replace(entry, runs=(run,))])]
    assert titles == ["Gradient alignment", "Margin"]
    ((_, blocks),) = parts(
        [replace(entry, runs=(replace(run, evaluation=replace(run.evaluation, measures=found[:1])),))]
    )
    (shown,) = blocks
    assert isinstance(shown, Table)
    assert (shown.header, shown.rows) == (("run", "margin"), (("a", "3.0"),))
    assert shown.caption == "Larger is better. Of several seeds, the first."


def test_the_command_that_measures_more_keeps_what_is_there_lists_too(tmp_path: Path) -> None:
    some = Alignment(0.5, (0.5,), 0, 0.1)
    found = (Measured("audit conv1 radii=0.1,0.3", some), Measured("alignment images=9", some))
    folder = put(tmp_path / "a", replace(record(clean=90, fgsm=40), measures=found))
    run = report([folder]).entries[0].first
    (said,) = evaluated_again("again:", [run], "evaluation", ["rho"])
    typed = shlex.split(said.command or "")
    assert parse_yaml(typed[typed.index("--evaluation.measures") + 1], "") == [*(m.measure for m in found), "rho"]
