"""Experiments: a configuration turned into data, network, method, training run and evaluation."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerwise import data as datasets
from layerwise import models
from layerwise.core.arguments import named
from layerwise.core.checks import of_kind
from layerwise.data import ImageData
from layerwise.errors import CheckpointError, ConfigError, did_you_mean
from layerwise.evaluation.record import Evaluation
from layerwise.evaluation.run import FACTS, evaluate_run
from layerwise.evaluation.settings import EvaluationSettings
from layerwise.evaluation.watching import watcher
from layerwise.experiments import recipe
from layerwise.experiments.choices import command_line
from layerwise.experiments.settings import (
    SCHEMA,
    DataSettings,
    Experiment,
    ModelSettings,
    make_phases,
    read,
    with_settings,
)
from layerwise.experiments.trust import trusting
from layerwise.files import held, write_text
from layerwise.methods import Method
from layerwise.methods.sources import with_networks
from layerwise.reading import read_record
from layerwise.training import WEIGHTS, FitResult, fit, load_weights
from layerwise.training.asked import OWN
from layerwise.training.checkpoint import found as checkpoints_in
from layerwise.training.run import CHECKPOINTS, CONFIG, METRICS, Run, Weights
from layerwise.trees import Tree, at, load_yaml

__all__ = [
    "SCHEMA",
    "DataFacts",
    "DataSettings",
    "Evaluation",
    "EvaluationSettings",
    "Experiment",
    "ModelSettings",
    "best_device",
    "build_model",
    "check_run",
    "evaluate_run",
    "load",
    "load_data",
    "make_phases",
    "open_run",
    "read",
    "read_run",
    "run_of",
    "train",
    "train_seeds",
]

logger = logging.getLogger("layerwise")


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a network must know about the images that it was trained on.

    Args:
        name: of the data set.
        classes: in the order of their numbers.
        shape: (C, H, W).
        mean: per channel, of pixels in [0, 1].
        std: likewise.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)


def load_data(settings: DataSettings, *, trust: bool = False) -> ImageData:
    """The data set.

    Args:
        settings: which.
        trust: see `build_model`.
    """
    _refuse("data", settings.options, ("name", "root", "validation", "download", "trust"))
    return datasets.load(
        settings.name,
        root=settings.root,
        validation=settings.validation,
        download=settings.download,
        trust=trust,
        **settings.options,
    )


def build_model(settings: ModelSettings, data: ImageData | DataFacts, *, trust: bool = False) -> nn.Module:
    """The network, with fresh weights from PyTorch's own random state.

    Args:
        settings: which.
        data: gives shape, number of classes and the pixels' statistics.
        trust: import the code that the name may point at; what a trusted text named is imported already.
    """
    _refuse("model", settings.options, ("name", "num_classes", "shape", "mean", "std", "trust"))
    return models.build(
        settings.name,
        num_classes=data.num_classes,
        shape=data.shape,
        mean=data.mean if settings.normalize else None,
        std=data.std if settings.normalize else None,
        trust=trust,
        **settings.options,
    )


def _refuse(section: str, options: dict[str, Any], settled: Sequence[str]) -> None:
    """Complain about options that the experiment itself settles."""
    if found := [name for name in settled if name in options]:
        own = (
            f"type --{section}.{found[0]}"
            if found[0] in ("name", "root", "validation", "download")
            else "the data tell it"
        )
        raise ConfigError(f"{section}.options: {found[0]!r} is none of the options; {own}")


def best_device() -> torch.device:
    """The accelerator, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    experiment: Experiment,
    tree: Tree,
    *,
    folder: Path,
    resume: bool = False,
    progress: bool = True,
    weights: Weights = "last",
) -> tuple[FitResult, Evaluation]:
    """Train one run and evaluate it on the test set.

    Args:
        experiment: what to do.
        tree: the same, resolved, for the run folder.
        folder: the run's folder; a new one is removed again if the run ends before its first checkpoint.
        resume: go on where the run in the folder stopped.
        progress: show progress.
        weights: which of the run are evaluated; the run has to make them.

    Returns:
        What `fit` gives, and the evaluation, also written to `evaluation.json` and `evaluation.md` (`evaluation-best.json`, ...).
    """
    if (folder / CONFIG).is_file():  # refused before anything is read, or a reference is trained
        Run(folder).open(tree, resume=resume)
    data = load_data(experiment.data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.training.seed)
        model = build_model(experiment.model, data)
    if experiment.model.start is not None and not checkpoints_in(folder / CHECKPOINTS):
        start = str(experiment.model.start)
        load_weights(model, run_of(start, "model.start", experiment, runs=folder.parent, progress=progress))
    logger.info(
        "%s: %s, %s on %s, %s epochs",
        folder,
        type(experiment.method).__name__,
        experiment.model.name,
        data.name,
        experiment.training.epochs,
    )

    for sentence in _other_radii(experiment):
        logger.warning("%s", sentence)

    def network(source: str) -> nn.Module:
        return load(run_of(source, "method", experiment, runs=folder.parent, progress=progress))

    def ready(method: Method) -> Method:
        return with_networks(method.under(experiment.threat), network)

    result = fit(
        model,
        ready(experiment.method),
        data,
        threat=experiment.threat,
        training=experiment.training,
        phases=[p if p.method is None else replace(p, method=ready(p.method)) for p in make_phases(experiment)],
        run=folder,
        config=tree,
        watch=watcher(experiment.evaluation, data, threat=experiment.threat),
        resume=resume,
        progress=progress,
    )
    write_text(folder / FACTS, json.dumps(asdict(_facts_of(data)), indent=1) + "\n")
    if weights != "last":
        load_weights(model, folder, weights)
    try:
        return result, evaluate_run(
            model,
            data,
            experiment.evaluation,
            threat=experiment.threat,
            name=folder.name if weights == "last" else f"{folder.name} ({weights} weights)",
            folder=folder,
            record="evaluation" if weights == "last" else f"evaluation-{weights}",
            progress=progress,
            load=load,
        )
    except KeyboardInterrupt:
        again = f"layerwise evaluate {shlex.quote(str(folder))}"
        raise KeyboardInterrupt(f"stopped after training; evaluate the network with: {again}") from None


