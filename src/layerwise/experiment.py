"""Experiments: a configuration turned into data, network, method, training run and evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from layerwise import data as datasets
from layerwise import models, recipe
from layerwise.config import Schema, Tree, merge
from layerwise.data import Augment, ImageData
from layerwise.errors import CheckpointError, ConfigError
from layerwise.evaluation import Evaluation, Rho, ThreatModel, evaluate, rho
from layerwise.files import atomic
from layerwise.methods import METHODS, InputMethod, Method
from layerwise.probe import Criterion, CrossEntropy
from layerwise.training import (
    SGD,
    Adam,
    AdamW,
    Constant,
    Cosine,
    Cyclic,
    FitResult,
    MultiStep,
    OneCycle,
    Optimizer,
    Phase,
    Schedule,
    Training,
    fit,
    load_weights,
)
from layerwise.training.run import Weights
from layerwise.units import Radius


@dataclass(kw_only=True)
class DataSettings:
    """What to train and judge on.

    Args:
        name: a data set, see `layerwise list data`.
        root: folder of the files; else LAYERWISE_DATA, else ~/.cache/layerwise.
        validation: held out of the training set: below 1 a fraction, from 1 on a number of images; null is the set's own.
        download: fetch what is missing.
        options: the set's own options.
    """

    name: str = "digits"
    root: str | None = None
    validation: float | None = None
    download: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class ModelSettings:
    """Which network.

    Args:
        name: a network, see `layerwise list models`, or an import path `package.module:callable`.
        normalize: subtract the training pixels' mean and divide by their deviation, in the network's first layer.
        start: weights to start from: a run folder, a .safetensors file, or a recipe, which is trained first if it has no run yet.
        options: the network's own options.
    """

    name: str = "digits_cnn"
    normalize: bool = True
    start: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class EvaluationSettings:
    """How the trained network is judged, on the test set.

    Args:
        norm: of the threat model.
        eps: radius of the threat model, in [0, 1] for linf.
        attacks: names as `layerwise list attacks` shows them, such as pgd-50-10 (50 steps, 10 restarts).
        num_examples: a fixed random subset of so many; null is all.
        batch_size: examples attacked at a time.
        rho_steps: DeepFool steps of Deep Defense's rho_2, a measure for each; 5 to compare with the paper, 50 to converge.
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: Radius = 8 / 255
    attacks: list[str] = field(default_factory=lambda: ["clean", "fgsm", "pgd-20"])
    num_examples: int | None = None
    batch_size: int = 250
    rho_steps: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the judgement of a run says.

    Args:
        evaluation: accuracies under attack.
        rho: Deep Defense's rho_2, one for each number of DeepFool steps that was asked for.
    """

    evaluation: Evaluation
    rho: tuple[Rho, ...] = ()

    def to_markdown(self) -> str:
        """The evaluation's table, and a line a measure."""
        lines = [
            f"rho_2 with {r.num_steps} DeepFool steps: {r.value:.4g} over {r.images} images, {100 * r.unfooled:.2f} % not fooled"
            + (f", {r.blank} blank ones left out" if r.blank else "")
            for r in self.rho
        ]
        return "\n".join([self.evaluation.to_markdown(), *lines])


@dataclass(kw_only=True)
class Experiment:
    """One training run and its judgement.

    Args:
        data: see `DataSettings`.
        model: see `ModelSettings`.
        method: the training method.
        phases: fields of the method that change over the epochs: [{epochs: 40, fields: {k: 1}}, ...], or another {method: ...}.
        training: the loop's settings.
        evaluation: see `EvaluationSettings`.
    """

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    method: Method
    phases: list[dict[str, Any]] = field(default_factory=list)
    training: Training = field(default_factory=Training)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)


