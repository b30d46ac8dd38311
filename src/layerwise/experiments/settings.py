"""What an experiment is: its settings, and how they are read from a recipe and the command line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any

from layerwise.core import registry
from layerwise.core.checks import at_least
from layerwise.core.criteria import Criterion
from layerwise.core.threat import ThreatModel
from layerwise.data import Augment
from layerwise.errors import ConfigError
from layerwise.evaluation.settings import EvaluationSettings
from layerwise.experiments import recipe
from layerwise.experiments.choices import Layer, Schema, command_line
from layerwise.experiments.trust import trusts_all
from layerwise.methods import FGSM, PGD, InputMethod, Method
from layerwise.methods.sources import NETWORKS
from layerwise.models.registry import find as find_model
from layerwise.models.stochastic import Inference
from layerwise.reading import CHECK
from layerwise.training import Optimizer, Phase, Schedule, Training
from layerwise.training.phases import Phases
from layerwise.trees import Tree, at, nested


def _imports(kind: str) -> dict[str, Any]:
    """Metadata of a name that may be an import path: what the user names is imported here, all else is refused where it is made."""

    def check(name: str, *, trust: bool) -> None:
        if kind == "data" and name.lower() not in registry.names(kind) and Path(name).expanduser().is_dir():
            raise ConfigError(f"{name} is a folder; type --data image-folder --data.root {shlex.quote(name)}")
        if trust and (":" in name or "." in name):
            find = find_model if kind == "model" else partial(registry.find, kind)
            find(name, trust=True)

    return {CHECK: check}


@dataclass(kw_only=True)
class DataSettings:
    """What to train and evaluate on.

    Args:
        name: a data set, see `layerwise list data`, or an import path `package.module:function`.
        root: folder of the files; else LAYERWISE_DATA, else ~/.cache/layerwise.
        validation: held out of the training set: below 1 a fraction, from 1 on a number of images; null is the set's own.
        download: fetch what is missing.
        options: the set's own options.
    """

    name: str = field(default="digits", metadata=_imports("data"))
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

    name: str = field(default="digits_cnn", metadata=_imports("model"))
    normalize: bool = True
    start: str | None = field(default=None, metadata=NETWORKS)
    options: dict[str, Any] = field(default_factory=dict)


def _check_phases(phases: list[dict[str, Any]], *, trust: bool) -> None:
    """Complain about the methods that phases name, and import those that are the user's own."""
    for index, entry in enumerate(phases):
        if "method" in entry:
            _PART.read(Layer({"method": entry["method"]}, f"phases[{index}]", trust))


@dataclass(kw_only=True)
class Experiment:
    """One training run and its evaluation.

    Args:
        data: see `DataSettings`.
        model: see `ModelSettings`.
        threat: against what: the network is trained, looked at on the validation images, and evaluated under it.
        method: the training method.
        phases: fields of the method that change over the epochs: [{epochs: 40, fields: {k: 1}}, ...], or another {method: ...}.
        training: the loop's settings.
        evaluation: see `EvaluationSettings`.
    """

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    threat: ThreatModel = field(default_factory=ThreatModel)
    method: Method
    phases: list[dict[str, Any]] = field(default_factory=list, metadata={CHECK: _check_phases})
    training: Training = field(default_factory=Training)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        """Check what no part checks by itself."""
        at_least("training.seed", self.training.seed, 0)
        Phases(self.method, make_phases(self), self.training.epochs)


_BEFORE: ContextVar[tuple[str, ...]] = ContextVar("_BEFORE", default=())
"""The recipes that name the one that is being read."""


def _check_sources(value: Any, *, trust: bool) -> None:
    """Read the recipes that a trusted text names, which may name code of the user's; others are read when they are needed."""
    for source in value if isinstance(value, list) else [value]:
        is_file = isinstance(source, str) and source.endswith((".yaml", ".yml")) and Path(source).is_file()
        if not is_file or not trust or trusts_all():
            continue
        before = _BEFORE.get()
        if source in before:
            raise ConfigError(f"recipes train each other first, in a circle: {' -> '.join([*before, source])}")
        token = _BEFORE.set((*before, source))
        try:
            SCHEMA.read(*recipe.load(source, trust=trust))
        finally:
            _BEFORE.reset(token)


SCHEMA = Schema(
    Experiment,
    {
        **dict.fromkeys((Method, InputMethod, FGSM, PGD), "method"),
        Criterion: "criterion",
        Optimizer: "optimizer",
        Schedule: "schedule",
        Inference: "inference",
        Augment: {"Augment": Augment},
    },
    dict.fromkeys(NETWORKS, _check_sources),
)
"""What can be set, see `layerwise.experiments.choices`."""


@dataclass(kw_only=True)
class _Part:
    """What a phase sets, read with the same rules."""

    method: Method


_PART = Schema(_Part, SCHEMA.choices, SCHEMA.checks)


def read(source: str, overrides: Sequence[str] = (), *, trust: bool = False) -> tuple[Experiment, Tree]:
    """An experiment from a recipe's name or file and the command line's overrides; also as a resolved tree.

    Args:
        source: a recipe's name or file.
        overrides: `--key value` tokens.
        trust: whether the user named the source, so that it may name code of the user's, `my_module:Name`, unless it lies in a run
            folder (see `layerwise.experiments.trust`); the overrides may.

    >>> experiment, tree = read("slat-digits", ["--method.eta", "0.1"])
    >>> tree["method"]["eta"]
    0.1

    Raises:
        ConfigError: whatever does not fit.
    """
    layers = recipe.load(source, trust=trust)
    if found := recipe.ranges(source):  # nothing but `layerwise tune` uses them, but a misspelt one is told by all
        firsts = nested({key: each.first for key, each in found.items()})
        SCHEMA.read(*layers, Layer(firsts, f"{source}: tune", all(layer.trust for layer in layers)))
    typed = command_line(overrides)
    experiment, tree = SCHEMA.read(*layers, typed)
    assert isinstance(experiment, Experiment)
    asks = [layer for layer in (*layers, typed) if at(layer.tree, "data.download") is not None]
    if asks and not asks[-1].trust:
        experiment.data.download = False  # a stranger's text writes nothing
    return experiment, tree


def with_settings(
    tree: Tree, settings: Mapping[str, Any], *, where: str, trust: bool = False
) -> tuple[Experiment, Tree]:
    """An experiment whose dotted settings have other values; also as a resolved tree.

    Args:
        tree: of the experiment.
        settings: {dotted setting: value}.
        where: what messages begin with.
        trust: whether the values are the user's, and so may name code.

    Raises:
        ConfigError: an unknown setting, or a value that does not fit.
    """
    experiment, resolved = SCHEMA.read(tree, Layer(nested(settings), where, trust))
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
        other, _ = _PART.read(Layer({"method": entry["method"]}, where))
        return Phase(epochs=epochs, fields=fields, method=other.method), current
    if not isinstance(fields, dict) or "name" in fields:
        raise ConfigError(f"{where}: fields={fields!r} does not fit; type {{k: 1}}, or method: for another method")
    typed, resolved = _PART.read(current, Layer({"method": nested(fields)}, where))
    return Phase(
        epochs=epochs, fields={name: reduce(getattr, name.split("."), typed.method) for name in fields}
    ), resolved
