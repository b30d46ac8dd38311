"""What an experiment is: its settings, and how they are read from a recipe and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from layerwise.core import registry
from layerwise.core.checks import at_least
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.data import Augment
from layerwise.errors import ConfigError
from layerwise.evaluation.settings import EvaluationSettings
from layerwise.experiments import recipe
from layerwise.experiments.config import Schema, Tree
from layerwise.experiments.ranges import laid
from layerwise.methods import InputMethod, Method
from layerwise.models.stochastic import Inference, NoisyAveraging, RandomResizing
from layerwise.training import (
    SGD,
    Adam,
    AdamW,
    Constant,
    Cosine,
    Cyclic,
    MultiStep,
    OneCycle,
    Optimizer,
    Phase,
    Schedule,
    Training,
)
from layerwise.training.phases import Phases


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

    def __post_init__(self) -> None:
        """Check what no part checks by itself."""
        at_least("training.seed", self.training.seed, 0)
        Phases(self.method, make_phases(self), self.training.epochs)


_METHODS: dict[str, type[Method]] = {name: entry.thing for name, entry in registry.entries("method").items()}

SCHEMA = Schema(
    Experiment,
    {
        Method: _METHODS,
        InputMethod: {name: cls for name, cls in _METHODS.items() if issubclass(cls, InputMethod)},
        Criterion: {"CrossEntropy": CrossEntropy},
        Optimizer: {cls.__name__: cls for cls in (SGD, Adam, AdamW)},
        Schedule: {cls.__name__: cls for cls in (Constant, Cyclic, MultiStep, Cosine, OneCycle)},
        Augment: {"Augment": Augment},
        Inference: {cls.__name__: cls for cls in (NoisyAveraging, RandomResizing)},
    },
)
"""What can be set, see `layerwise.experiments.config`."""


@dataclass(kw_only=True)
class _Part:
    """What a phase sets, read with the same rules."""

    method: Method


_PART = Schema(_Part, SCHEMA.choices)


def read(source: str, overrides: Sequence[str] = ()) -> tuple[Experiment, Tree]:
    """An experiment from a recipe's name or file and the command line's overrides; also as a resolved tree.

    >>> experiment, tree = read("slat-digits", ["--method.eta", "0.1"])
    >>> tree["method"]["eta"]
    0.1

    Raises:
        ConfigError: whatever does not fit.
    """
    own = SCHEMA.merge(*recipe.load(source))
    if found := recipe.ranges(source):  # nothing but `layerwise tune` uses them, but a misspelt one is told by all
        with_settings(own, {key: each.first for key, each in found.items()}, where=f"{source}: tune")
    experiment, tree = SCHEMA.read(own, overrides, where=source)
    assert isinstance(experiment, Experiment)
    return experiment, tree


def with_settings(tree: Tree, settings: Mapping[str, Any], *, where: str) -> tuple[Experiment, Tree]:
    """An experiment whose dotted settings have other values; also as a resolved tree.

    Raises:
        ConfigError: an unknown setting, or a value that does not fit.
    """
    experiment, resolved = SCHEMA.read(SCHEMA.merge(tree, laid(settings)), where=where)
    assert isinstance(experiment, Experiment)
    return experiment, resolved


def make_phases(experiment: Experiment) -> list[Phase]:
    """The phases, their values typed like the method's own fields."""
    phases = []
    current: Tree = _PART.tree(_Part(method=experiment.method))
    for index, entry in enumerate(experiment.phases):
        phase, current = _phase(f"phases[{index}]", entry, current)
        phases.append(phase)
    return phases


def _phase(where: str, entry: Any, current: Tree) -> tuple[Phase, Tree]:
    """A phase, and the method's settings from it on."""
    epochs = entry.get("epochs") if isinstance(entry, dict) else None
    if type(epochs) is not int or set(entry) - {"epochs", "fields", "method"}:
        raise ConfigError(
            f"{where}: {entry!r} is no phase; type {{epochs: 40, fields: {{k: 1}}}}, or method in place of fields"
        )
    fields = entry.get("fields") or {}
    if "method" in entry:
        other, _ = _PART.read(_PART.merge({"method": entry["method"]}), where=where)
        return Phase(epochs=epochs, fields=fields, method=other.method), current
    if not isinstance(fields, dict) or "name" in fields:
        raise ConfigError(f"{where}: fields={fields!r} does not fit; type {{k: 1}}, or method: for another method")
    typed, resolved = _PART.read(_PART.merge(current, {"method": laid(fields)}), where=where)
    return Phase(
        epochs=epochs, fields={name: reduce(getattr, name.split("."), typed.method) for name in fields}
    ), resolved
