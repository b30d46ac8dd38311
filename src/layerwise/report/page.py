"""The report: one page that needs nothing beside it, its markdown and its JSON, made from run folders alone."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from layerwise.evaluation.measurement import plain
from layerwise.evaluation.record import escape
from layerwise.files import write_text
from layerwise.report.comparison import Comparison
from layerwise.report.document import LONGEST, Block, Section, Table, Text, clean, code, shorten, to_markdown
from layerwise.report.measures import COMPARISON, EXAMPLES, missing, parts, tables
from layerwise.report.overview import overview
from layerwise.report.runs import Group, RunRead, Waiting, gather
from layerwise.report.tables import cost, evaluated_again, perturbations, provenance, settings
from layerwise.report.training import curves
from layerwise.report.verdict import Verdict, caveat, verdict

FILES = {"html": "report.html", "md": "report.md", "json": "report.json"}
"""The forms of a report, and the file of each."""

FOLDED = ("Settings", "Provenance")
"""Sections that are closed at first."""

LEGEND = (
    "Green: better than the baseline in the worst case; amber: worse; grey: undecided, or the baseline; "
    "red: not to be believed. The baseline is"
)

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
        waiting: runs that are not trained to their end.
    """

    comparison: Comparison
    entries: tuple[Group, ...]
    record: str = "evaluation"
    waiting: tuple[Waiting, ...] = ()

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One a recipe."""
        found = [verdict(entry, self.comparison.baseline) for entry in self.entries]
        return clean(tuple([*found, *(Verdict(w.name, "", w.first.unfinished, "even") for w in self.waiting)]))

    @cached_property
    def remarks(self) -> tuple[Text, ...]:
        """What holds for several verdicts, and is said once below them."""
        found = [*caveat(self.entries)]
        if len(self.entries) > 1 and not all(e.row.against for e in self.entries if e.name != self.comparison.baseline):
            found.append(
                Text(
                    "Where no difference is given, a record does not say which images stay correct: evaluate them again."
                )
            )
        return clean(tuple(found))

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """What comes after the verdicts, in order; what was not measured says how it can be."""
        made = [Section(title, clean(tuple(blocks)), title in FOLDED) for title, blocks in self._sections()]
        return tuple(section for section in made if section.blocks)

    def _sections(self) -> Iterator[tuple[str, Iterable[Block]]]:
        entries, measured = self.entries, dict(parts(self.entries))
        yield COMPARISON, self._compared()
        yield EXAMPLES, measured.pop(EXAMPLES, [])
        yield "Training", curves([*entries, *self.waiting])
        yield from measured.items()
        yield "Perturbations by layer", perturbations(entries)
        yield "Cost", cost(entries) if entries else []
        yield "Not measured", self._not_measured()
        yield "Settings", settings([*entries, *self.waiting])
        yield "Provenance", provenance(entries, self.record) if entries else []

    def _compared(self) -> Iterator[Block]:
        if not self.entries:
            return
        yield replace(self.comparison.table(), sorts=len(self.entries) > 1)
        if differences := self.comparison.differences():
            yield differences
        yield from tables(COMPARISON, self.entries)
        if len(self.entries) > 1:
            yield overview(self.entries)

    def _not_measured(self) -> Iterator[Block]:
        """What the runs do not hold, and one command that measures it with what they do hold."""
        lacking = missing(self.entries) if self.entries else {}
        rows = [(title, ", ".join(names)) for title, names in lacking.items()]
        histories = [run.history for entry in self.entries for run in entry.runs]
        if histories and not any(history.curve("epoch", "clean") for history in histories):
            rows.append(("Validation accuracy", "layerwise train ... --training.eval_every 1"))
        if histories and not any(history.sites() for history in histories):
            rows.append(("Perturbations by layer", "a method that perturbs layers: layerwise train slat-digits"))
        if rows:
            yield Table(("part of this page", "measures"), tuple(rows), "None of the runs has these.", numbers=False)
        if lacking:
            more = [name for names in lacking.values() for name in names]
            runs = [run for entry in self.entries for run in entry.runs]
            yield from evaluated_again("Measure them, or some of them, with:", runs, self.record, more)

    @property
    def title(self) -> str:
        """What the page is called."""
        named: list[Group | Waiting] = [*self.entries, *self.waiting]
        names = ", ".join(entry.name for entry in named)
        shown = names if len(names) <= LONGEST else f"{len(named)} recipes side by side"
        return f"Robustness on {shorten(self.comparison.data)}: {shown}" if self.entries else f"Training of {shown}"

    def to_html(self) -> str:
        """The page."""
        coloured = any(entry.row.against for entry in self.entries)
        legend = [Text(f"{LEGEND} {self.comparison.baseline}.")] if coloured else []
        return html(self.title, self.verdicts, self.sections, remarks=[*self.remarks, *legend], footer=FOOTER)

    def to_markdown(self) -> str:
        """Verdicts and tables, and in place of each picture the sentence that tells what it shows; fit for a pull request."""
        return f"# {escape(self.title)}\n\n{self._verdicts()}\n{to_markdown(self.sections)}"

    def summary(self) -> str:
        """The verdicts and the table, in markdown."""
        return f"{self._verdicts()}\n{self.comparison.to_markdown() if self.entries else ''}"

    def _verdicts(self) -> str:
        lines = []
        for v in self.verdicts:
            figure = f"**{escape(v.figure)}** " if v.figure else ""
            lines.append(f"**{escape(v.name)}**: {figure}{escape(v.text)}.\n")
            lines += [f"{escape(note)}\n" for note in v.notes]
            lines += [f"> **Warning** {escape(alarm)}\n" for alarm in v.alarms]
        for said in self.remarks:
            lines.append(f"{escape(said.text)}{f' {code(said.command)}' if said.command else ''}\n")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Verdicts, the comparison, and what each run folder told; figures' numbers are in the runs' own records."""
        found = {
            "title": self.title,
            "record": self.record,
            "verdicts": [asdict(v) for v in self.verdicts],
            **asdict(self.comparison),
            "runs": {entry.name: [_run(run) for run in entry.runs] for entry in self.entries},
            "unfinished": {str(each.first.folder): each.first.unfinished for each in self.waiting},
        }
        return json.dumps(plain(found), indent=2, allow_nan=False) + "\n"

    def place(self, folder: Path) -> Path:
        """The folder, or the first of FOLDER-2, FOLDER-3, ... that holds no report on other runs."""
        names = (folder.with_name(f"{folder.name}-{k}" if k > 1 else folder.name) for k in itertools.count(1))
        return next(name for name in names if not (name / FILES["json"]).exists() or self._is_of(name))

    def _is_of(self, folder: Path) -> bool:
        """Whether the report there is on the same runs and the same record."""
        try:
            found = json.loads((folder / FILES["json"]).read_bytes())
            runs = [run["folder"] for group in found["runs"].values() for run in group] + list(found["unfinished"])
            record = found["record"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False
        mine = [str(run.folder) for entry in self.entries for run in entry.runs]
        return record == self.record and sorted(runs) == sorted([*mine, *(str(w.first.folder) for w in self.waiting)])

    def write(self, folder: Path) -> Path:
        """Write report.html, report.md and report.json; returns the page.

        Everything is made before anything is written, and each file is whole or not there.
        """
        made = {"json": self.to_json(), "md": self.to_markdown(), "html": self.to_html()}
        for form, text in made.items():
            write_text(folder / FILES[form], text)
        return folder / FILES["html"]


def html(
    title: str, verdicts: Sequence[Verdict], sections: Sequence[Section], *, footer: str, remarks: Sequence[Text] = ()
) -> str:
    """A page that needs nothing beside it.

    Args:
        title: its heading.
        verdicts: what stands at its top.
        sections: what comes after them.
        footer: what a reader has to know about all of it.
        remarks: what stands below the verdicts.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from layerwise import __version__

    source = resources.files("layerwise.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    template = environment.from_string(source)
    script = resources.files("layerwise.report").joinpath("sorting.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = {"title": title, "verdicts": verdicts, "remarks": remarks, "sections": sections, "footer": footer}
    shown |= {"version": __version__, "script": Markup(script), "digest": digest}

    def render(weight: str) -> str:
        return template.render(**shown, weight=weight)

    return render(f"{len(render('0.0').encode()) / 1e6:.1f}")


def report(
    folders: Sequence[Path], *, record: str | None = None, baseline: Path | None = None, trust: bool = False
) -> Report:
    """Read runs and report on them.

    Args:
        folders: run folders; those beside each other whose names differ in `-seedN` are one recipe's.
        record: name of the evaluation in each folder, without `.json`; None is that of the suite `standard` where all have one, else
            the run's own.
        baseline: the run that the others are compared with; None is the first.
        trust: load the code of measures that are not this layerwise's, to draw them.

    Raises:
        CheckpointError: an evaluation is missing or damaged, or the runs were evaluated on different images or in different threat
            models.
    """
    chosen = record or _strongest(folders)
    comparison, entries, waiting = gather(folders, record=chosen, baseline=baseline, trust=trust)
    return Report(comparison, tuple(entries), chosen, tuple(waiting))


def _strongest(folders: Sequence[Path]) -> str:
    """The record that the verdict asks for, where every run has it."""
    standard = "evaluation-standard"
    return standard if all((Path(f) / f"{standard}.json").is_file() for f in folders) else "evaluation"


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
