"""A table of runs: one row a recipe, the mean over its seeds, intervals everywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from layerwise.errors import CheckpointError
from layerwise.evaluation import Evaluation, mean_of
from layerwise.evaluation.record import Result
from layerwise.files import write_text

SEED = re.compile(r"-seed\d+$")


@dataclass(frozen=True)
class Cell:
    """An accuracy.

    Args:
        accuracy: mean over the seeds, in [0, 1].
        low: lower end of the 95 % interval; over few seeds it may lie below 0.
        high: upper end; it may lie above 1.
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
        images = self.rows[0].images if self.rows else 0
        lines = [
            f"Accuracy in % on {images} images of {self.data}, {self.threat}; 95 % intervals over seeds (Student's t), "
            "or over images where there is one seed (Wilson).\n",
            "| run | seeds | " + " | ".join(attacks) + " | train s |",
            "|---|---:|" + "---:|" * (len(attacks) + 1),
        ]
        for row in self.rows:
            cells = [_percent(row.cells[a], self._stands_out(row, a)) if a in row.cells else "" for a in attacks]
            seconds = "" if row.train_seconds is None else f"{row.train_seconds:.1f}"
            lines.append(f"| {row.name} | {row.seeds} | " + " | ".join(cells) + f" | {seconds} |")
        warnings = [f"> **Warning** {row.name}: {finding}" for row in self.rows for finding in row.findings]
        return "\n".join([*warnings, *([""] if warnings else []), *lines]) + "\n"

    def _stands_out(self, row: Row, attack: str) -> bool:
        others = [r.cells[attack] for r in self.rows if r is not row and attack in r.cells]
        return bool(others) and row.cells[attack].low > max(cell.high for cell in others)

    def to_json(self) -> str:
        """The table as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


def _percent(cell: Cell, marked: bool) -> str:
    # The longer arm: Wilson's interval is not symmetric.
    arm = max(cell.high - cell.accuracy, cell.accuracy - cell.low)
    text = f"{100 * cell.accuracy:.1f} ± {100 * arm:.1f}"
    return f"**{text}**" if marked else text


def compare(folders: Sequence[Path], *, record: str = "evaluation") -> Comparison:
    """Read the evaluations of finished runs.

    Args:
        folders: run folders; those beside each other whose names differ in `-seedN` only make one row.
        record: name of the record in each folder, without `.json`.

    Raises:
        CheckpointError: a folder holds no such record, or the runs were judged on different images or in different threat models.
    """
    groups: dict[Path, list[Path]] = {}
    for path, folder in {Path(folder).resolve(): Path(folder) for folder in folders}.items():
        groups.setdefault(path.with_name(SEED.sub("", path.name)), []).append(folder)
    read = {folder: _evaluation(folder, record) for members in groups.values() for folder in members}
    (one, first), *others = read.items()
    for folder, evaluation in others:
        if _circumstances(evaluation) != _circumstances(first):
            raise CheckpointError(
                f"{folder} was judged in {_told(evaluation)}, {one} in {_told(first)}: evaluate them alike, with the "
                "same settings and one --record NAME, and report that record"
            )
    rows = tuple(_row(path.name, [read[f] for f in members], members) for path, members in groups.items())
    return Comparison(first.data.name, str(first.threat), rows)


def _circumstances(evaluation: Evaluation) -> tuple[object, ...]:
    """What has to be equal in one table: threat model and images."""
    data = evaluation.data
    return evaluation.threat, data.name, data.size, data.seed, data.fingerprint, evaluation.worst.total


def _told(evaluation: Evaluation) -> str:
    data = evaluation.data
    chosen = f"{evaluation.worst.total} of {data.size} images of {data.name}"
    return f"{evaluation.threat} on {chosen} (seed {data.seed}, the first ones' digest {data.fingerprint})"


def _evaluation(folder: Path, record: str) -> Evaluation:
    file = folder / f"{record}.json"
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        there = folder.is_dir() and sorted(
            f.stem for f in folder.glob("evaluation*.json") if not f.stem.endswith(".measures")
        )
        hint = f"--record takes {', '.join(there)}" if there else f"make it with: layerwise evaluate {folder}"
        raise CheckpointError(f"{folder} holds no {file.name}; {hint}") from None
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
    return Cell(mean.value, mean.value - mean.half_width, mean.value + mean.half_width)


def _train_seconds(folder: Path) -> float | None:
    """Seconds that the loop took, with its looks at the validation split, summed over the calls that a resumed run needed."""
    try:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        epochs = [float(line["seconds"]) for line in lines if line["kind"] == "epoch"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # Each call counts from 0, so a smaller number than the one before begins another call.
    steps = [now - before if now >= before else now for before, now in pairwise([0.0, *epochs])]
    return sum(steps) if epochs else None


def write(comparison: Comparison, folder: Path) -> Path:
    """Write `report.md` and `report.json`; returns the markdown file."""
    for name, text in (("report.json", comparison.to_json()), ("report.md", comparison.to_markdown())):
        write_text(folder / name, text)
    return folder / "report.md"