def _other_radii(experiment: Experiment) -> Iterator[str]:
    """What has to be said where a method is trained against something else than it is evaluated against."""
    for key, threat in experiment.method.threats().items():
        if threat != experiment.threat:
            yield (
                f"method.{key} trains against {threat}, the evaluation is against {experiment.threat}: an unequal comparison unless it is "
                f"meant; --method.{key} null trains against the same"
            )


def run_of(source: str, where: str, experiment: Experiment, *, runs: Path, progress: bool) -> Path:
    """The run or file that a setting names; a recipe without a finished run is trained first.

    Args:
        source: what the setting says; a recipe may name code only if a trusted text has named the recipe, see `settings`.
        where: the setting, for messages.
        experiment: whose setting it is.
        runs: folder of the run folders.
        progress: show progress.
    """
    check_source(source, where)
    is_file = source.endswith(RECIPES)
    if is_file or source in recipe.names():
        folder = runs / Path(source).stem if is_file else runs / source
        with shared(folder) as missing:
            if missing:
                reference, tree = read(source, _same_place(experiment))
                train(reference, tree, folder=folder, resume=True, progress=progress)
        source = str(folder)
    return Path(source)


@contextmanager
def shared(folder: Path) -> Iterator[bool]:
    """Whether a run that several jobs need is still to be trained: the first job to ask does it, the others wait here."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with held(folder.with_name(f"{folder.name}.shared"), wait=True):
        yield not (folder / WEIGHTS["last"]).is_file()


RECIPES = (".yaml", ".yml")
"""How the names of a recipe's file end."""


def check_source(source: str, where: str) -> None:
    """Complain about a run, file or recipe that is not there.

    Raises:
        ConfigError: with the recipes whose names are closest.
    """
    if source not in recipe.names() and not Path(source).exists():
        raise ConfigError(
            f"{where}: there is no run, file or recipe {source!r}; {did_you_mean(source, recipe.names())}"
        )


