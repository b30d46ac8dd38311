"""What run folders tell, read for a report: damage of one file costs what that file holds."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerwise.errors import CheckpointError, ConfigError, LayerwiseError, did_you_mean
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.record import Evaluation, records
from layerwise.files import is_held
from layerwise.report.comparison import Comparison, Standing, compared, grouped
from layerwise.report.document import clean
from layerwise.report.history import History, read_history
from layerwise.training.asked import OWN
from layerwise.training.run import CONFIG, METRICS, VERSIONS, WEIGHTS, read_config
from layerwise.trees import at


@dataclass(frozen=True)
class Trained:
    """What a run folder says of its training.

    Args:
        folder: of the run.
        history: what its training says.
        config: its settings, empty where they could not be read.
        versions: of packages, and the machine; empty likewise.
        problems: sentences about what could not be read.
    """

    folder: Path
    history: History
    config: dict[str, Any]
    versions: dict[str, Any]
    problems: tuple[str, ...]

    @property
    def state(self) -> str:
        """How far it was trained, where that is not to its end."""
        done, planned = self.history.steps, self.history.planned
        return f"its training was cut at {done:,} of {planned:,} steps" if planned and done < planned else ""

    @property
    def unfinished(self) -> str:
        """How far a training is that has not stored its last weights; empty of others."""
        if (self.folder / WEIGHTS["last"]).exists() or not (self.folder / CONFIG).is_file():
            return ""
        training = self.config.get("training")
        epochs = training.get("epochs") if isinstance(training, dict) else None
        at = f"epoch {self.history.epoch} of {epochs}" if epochs else f"epoch {self.history.epoch}"
        if is_held(self.folder):
            return f"still training ({at})"
        return f"stopped in {at}; go on with: layerwise train --resume {shlex.quote(str(self.folder))}"

    @property
    def own(self) -> bool:
        """Whether `fit` was given a network or data in Python that no command can make again."""
        return any(at(self.config, f"{part}.{OWN}") is not None for part in ("model", "data"))

    @property
    def method(self) -> str:
        """The class that it was trained with, as its settings say; empty where they do not."""
        method = self.config.get("method")
        return str(method.get("name", "")) if isinstance(method, dict) else ""


@dataclass(frozen=True)
class RunRead(Trained):
    """A run that was evaluated.

    Args:
        evaluation: its record.
    """

    evaluation: Evaluation

    @property
    def measurements(self) -> list[Measurement]:
        """What was measured beside the attacks."""
        return [measured.found for measured in self.evaluation.measures]


@dataclass(frozen=True)
class Waiting:
    """A run that is not trained to its end, and of which there are only curves.

    Args:
        name: what the report calls it.
        runs: the one.
    """

    name: str
    runs: tuple[Trained]

    @property
    def first(self) -> Trained:
        """The one."""
        return self.runs[0]


@dataclass(frozen=True)
class Group:
    """The runs of one recipe.

    Args:
        row: their line in the comparison.
        runs: one a seed.
        named: whether it is the baseline that was asked for.
    """

    row: Standing
    runs: tuple[RunRead, ...]
    named: bool = False

    @property
    def name(self) -> str:
        """What the report calls them."""
        return self.row.name

    @property
    def first(self) -> RunRead:
        """The run that stands for the others where one is enough."""
        return self.runs[0]


def gather(
    folders: Sequence[Path], *, record: str = "evaluation", baseline: Path | None = None, trust: bool = False
) -> tuple[Comparison, list[Group], list[Waiting]]:
    """Read everything that a report shows.

    Args:
        folders: run folders.
        record: which evaluation of each.
        baseline: the run that the others are compared with, one of them; None is the first.
        trust: load the code of measures that are not this layerwise's.

    Raises:
        CheckpointError: an evaluation is missing or damaged, or the runs were evaluated differently.
        ConfigError: the baseline is none of them, or a folder holds runs and is none.
    """
    for folder in folders:
        check_folder(folder)
    waiting, evaluated = [], []
    for folder in folders:
        told = None if (folder / f"{record}.json").exists() else trained(folder)
        if told is not None and told.unfinished:
            waiting.append(Waiting(clean(folder.resolve().name), (told,)))
        else:
            evaluated.append(folder)
    if not evaluated:
        return Comparison("", "", (), ""), [], waiting
    for folder in evaluated:
        if not records(folder) and trained(folder).own:
            raise CheckpointError(
                f"{folder} holds no {record}.json, and was trained in Python of what has no name; make it there: "
                f"{evaluated_in_python(folder, record)}"
            )
    groups = grouped(evaluated)
    read = {f: clean(Evaluation.read(f, record, trust=trust)) for members in groups.values() for f in members}
    named = _named(groups, baseline)
    comparison = clean(compared(groups, read, baseline=named))
    entries = [
        Group(
            row, tuple(_run(folder, read[folder]) for folder in group), named is not None and row.name == clean(named)
        )
        for row, group in zip(comparison.rows, groups.values(), strict=True)
    ]
    return comparison, entries, waiting


def evaluated_in_python(folder: Path, record: str, *options: str) -> str:
    """The call that evaluates a run of a network that no command can make again, and stores the record.

    >>> evaluated_in_python(Path("runs/mine"), "standard", "eot=5")
    "layerwise.evaluate(layerwise.load('runs/mine', model=network), data, eot=5).write('runs/mine', 'standard')"
    """
    where = repr(str(folder))
    arguments = ", ".join([f"layerwise.load({where}, model=network)", "data", *options])
    return f"layerwise.evaluate({arguments}).write({where}, {record!r})"


def check_folder(folder: Path) -> None:
    """Complain about what is no run folder, with what to type instead.

    Raises:
        CheckpointError: it is not there, or it holds run folders.
    """
    if not folder.is_dir():
        beside = [str(path.parent) for path in folder.parent.glob(f"*/{CONFIG}")]
        hint = did_you_mean(str(folder), beside) if beside else "give a run folder, such as runs/slat-digits"
        raise CheckpointError(f"there is no folder {folder}; {hint}")
    inside = 0 if (folder / CONFIG).exists() else sum(1 for _ in folder.glob(f"*/{CONFIG}"))
    if inside and not any(folder.glob("evaluation*.json")):
        typed = f"{shlex.quote(str(folder))}/*"
        raise CheckpointError(f"{folder} holds {inside} run{'s' * (inside > 1)}: type layerwise report {typed}")


def _named(groups: Mapping[str, Sequence[Path]], baseline: Path | None) -> str | None:
    """The group of a run, or of that name."""
    if baseline is None:
        return None
    wanted = baseline.resolve()
    for name, members in groups.items():
        if name == str(baseline) or wanted in [member.resolve() for member in members]:
            return name
    raise ConfigError(f"--baseline {baseline} is none of the runs; {did_you_mean(str(baseline), groups)}")


def _run(folder: Path, evaluation: Evaluation) -> RunRead:
    """A run, whose other files may be damaged."""
    return RunRead(**vars(trained(folder)), evaluation=evaluation)


def trained(folder: Path) -> Trained:
    """What a folder says of its training; its files may be damaged."""
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
    return Trained(folder, history, clean(config), clean(versions), clean(tuple(problems)))


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
