"""Measures by name: what each looks at, how it is written, and what it costs.

A measure is a function of a `Target` that registers itself, in a file of its own:

    @register("measure", "margin", passes=lambda size: size.images)
    def margin(target: Target, *, images: int = 100) -> Margin:
        "Mean gap between the two largest logits."

Its keyword arguments are its sizes, `margin images=20`; what it returns is a `Measurement`. It is then listed, evaluated, recorded,
reported and documented under its name. One that is not registered goes by `my_module:margin`. Facts beside the name are `passes` (of
sizes, `total` images of the evaluation and `classes`), `other` (it needs the network that the evaluation compares with), `special`
(it fits few networks, so that a report does not miss it) and `check` (of words and sizes, before anything is measured).
"""

from __future__ import annotations

import inspect
import logging
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, final

from torch import Tensor, nn

from layerwise.attacks.base import Attack
from layerwise.core.checks import at_least, of_kind
from layerwise.core.registry import Entry, entries, find
from layerwise.core.threat import ThreatModel
from layerwise.data.splits import Split
from layerwise.errors import ConfigError, did_you_mean
from layerwise.evaluation.conditions import Conditions
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.progress import Board
from layerwise.evaluation.store import Store
from layerwise.reading import read_items

logger = logging.getLogger(__name__)

ALL = "all"
"""Stands for every measure that needs no other network, or for those too where there is one."""


@final
@dataclass(frozen=True)
class Target:
    """What a measure is made on.

    Args:
        conditions: the network, in evaluation mode, and the images in the order of the evaluation.
        threat: against what; its radius is the measures' scale.
        name: what the network is called.
        attacks: of the evaluation.
        classes: names of the data's classes, by number; empty where nobody named them.
        others: {name: network} to compare with.
        board: where progress is shown.
        bar: what the measure's bar is called.
        store: where a measure that takes long may keep what it has done.
    """

    conditions: Conditions
    threat: ThreatModel = ThreatModel()  # noqa: RUF009 - immutable
    name: str = "network"
    attacks: tuple[Attack, ...] = ()
    classes: tuple[str, ...] = ()
    others: Mapping[str, nn.Module] = field(default_factory=dict)
    board: Board = field(default_factory=lambda: Board({}, visible=False))
    bar: str = ""
    store: Store = field(default_factory=lambda: Store(None), compare=False)

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.conditions.network

    @property
    def seed(self) -> int:
        """Of all random numbers."""
        return self.conditions.batches.seed

    @property
    def eps(self) -> float:
        """The radius per pixel: an l2 ball's is spread evenly over the pixels."""
        x, _ = self.images(1)
        return self.threat.eps / (math.sqrt(x[0].numel()) if self.threat.norm == "l2" else 1.0)

    def images(self, count: int) -> tuple[Tensor, Tensor]:
        """The first so many images of the evaluation, shape (N, C, H, W), in [0, 1], and their labels (N,)."""
        return self.conditions.images(count)

    def first(self, count: int) -> tuple[nn.Module, Tensor, Tensor]:
        """The network, and the first so many images and labels."""
        return self.model, *self.images(count)

    @property
    def split(self) -> Split:
        """All images, for measures that go over those of `subset`."""
        return self.conditions.split

    @property
    def subset(self) -> dict[str, Any]:
        """Which of them, and how: options of `rho`, `corruption_errors` and the like."""
        batches = self.conditions.batches
        return {"num_examples": len(batches.split), "batch_size": batches.batch_size, "seed": batches.seed}

    @property
    def told(self) -> dict[str, Any]:
        """What they call network and images, and where they show how far they are."""
        shown = {"progress": self.board, "progress_name": self.bar}
        return {"model_name": self.name, "data_name": self.conditions.data, **shown}


@final
@dataclass(frozen=True)
class Measure:
    """A measure that was asked for.

    Args:
        entry: of the registry.
        words: what it is told without a key, such as the names of corruptions.
        sizes: all of them.
    """

    entry: Entry
    words: tuple[str, ...] = ()
    sizes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def result(self) -> type[Measurement]:
        """The class of what it gives."""
        return result_of(self.entry)

    @property
    def needs_other(self) -> bool:
        """Whether it needs the network that the evaluation compares with."""
        return bool(self.entry.facts.get("other"))

    def passes(self, total: int, classes: int) -> int:
        """About how many passes of single images it makes.

        Args:
            total: images of the evaluation.
            classes: of the data.
        """
        size = SimpleNamespace(**{"total": total, "classes": classes, "words": self.words, **self.sizes})
        count: Callable[[Any], int] = self.entry.facts.get("passes", lambda size: getattr(size, "images", size.total))
        return count(size)

    def __call__(self, target: Target) -> Measurement:
        """Measure."""
        found: Measurement = self.entry.thing(target, *self.words, **self.sizes)
        return found

    def __str__(self) -> str:
        """The name, its words, and the sizes that differ from the usual ones; `parse_measure` reads it back."""
        usual = _sizes(self.entry)
        changed = [f"{k}={v}" for k, v in self.sizes.items() if v != usual[k].default]
        return " ".join([self.entry.name, *self.words, *changed])