def _same_place(experiment: Experiment) -> list[str]:
    """The settings that say where data are, what computes and what is evaluated on, for another experiment beside this one."""
    data, training = experiment.data, experiment.training
    root = [] if data.root is None else [f"--data.root={data.root}"]
    split = f"--evaluation.split={experiment.evaluation.split}"  # a search does not look at the test images on its way either
    return [*root, f"--data.download={data.download}".lower(), f"--training.accelerator={training.accelerator}", split]


def train_seeds(tree: Tree, *, folder: Path, seeds: int, resume: bool = False, progress: bool = True) -> list[Path]:
    """Train and evaluate several seeds from the tree's own on, in FOLDER-seed0, FOLDER-seed1, ...; with `resume`, finished ones are kept.

    Returns:
        The run folders.

    Raises:
        ConfigError: no seeds.
        CheckpointError: a folder is taken and `resume` is not asked for; nothing is trained then.
    """
    folders = seed_folders(tree, folder=folder, seeds=seeds, resume=resume)
    for seed, run in folders.items():
        if not is_evaluated(run):
            experiment, resolved = with_settings(tree, {"training.seed": seed}, where=str(run))
            train(experiment, resolved, folder=run, resume=resume, progress=progress)
    return list(folders.values())


def is_evaluated(run: Path) -> bool:
    """Whether a run has been trained and evaluated."""
    return (run / "evaluation.json").is_file()


def seed_folders(tree: Tree, *, folder: Path, seeds: int, resume: bool) -> dict[int, Path]:
    """{seed: run folder}, see `train_seeds`."""
    if seeds < 1:
        raise ConfigError(f"seeds={seeds} trains nothing; type --seeds 3")
    first = tree["training"]["seed"]
    folders = {seed: folder.with_name(f"{folder.name}-seed{seed}") for seed in range(first, first + seeds)}
    for run in folders.values():
        if not resume and (run / CONFIG).exists():
            raise CheckpointError(
                f"{run} already holds a run; add --resume to keep and finish what is there, or --name another"
            )
    return folders


def open_run(
    folder: Path, overrides: Sequence[str] = (), *, trust: bool = False, which: Weights = "last"
) -> tuple[Experiment, nn.Module, ImageData]:
    """A finished run: its experiment, its network with weights (on the accelerator, if there is one), its data.

    Args:
        folder: the run's folder.
        overrides: settings that differ now, `--threat.eps 4/255`; of `data`, `model`, `threat` and `evaluation` only.
        trust: allow the run to name code outside layerwise.
        which: `"last"`, `"best"` (by robust validation accuracy), `"ema"` or `"best-ema"`.

    Raises:
        CheckpointError: no run there, training has not finished, or weights that do not fit.
        ConfigError: settings that do not fit.
    """
    with trusting(trust):
        experiment = _read_run(folder, overrides, which=which)
    data = load_data(experiment.data)
    return experiment, _network(folder, experiment, data, which=which).to(best_device()), data


@named
def load(
    folder: str | Path, *, model: nn.Module | None = None, which: Weights = "last", trust: bool = False
) -> nn.Module:
    """The trained network of a run, in evaluation mode; the data need not be there.

    Args:
        folder: the run's folder.
        model: a network of your own that the weights go into; None makes the one that the run names.
        which: see `open_run`.
        trust: allow the run to name code outside layerwise.

    Raises:
        CheckpointError: see `open_run`.
    """
    of_kind("the run", folder, str | Path, example="its folder, such as 'runs/slat-digits'")
    run = Path(folder).expanduser()
    if model is not None:
        check_run(run)
        load_weights(model, run, which)
        return model.eval()
    with trusting(trust):
        experiment = _read_run(run, which=which)
    facts = _read_facts(run / FACTS) if (run / FACTS).is_file() else load_data(experiment.data)
    return _network(run, experiment, facts, which=which).eval()