SCHEMA = Schema(
    Experiment,
    {
        Method: METHODS,
        InputMethod: {name: cls for name, cls in METHODS.items() if issubclass(cls, InputMethod)},
        Criterion: {"CrossEntropy": CrossEntropy},
        Optimizer: {cls.__name__: cls for cls in (SGD, Adam, AdamW)},
        Schedule: {cls.__name__: cls for cls in (Constant, Cyclic, MultiStep, Cosine, OneCycle)},
        Augment: {"Augment": Augment},
    },
)
"""What can be set, see `layerwise.config`."""


def read(source: str, overrides: Sequence[str] = ()) -> tuple[Experiment, Tree]:
    """An experiment from a recipe's name or file and the command line's overrides; also as a resolved tree.

    >>> experiment, tree = read("slat-digits", ["--method.eta", "0.1"])
    >>> tree["method"]["eta"]
    0.1

    Raises:
        ConfigError: whatever does not fit.
    """
    experiment, tree = SCHEMA.read(recipe.load(source), overrides, where=source)
    assert isinstance(experiment, Experiment)
    return experiment, tree


def load_data(settings: DataSettings) -> ImageData:
    """The data set."""
    return datasets.load(
        settings.name,
        root=settings.root,
        validation=settings.validation,
        download=settings.download,
        **settings.options,
    )


def build_model(settings: ModelSettings, data: ImageData, *, trust: bool = True) -> nn.Module:
    """The network, with fresh weights from PyTorch's own random state.

    Args:
        settings: which.
        data: gives shape, number of classes and the pixels' statistics.
        trust: import the user's code that the name may point at; False refuses it.
    """
    if not trust and (":" in settings.name or "." in settings.name):
        raise ConfigError(
            f"the run names code of its own, {settings.name!r}, which would be executed; add --trust to allow it"
        )
    statistics = (data.mean, data.std) if settings.normalize else (None, None)
    return models.build(
        settings.name,
        num_classes=data.num_classes,
        shape=data.shape,
        mean=statistics[0],
        std=statistics[1],
        **settings.options,
    )


def make_phases(experiment: Experiment) -> list[Phase]:
    """The phases, their values typed like the method's own fields."""
    return [_phase(index, entry, experiment) for index, entry in enumerate(experiment.phases)]


def _phase(index: int, entry: dict[str, Any], experiment: Experiment) -> Phase:
    where = f"phases[{index}]"
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("epochs"), int)
        or set(entry) - {"epochs", "fields", "method"}
    ):
        raise ConfigError(
            f"{where}: {entry!r} is no phase; type {{epochs: 40, fields: {{k: 1}}}}, or method in place of fields"
        )
    if "method" in entry:
        tree = entry["method"] if isinstance(entry["method"], dict) else {"name": entry["method"]}
        other, _ = SCHEMA.read({"method": tree}, where=where)
        return Phase(epochs=entry["epochs"], method=other.method)
    fields = entry.get("fields", {})
    typed, _ = SCHEMA.read({"method": {"name": type(experiment.method).__name__, **fields}}, where=where)
    return Phase(epochs=entry["epochs"], fields={name: getattr(typed.method, name) for name in fields})


def start_from(model: nn.Module, source: str, *, runs: Path, progress: bool) -> None:
    """Load the weights that training starts from; a recipe without a finished run is trained first."""
    if source in recipe.names():
        folder = runs / source
        if not (folder / "model.safetensors").is_file():
            experiment, tree = read(source)
            train(experiment, tree, folder=folder, progress=progress)
        source = str(folder)
    load_weights(model, Path(source))


