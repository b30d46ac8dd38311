"""A table of runs: one row a recipe, the mean over its seeds, intervals everywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from layerwise.errors import CheckpointError
from layerwise.evaluation import Evaluation, mean_of
from layerwise.evaluation.record import Result
from layerwise.files import atomic

SEED = re.compile(r"-seed\d+$")


@dataclass(frozen=True)
class Cell:
    """An accuracy.

    Args:
        accuracy: mean over the seeds, in [0, 1].
        low: lower end of the 95 % interval.
        high: upper end.
    """

    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One recipe.

    Args:
        name: of the runs without `-seedN`.
        seeds: how many runs.
        images: judged in each.
        cells: {attack: accuracy}.
        train_seconds: mean training time, None where it was not recorded.
        findings: what the self-checks of any seed found.
    """

    name: str
    seeds: int
    images: int
    cells: dict[str, Cell]
    train_seconds: float | None
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs judged on the same images in the same threat model.

    Args:
        data: name of the data set.
        threat: what against, as a sentence.
        rows: in the order in which they were given.
    """

    data: str
    threat: str
    rows: tuple[Row, ...]

    def to_markdown(self) -> str:
        """The table; the best of a column is marked only where its interval overlaps no other's."""
        attacks = list(dict.fromkeys(a for row in self.rows for a in row.cells))
        lines = [
            f"Accuracy in % on {self.data}, {self.threat}; 95 % intervals over seeds (Student's t), "
            "or over images where there is one seed (Wilson).\n",
            "| run | seeds | images | " + " | ".join(attacks) + " | train s |",
            "|---|---:|---:|" + "---:|" * (len(attacks) + 1),
        ]
        for row in self.rows:
            cells = [_percent(row.cells[a], self._stands_out(row, a)) if a in row.cells else "" for a in attacks]
            seconds = "" if row.train_seconds is None else f"{row.train_seconds:.1f}"
            lines.append(f"| {row.name} | {row.seeds} | {row.images} | " + " | ".join(cells) + f" | {seconds} |")
        warnings = [f"> **Warning** {row.name}: {finding}" for row in self.rows for finding in row.findings]
        return "\n".join([*warnings, *([""] if warnings else []), *lines]) + "\n"

    def _stands_out(self, row: Row, attack: str) -> bool:
        others = [r.cells[attack] for r in self.rows if r is not row and attack in r.cells]
        return bool(others) and row.cells[attack].low > max(cell.high for cell in others)

    def to_json(self) -> str:
        """The table as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


def _percent(cell: Cell, marked: bool) -> str:
    text = f"{100 * cell.accuracy:.1f} ± {50 * (cell.high - cell.low):.1f}"
    return f"**{text}**" if marked else text


def compare(folders: Sequence[Path]) -> Comparison:
    """Read the evaluations of finished runs.

    Args:
        folders: run folders; those whose names differ in `-seedN` only make one row.

    Raises:
        CheckpointError: a folder holds no evaluation, or the runs were judged on different images or in different threat models.
    """
    groups: dict[str, list[Path]] = {}
    for folder in folders:
        groups.setdefault(SEED.sub("", folder.name), []).append(folder)
    read = {folder: _evaluation(folder) for folder in folders}
    first = read[folders[0]]
    for folder, evaluation in read.items():
        if (evaluation.threat, evaluation.data.fingerprint) != (first.threat, first.data.fingerprint):
            raise CheckpointError(
                f"{folder} was judged in {evaluation.threat} on {evaluation.data.name}, {folders[0]} in {first.threat} on "
                f"{first.data.name}: evaluate them alike, with the same --evaluation.eps and --evaluation.num_examples"
            )
    rows = tuple(_row(name, [read[f] for f in members], members) for name, members in groups.items())
    return Comparison(first.data.name, str(first.threat), rows)


def _evaluation(folder: Path) -> Evaluation:
    file = folder / "evaluation.json"
    try:
        text = file.read_bytes()
    except OSError:
        raise CheckpointError(f"{folder} holds no evaluation; make it with: layerwise evaluate {folder}") from None
    return Evaluation.from_json(text, source=str(file))


def _row(name: str, evaluations: list[Evaluation], folders: Iterable[Path]) -> Row:
    attacks = [r.attack for r in evaluations[0].results]
    for evaluation in evaluations:
        if [r.attack for r in evaluation.results] != attacks:
            raise CheckpointError(f"the seeds of {name} were judged under different attacks; evaluate them alike")
    seconds = [s for s in map(_train_seconds, folders) if s is not None]
    return Row(
        name=name,
        seeds=len(evaluations),
        images=evaluations[0].worst.total,
        cells={attack: _cell([e[attack] for e in evaluations]) for attack in attacks},
        train_seconds=sum(seconds) / len(seconds) if seconds else None,
        findings=tuple(dict.fromkeys(str(finding) for e in evaluations for finding in e.findings)),
    )


def _cell(results: list[Result]) -> Cell:
    mean = mean_of([r.accuracy for r in results])
    if mean.half_width is None:
        low, high = results[0].count.interval
        return Cell(mean.value, low, high)
    return Cell(mean.value, max(0.0, mean.value - mean.half_width), min(1.0, mean.value + mean.half_width))


def _train_seconds(folder: Path) -> float | None:
    """Seconds that the loop spent on training, the sum of what its metrics say."""
    try:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return None
    found = [
        line["train_seconds"]
        for line in lines
        if isinstance(line, dict) and isinstance(line.get("train_seconds"), float | int)
    ]
    return float(found[-1]) if found else None


def write(comparison: Comparison, folder: Path) -> Path:
    """Write `report.md` and `report.json`; returns the markdown file."""
    for name, text in (("report.json", comparison.to_json()), ("report.md", comparison.to_markdown())):
        with atomic(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return folder / "report.md"
