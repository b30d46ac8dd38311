"""What run folders tell, read for a report: damage of one file costs what that file holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerwise.errors import CheckpointError, LayerwiseError
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.record import Evaluation
from layerwise.report.comparison import Comparison, Standing, compared, grouped
from layerwise.report.document import clean
from layerwise.report.history import History, read_history
from layerwise.training.run import METRICS, VERSIONS, read_config


@dataclass(frozen=True)
class RunRead:
    """One run.

    Args:
        folder: of the run.
        evaluation: its record.
        history: what its training says.
        config: its settings, empty where they could not be read.
        versions: of packages, and the machine; empty likewise.
        problems: sentences about what could not be read.
    """

    folder: Path
    evaluation: Evaluation
    history: History
    config: dict[str, Any]
    versions: dict[str, Any]
    problems: tuple[str, ...]

    @property
    def measurements(self) -> list[Measurement]:
        """What was measured beside the attacks."""
        return [measured.found for measured in self.evaluation.measures]

    @property
    def method(self) -> str:
        """The class that it was trained with, as its settings say; empty where they do not."""
        method = self.config.get("method")
        return str(method.get("name", "")) if isinstance(method, dict) else ""


@dataclass(frozen=True)
class Group:
    """The runs of one recipe.

    Args:
        row: their line in the comparison.
        runs: one a seed.
    """

    row: Standing
    runs: tuple[RunRead, ...]

    @property
    def name(self) -> str:
        """What the report calls them."""
        return self.row.name

    @property
    def first(self) -> RunRead:
        """The run that stands for the others where one is enough."""
        return self.runs[0]


def gather(
    folders: Sequence[Path], *, record: str = "evaluation", trust: bool = False
) -> tuple[Comparison, list[Group]]:
    """Read everything that a report shows.

    Args:
        folders: run folders.
        record: which evaluation of each.
        trust: load the code of measures that are not this layerwise's.

    Raises:
        CheckpointError: an evaluation is missing or damaged, or the runs were evaluated differently.
    """
    groups = grouped(folders)
    read = {f: clean(Evaluation.read(f, record, trust=trust)) for members in groups.values() for f in members}
    comparison = clean(compared(groups, read))
    entries = [
        Group(row, tuple(_run(folder, read[folder]) for folder in group))
        for row, group in zip(comparison.rows, groups.values(), strict=True)
    ]
    return comparison, entries


def _run(folder: Path, evaluation: Evaluation) -> RunRead:
    """A run, whose other files may be damaged."""
    history = read_history(folder / METRICS)
    problems = [history.problem] if history.problem else []
    config, versions = {}, {}
    try:
        config = read_config(folder)
    except LayerwiseError as error:
        problems.append(f"{error}.")
    try:
        versions = _versions(folder)
    except CheckpointError as error:
        problems.append(f"{error}.")
    return RunRead(folder, evaluation, history, clean(config), clean(versions), clean(tuple(problems)))


def read(folder: Path, record: str) -> RunRead:
    """Read one run; only a damaged evaluation is an error.

    Raises:
        CheckpointError: it is damaged.
    """
    return _run(folder, clean(Evaluation.read(folder, record)))


def _versions(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / VERSIONS).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{VERSIONS} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{VERSIONS} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{VERSIONS} holds no object")
    return found