def train(
    experiment: Experiment, tree: Tree, *, folder: Path, resume: bool = False, progress: bool = True
) -> tuple[FitResult, Judgement]:
    """Train one run and judge it on the test set.

    Args:
        experiment: what to do.
        tree: the same, resolved, for the run folder.
        folder: the run's folder.
        resume: go on where the run in the folder stopped.
        progress: show progress.

    Returns:
        What `fit` gives, and the evaluation of the last weights, also written to `evaluation.json` and `evaluation.md`.
    """
    data = load_data(experiment.data)
    torch.manual_seed(experiment.training.seed)
    model = build_model(experiment.model, data)
    phases = make_phases(experiment)
    if experiment.model.start is not None and not resume:
        start_from(model, experiment.model.start, runs=folder.parent, progress=progress)
    result = fit(
        model,
        experiment.method,
        data,
        training=experiment.training,
        phases=phases,
        run=folder,
        config=tree,
        resume=resume,
        progress=progress,
    )
    return result, judge(model, data, experiment.evaluation, name=folder.name, folder=folder, progress=progress)


def train_seeds(tree: Tree, *, folder: Path, seeds: int, resume: bool = False, progress: bool = True) -> list[Path]:
    """Train and judge several seeds, in FOLDER-seed0, FOLDER-seed1, ...; with `resume`, finished ones are kept.

    Returns:
        The run folders.
    """
    folders = [folder.with_name(f"{folder.name}-seed{seed}") for seed in range(seeds)]
    for seed, run in enumerate(folders):
        if not (resume and (run / "evaluation.json").is_file()):
            experiment, resolved = SCHEMA.read(merge(tree, {"training": {"seed": seed}}), where=folder.name)
            train(experiment, resolved, folder=run, resume=resume, progress=progress)
    return folders


def judge(
    model: nn.Module,
    data: ImageData,
    settings: EvaluationSettings,
    *,
    name: str | None = None,
    folder: Path | None = None,
    progress: bool = True,
) -> Judgement:
    """Evaluate a network on the test set, and write the record into the run's folder: evaluation.json, measures.json, evaluation.md."""
    evaluation = evaluate(
        model,
        data.test,
        threat=ThreatModel(norm=settings.norm, eps=settings.eps),
        attacks=settings.attacks,
        num_examples=settings.num_examples,
        batch_size=settings.batch_size,
        progress=progress,
        model_name=name,
        data_name=data.name,
    )
    subset: dict[str, Any] = {"num_examples": settings.num_examples, "batch_size": settings.batch_size}
    sizes = tuple(rho(model, data.test, num_steps=steps, **subset) for steps in settings.rho_steps)
    judgement = Judgement(evaluation=evaluation, rho=sizes)
    if folder is not None:
        measures = {"rho": [asdict(r) for r in judgement.rho]}
        texts = {
            "evaluation.json": evaluation.to_json(),
            "measures.json": json.dumps(measures, indent=2) + "\n",
            "evaluation.md": judgement.to_markdown(),
        }
        for file, text in texts.items():
            with atomic(folder / file) as partial:
                partial.write_text(text, encoding="utf-8")
    return judgement


def open_run(
    folder: Path, overrides: Sequence[str] = (), *, trust: bool = False, which: Weights = "last"
) -> tuple[Experiment, nn.Module, ImageData]:
    """A finished run: its experiment, its network with weights, its data.

    Args:
        folder: the run's folder.
        overrides: settings that differ now, `--evaluation.eps 4/255`; those of training have no effect.
        trust: allow the run to name code outside layerwise.
        which: `"last"`, `"best"` (by robust validation accuracy), `"ema"` or `"best-ema"`.

    Raises:
        CheckpointError: no run there, or weights that do not fit.
    """
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(
            f"{folder} is no run folder: it holds no config.yaml; train one with `layerwise train RECIPE`"
        )
    experiment, _ = read(str(folder / "config.yaml"), overrides)
    data = load_data(experiment.data)
    model = build_model(experiment.model, data, trust=trust)
    load_weights(model, folder, which=which)
    return experiment, model, data


def load(folder: str | Path, *, which: Weights = "last", trust: bool = False) -> nn.Module:
    """The trained network of a run, in evaluation mode.

    Args:
        folder: the run's folder.
        which: see `open_run`.
        trust: allow the run to name code outside layerwise.
    """
    return open_run(Path(folder), trust=trust, which=which)[1].eval()