@dataclass(frozen=True)
class _Size:
    default: Any
    kind: Any


def _sizes(entry: Entry) -> dict[str, _Size]:
    """The keyword arguments of a measure."""
    hints = typing.get_type_hints(entry.thing)
    parameters = inspect.signature(entry.thing).parameters.values()
    return {p.name: _Size(p.default, hints.get(p.name, str)) for p in parameters if p.kind is p.KEYWORD_ONLY}


def result_of(entry: Entry) -> type[Measurement]:
    """The class of what a measure gives, from its annotation.

    Raises:
        ConfigError: it says none.
    """
    found = typing.get_type_hints(entry.thing).get("return")
    if not (isinstance(found, type) and issubclass(found, Measurement)):
        raise ConfigError(
            f"the measure {entry.name!r} does not say what it gives; annotate it with `-> ` a class derived from "
            "layerwise.evaluation.Measurement"
        )
    return found


def usual_sizes(entry: Entry) -> str:
    """The sizes of a measure and their usual values, as they are typed.

    >>> usual_sizes(find("measure", "landscape"))
    'images=50 points=11'
    """
    words = [
        f"[{p.name} ...]" for p in inspect.signature(entry.thing).parameters.values() if p.kind is p.VAR_POSITIONAL
    ]
    return " ".join([*words, *(f"{name}={size.default}" for name, size in _sizes(entry).items())])


def parse_measure(text: str, *, trust: bool = False) -> Measure:
    """Read a measure: its name, words that it takes, and those of its sizes that differ.

    Args:
        text: how it is written.
        trust: whether the user wrote it, so that it may be one of the user's own, `my_module:name`.

    >>> parse_measure("boundary-distance images=100").sizes
    {'images': 100, 'directions': 20}

    Raises:
        ConfigError: unknown name or size, a value that cannot be read.
    """
    name, *items = text.split() or [""]
    entry = find("measure", name, trust=trust)
    sizes, where = _sizes(entry), f"measure {text!r}"
    words = tuple(item for item in items if "=" not in item)
    if words and not any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(entry.thing).parameters.values()):
        raise ConfigError(f"{where}: {name} has no {words[0]!r}; {did_you_mean(words[0], sizes)}")
    kinds = {key: size.kind for key, size in sizes.items()}
    given = read_items((item for item in items if "=" in item), kinds, where=f"{where}: ", owner=name)
    for key, value in given.items():
        if type(value) is int:
            at_least(key, value, 0 if sizes[key].default == 0 else 1)
    values = {key: size.default for key, size in sizes.items()} | given
    result_of(entry)
    if check := entry.facts.get("check"):
        check(*words, **values)
    return Measure(entry, words, values)


def choose_measures(texts: Iterable[Measure | str], *, other: bool = True, trust: bool = False) -> list[Measure]:
    """The measures that are asked for, `all` spelled out.

    Args:
        texts: measures, or how they are written.
        other: whether there is a network to compare with; measures that need one are left out else, and said so.
        trust: see `parse_measure`.

    Raises:
        ConfigError: one cannot be read, or two are the same.
    """
    listed = [texts] if isinstance(texts, str) or not isinstance(texts, Iterable) else list(texts)
    for each in listed:
        of_kind("a measure", each, Measure | str, example="a name, such as 'landscape' (`layerwise list measures`)")
    chosen = [parse_measure(t, trust=trust) if isinstance(t, str) else t for t in listed if t != ALL]
    named = {measure.entry.name for measure in chosen}
    for measure in () if other else [measure for measure in chosen if measure.needs_other]:
        logger.warning(
            "%s is left out: it needs another network, type --evaluation.baseline RUN, or give others={name: network}",
            measure,
        )
    if ALL in listed:
        chosen += [parse_measure(name) for name in entries("measure") if name not in named]
    chosen = [measure for measure in chosen if other or not measure.needs_other]
    names = [str(measure) for measure in chosen]
    if double := [n for n in names if names.count(n) > 1]:
        raise ConfigError(f"measure {double[0]!r} is given {names.count(double[0])} times; give it once")
    return chosen
