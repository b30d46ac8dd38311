"""What a measure is made on: trained networks with their data, and a store of what was measured in their run folders."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, final

from torch import Tensor, nn

from layerwise.data import ImageData
from layerwise.data.batching import batches, epoch_order
from layerwise.errors import CheckpointError, ConfigError, LayerwiseError
from layerwise.evaluation.record import unpacked
from layerwise.evaluation.store import Store
from layerwise.experiments import experiment
from layerwise.experiments.experiment import SCHEMA
from layerwise.files import disk_refused
from layerwise.reproduce.definitions import Item, System
from layerwise.reproduce.scales import Scale
from layerwise.reproduce.systems import Resolved, digest, resolve, trained
from layerwise.training import WEIGHTS
from layerwise.training.run import METRICS, Weights

logger = logging.getLogger("layerwise")

MEASURED = "measured.jsonl"
"""The store of a run: what was measured of it, see `layerwise.evaluation.store`."""


T = TypeVar("T")
P = ParamSpec("P")


def attempt(do: Callable[P, T], *args: P.args, **options: P.kwargs) -> T | str:
    """What a function gives, or a sentence about what went wrong; Ctrl-C goes through, and a disk that takes nothing more."""
    try:
        return do(*args, **options)
    except Exception as error:  # whatever a network or the machine does: the other rows have to go on
        if disk_refused(error):
            raise
        sentence = str(error) if isinstance(error, LayerwiseError) else f"{type(error).__name__}: {error}"
        if not isinstance(error, LayerwiseError):
            logger.debug("%s", sentence, exc_info=True)
        _tell(sentence)
        return told(sentence)


@cache
def _tell(sentence: str) -> None:
    """Say on this machine, in full, what a record tells without its paths; once, since many cells may miss the same file."""
    logger.warning("%s", sentence)


def told(text: str) -> str:
    """A sentence for a record: one line, not too long, and of the machine's paths only the end.

    >>> told("/home/me/data/train is no folder; see /home/me/x.txt")
    '.../train is no folder; see .../x.txt'
    """
    return re.sub(r"(?<![\w.])/(?:[^\s/;,:'\"]+/)+", ".../", " ".join(text.split()))[:400]


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a measure gave.

    Args:
        value: the number, in the column's unit.
        low: lower bound of its 95 % interval over images; equal to the value where there is none.
        high: upper bound.
        images: that were looked at.
        what: what was run.
        seconds: how long it took.
        device: on what.
        findings: what the evaluation's self-checks found; empty is good.
        kept: which images stay correct, see `layerwise.evaluation.record.Result`, where the item has controls; else empty.
    """

    value: float
    low: float
    high: float
    images: int
    what: str
    seconds: float = 0.0
    device: str = ""
    findings: tuple[str, ...] = ()
    kept: str = ""

    @property
    def outcomes(self) -> tuple[bool, ...]:
        """Whether each image stays correct; empty where `kept` is."""
        return unpacked(self.kept, self.images)


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """A trained system.

    Args:
        system: its settings.
        folder: of its run.
        weights: see `System`.
    """

    system: Resolved
    folder: Path
    weights: str

    @cached_property
    def network(self) -> nn.Module:
        """The network as it is evaluated, in evaluation mode, on the accelerator if there is one."""
        model = experiment.load(self.folder, which=_which(self.folder, self.weights)).to(experiment.best_device())
        inference = SCHEMA.read(self.system.tree)[0].evaluation.inference
        return model if inference is None else inference.wrap(model).eval()

    @cached_property
    def store(self) -> Store:
        """What was measured of it, for these very weights and this way of calling the network."""
        file = self.folder / WEIGHTS[_which(self.folder, self.weights)]
        with file.open("rb") as weights:
            found = hashlib.file_digest(weights, "sha256").hexdigest()[:16]
        about = {"weights of": found, "inference": self.system.tree["evaluation"].get("inference")}
        return Store(self.folder / MEASURED, about=about)

    @property
    def data(self) -> ImageData:
        """What it was trained on; its test split is evaluated on."""
        return _data(json.dumps(self.system.tree["data"], sort_keys=True))

    def images(self, count: int) -> tuple[Tensor, Tensor]:
        """So many test images and labels, those that attacks begin with too."""
        test = self.data.test
        rows = epoch_order(len(test), shuffle=True, seed=0, epoch=0)[:count]
        x, y = next(batches(test.subset(rows), count, device=experiment.best_device()))
        return x.float(), y

    def logged(self, key: str) -> list[tuple[float, float]]:
        """What training logged under a key once an epoch, of validation or by the method itself: (epoch, value).

        Raises:
            CheckpointError: nothing was logged.
        """
        lines = (line for line in _lines(self.folder / METRICS) if line["kind"] in ("epoch", "diagnose"))
        found = [(line["epoch"], line[key]) for line in lines if line.get(key) is not None]
        if not found:
            raise CheckpointError(f"training logged nothing of {key!r} at this scale")
        return found

    def seconds(self) -> float:
        """How long its training took, without evaluation, from the rates that it logged.

        Raises:
            CheckpointError: nothing was logged.
        """
        total, before, size = 0.0, 0, self.system.tree["training"]["batch_size"]
        for line in _lines(self.folder / METRICS):
            if line["kind"] == "train" and line["step"] > before and line["images_per_second"]:
                total += (line["step"] - before) * size / line["images_per_second"]
                before = line["step"]
        if not total:
            raise CheckpointError(f"{self.folder / METRICS} tells no training time; train the system again")
        return total


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _which(folder: Path, weights: str) -> Weights:
    """`selected`: of the best weights and the best averaged ones, those of higher robust validation accuracy."""
    if weights != "selected":
        return weights  # type: ignore[return-value]
    scores: dict[Weights, float] = {"last": -1.0}
    keys: tuple[tuple[Weights, str], ...] = (("best", "robust"), ("best-ema", "ema_robust"))
    for line in _lines(folder / METRICS):
        for which, key in keys:
            if line["kind"] == "epoch" and line.get(key) is not None and (folder / WEIGHTS[which]).is_file():
                scores[which] = max(scores.get(which, 0.0), line[key])
    return max(scores, key=lambda which: scores[which])