def check_run(folder: Path) -> None:
    """Complain about a folder that holds no run.

    Raises:
        CheckpointError: with the closest of those beside it.
    """
    if (folder / CONFIG).is_file():
        return
    inside = sorted(folder.glob(f"*/{CONFIG}"))
    beside = sorted(path.parent.name for path in folder.parent.glob(f"*/{CONFIG}"))
    if left := [name for name in (CHECKPOINTS, *WEIGHTS.values()) if (folder / name).exists()]:
        again = (
            f"`layerwise train RECIPE --runs {folder.parent} --name {folder.name} --resume`, with the recipe of before,"
        )
        raise CheckpointError(f"{folder} has {left[0]}, but {CONFIG} is missing; {again} writes it again")
    what = f"is no run folder: it holds no {CONFIG}" if folder.exists() else "does not exist"
    within = Path("runs", folder)  # where runs go unless --runs says otherwise
    if inside:
        hint = f"it holds runs: type {folder}/*"
    elif found := [path for path in (within, folder.parent) if (path / CONFIG).is_file()]:
        hint = f"type {found[0]}"
    elif str(folder) in recipe.names():
        hint = f"it is a recipe: `layerwise train {folder}` trains and evaluates it"
    elif beside:
        hint = did_you_mean(folder.name, beside)
    else:
        hint = "train one with `layerwise train RECIPE`"
    raise CheckpointError(f"{folder} {what}; {hint}")


def read_run(folder: Path, overrides: Sequence[str] = ()) -> tuple[Experiment, Tree]:
    """The experiment of a run, as `read` gives it.

    Raises:
        ConfigError: what does not fit; of a run that `fit` made in Python of what has no name, the call that loads it.
    """
    file = folder / CONFIG
    stored = load_yaml(file)
    own = [f"the {noun} {name!r}" for noun, key in _OWN.items() if (name := at(stored, f"{key}.{OWN}")) is not None]
    problem = f"{' and '.join(own)} cannot be made again by name"
    if not own:
        try:
            return read(str(file), overrides)
        except ConfigError as error:
            if "evaluation" in stored or _readable(file):
                raise
            problem = str(error)
    raise ConfigError(
        f"{folder} was trained in Python: {problem}; type there layerwise.load({str(folder)!r}, model=network), or "
        f"layerwise.fit(..., run={str(folder)!r}, resume=True) to go on"
    )


_OWN = {"network": "model", "data": "data"}


def _readable(file: Path) -> bool:
    try:
        read(str(file))
    except ConfigError:
        return False
    return True


def _read_run(folder: Path, overrides: Sequence[str] = (), *, which: Weights) -> Experiment:
    """The experiment of a run that has the weights asked for."""
    check_run(folder)
    for section in command_line(overrides).tree:
        if section in ("method", "phases", "training"):
            raise ConfigError(
                f"the run is trained already, so --{section} has no effect; type settings of evaluation, threat, data or model"
            )
    experiment, _ = read_run(folder, overrides)
    if which in WEIGHTS and not (folder / WEIGHTS["last"]).is_file() and not (folder / WEIGHTS[which]).is_file():
        raise CheckpointError(_without_weights(folder, experiment.training.epochs))
    return experiment


def _without_weights(folder: Path, epochs: int) -> str:
    """Why a run has no weights, and what helps."""
    done = 0
    with suppress(OSError), (folder / METRICS).open("rb") as lines:
        done = sum(b'"kind": "epoch"' in line for line in lines)
    again = f"layerwise train --resume {shlex.quote(str(folder))}"
    if done >= epochs:
        return f"{folder / WEIGHTS['last']} is missing; `{again}` writes it again"
    try:
        with held(folder):
            return f"the training of {folder} has not finished ({done} of {epochs} epochs); go on with: {again}"
    except CheckpointError as error:
        return f"{folder} is still training ({done} of {epochs} epochs are done): {error}"


def _network(folder: Path, experiment: Experiment, data: ImageData | DataFacts, *, which: Weights) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        model = build_model(experiment.model, data)
    load_weights(model, folder, which=which)
    return model


def _facts_of(data: ImageData) -> DataFacts:
    return DataFacts(name=data.name, classes=data.classes, shape=data.shape, mean=data.mean, std=data.std)


def _read_facts(file: Path) -> DataFacts:
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON ({error}); delete it, and the data set tells the same") from None
    facts: DataFacts = read_record(DataFacts, found, source=str(file))
    return facts
