"""The report: one page that needs nothing beside it, its markdown and its JSON, made from run folders alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from layerwise.evaluation.measurement import plain
from layerwise.files import write_text
from layerwise.report.comparison import Comparison
from layerwise.report.document import LONGEST, Block, Section, Table, Text, clean, code, escape, shorten, to_markdown
from layerwise.report.measures import COMPARISON, missing, parts, tables
from layerwise.report.runs import Group, RunRead, gather
from layerwise.report.tables import cost, evaluated_again, perturbations, provenance, settings
from layerwise.report.training import curves
from layerwise.report.verdict import Verdict, verdict

FILES = {"html": "report.html", "md": "report.md", "json": "report.json"}
"""The forms of a report, and the file of each."""

FOOTER = (
    "Made from the run folders alone. Of several seeds of a recipe, accuracies and corruption errors are means, training curves show "
    "each, all other figures show the first."
)


@dataclass(frozen=True)
class Report:
    """A report on runs that were evaluated alike.

    Args:
        comparison: the table.
        entries: the recipes.
        record: which evaluation of each run.
    """

    comparison: Comparison
    entries: tuple[Group, ...]
    record: str = "evaluation"

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One a recipe."""
        return clean(tuple(map(verdict, self.entries)))

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """What comes after the verdicts, in order; what was not measured says how it can be."""
        return tuple(Section(title, clean(tuple(blocks))) for title, blocks in self._sections())

    def _sections(self) -> Iterator[tuple[str, Iterable[Block]]]:
        entries = self.entries
        yield COMPARISON, [self.comparison.table(), *tables(COMPARISON, entries)]
        yield "Training", _or(curves(entries), "No curves are recorded; they come with:", "layerwise train RECIPE")
        yield from parts(entries)
        nothing = "No method here perturbs layers, or their sizes were not recorded; see a run of:"
        yield "Perturbations by layer", _or(perturbations(entries), nothing, "layerwise train slat-digits")
        yield "Cost", cost(entries)
        if lacking := missing(entries):
            yield "Not measured", self._not_measured(lacking)
        yield "Settings", _or(settings(entries), "They could not be read.")
        yield "Provenance", provenance(entries, self.record)

    def _not_measured(self, lacking: Mapping[str, Sequence[str]]) -> Iterator[Block]:
        """What the runs do not hold, and one command that measures it with what they do hold."""
        rows = tuple((title, ", ".join(names)) for title, names in lacking.items())
        yield Table(("part of this page", "measures"), rows, "None of the runs has these.", numbers=False)
        more = [name for names in lacking.values() for name in names]
        command = evaluated_again(self.entries[0].first, self.record, more)
        yield Text("Measure them, or some of them, for each run with:", command)

    @property
    def title(self) -> str:
        """What the page is called."""
        names = ", ".join(entry.name for entry in self.entries)
        shown = names if len(names) <= LONGEST else f"{len(self.entries)} recipes side by side"
        return f"Robustness on {shorten(self.comparison.data)}: {shown}"

    def to_html(self) -> str:
        """The page."""
        return html(self.title, self.verdicts, self.sections, footer=FOOTER)

    def to_markdown(self) -> str:
        """Verdicts and tables, and in place of each picture the sentence that tells what it shows; fit for a pull request."""
        return f"# {escape(self.title)}\n\n{self._verdicts()}\n{to_markdown(self.sections)}"

    def summary(self) -> str:
        """The verdicts and the table, in markdown."""
        return f"{self._verdicts()}\n{self.comparison.to_markdown()}"

    def _verdicts(self) -> str:
        lines = []
        for v in self.verdicts:
            command = f" {code(v.command)}" if v.command else ""
            lines.append(f"**{escape(v.name)}**: **{escape(v.figure)}** {escape(v.text)}{command}.\n")
            lines += [f"> **Warning** {escape(alarm)}\n" for alarm in v.alarms]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Verdicts, the comparison, and what each run folder told; figures' numbers are in the runs' own records."""
        found = {
            "title": self.title,
            "record": self.record,
            "verdicts": [asdict(v) for v in self.verdicts],
            **asdict(self.comparison),
            "runs": {entry.name: [_run(run) for run in entry.runs] for entry in self.entries},
        }
        return json.dumps(plain(found), indent=2, allow_nan=False) + "\n"

    def write(self, folder: Path) -> Path:
        """Write report.html, report.md and report.json; returns the page.

        Everything is made before anything is written, and each file is whole or not there.
        """
        made = {"json": self.to_json(), "md": self.to_markdown(), "html": self.to_html()}
        for form, text in made.items():
            write_text(folder / FILES[form], text)
        return folder / FILES["html"]


def html(title: str, verdicts: Sequence[Verdict], sections: Sequence[Section], *, footer: str) -> str:
    """A page that needs nothing beside it.

    Args:
        title: its heading.
        verdicts: what stands at its top.
        sections: what comes after them.
        footer: what a reader has to know about all of it.
    """
    from jinja2 import Environment, StrictUndefined

    from layerwise import __version__

    source = resources.files("layerwise.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    template = environment.from_string(source)
    shown = {"title": title, "verdicts": verdicts, "sections": sections, "footer": footer, "version": __version__}

    def render(weight: str) -> str:
        return template.render(**shown, weight=weight)

    return render(f"{len(render('0.0').encode()) / 1e6:.1f}")


def report(folders: Sequence[Path], *, record: str | None = None, trust: bool = False) -> Report:
    """Read runs and report on them.

    Args:
        folders: run folders; those beside each other whose names differ in `-seedN` are one recipe's.
        record: name of the evaluation in each folder, without `.json`; None is that of the suite `standard` where all have one, else
            the run's own.
        trust: load the code of measures that are not this layerwise's, to draw them.

    Raises:
        CheckpointError: an evaluation is missing or damaged, or the runs were evaluated on different images or in different threat
            models.
    """
    chosen = record or _strongest(folders)
    comparison, entries = gather(folders, record=chosen, trust=trust)
    return Report(comparison, tuple(entries), chosen)


def _strongest(folders: Sequence[Path]) -> str:
    """The record that the verdict asks for, where every run has it."""
    standard = "evaluation-standard"
    return standard if all((Path(f) / f"{standard}.json").is_file() for f in folders) else "evaluation"


def _or(blocks: Iterable[Block], nothing: str, command: str | None = None) -> list[Block]:
    """The blocks, or a sentence about why there are none."""
    return list(blocks) or [Text(nothing, command)]


def _run(run: RunRead) -> dict[str, Any]:
    measures = [{"measure": m.measure, "says": m.found.sentence()} for m in run.evaluation.measures]
    return {
        "folder": str(run.folder),
        "evaluation": {**plain(replace(run.evaluation, measures=())), "measures": measures},
        "epochs": run.history.of("epoch"),
        "sites": run.history.sites(),
        "config": run.config,
        "versions": run.versions,
        "problems": run.problems,
    }