@lru_cache(maxsize=2)
def _data(settings: str) -> ImageData:
    return experiment.load_data(experiment.DataSettings(**json.loads(settings)))


@final
@dataclass(eq=False)
class Bench:
    """The place where the cells of one item are measured, for one seed.

    Args:
        item: the table or figure.
        scale: how much is done.
        place: folder of the runs.
        seed: of every run.
        progress: show progress where a person watches.
    """

    item: Item
    scale: Scale
    place: Path
    seed: int
    progress: bool = False
    _subjects: dict[str, Subject | Exception] = field(default_factory=dict)

    def resolve(self, system: System) -> Resolved:
        """The settings of a system at this bench's scale."""
        return resolve(system, self.scale, seed=self.seed)

    def subject(self, system: System) -> Subject:
        """A system, trained if it was not.

        Raises:
            Exception: it does not exist, or its training failed, now or when it was asked for before.
        """
        resolved = self.resolve(system)
        key = digest([resolved.name, resolved.tree["evaluation"], system.weights])
        if key not in self._subjects:
            try:
                folder = trained(resolved, self.place, progress=self.progress)
                self._subjects[key] = Subject(resolved, folder, system.weights)
            except Exception as error:  # kept: other cells need it too, and would train it in vain again
                self._subjects[key] = error
        found = self._subjects[key]
        if isinstance(found, Exception):
            raise found
        return found

    def row(self, name: str) -> Subject:
        """The system of another row."""
        rows = {row.name: row for row in self.item.rows}
        if name not in rows:
            raise ConfigError(f"{self.item.id} has no row {name!r}")
        return self.subject(rows[name].system)

    def system(self, name: str) -> Subject:
        """A system of the item's file."""
        return self.subject(self.item.systems.get(name) or System(recipe=name))

    def others(self, options: Mapping[str, Any]) -> list[str]:
        """Names of the runs, beside the row's own, that a measure with these options needs."""
        rows = {row.name: row.system for row in self.item.rows}
        named = [rows[options["base"]]] if options.get("base") in rows else []
        named += [self.item.systems.get(name) or System(recipe=name) for name in options.get("sources", [])]
        return [self.resolve(system).name for system in named]

    def cached(self, subject: Subject, what: Any, make: Callable[[], Any]) -> Any:
        """JSON values from the run's store, made and kept there if they are not.

        Args:
            subject: whose.
            what: everything that the values depend on beside the run, the scale, and the versions of layerwise and torch.
            make: makes them.
        """
        effort = {"images": self.scale.images, "few": self.scale.few, "attacks": self.scale.attacks}
        with subject.store.open(alone=False) as store, store.under(effort):
            return store.get(json.dumps(what, sort_keys=True, default=str), make)
