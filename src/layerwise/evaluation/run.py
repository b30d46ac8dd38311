"""The evaluation of a run: as its settings say, beside other runs, with the record in its folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from layerwise.attacks.base import Attack
from layerwise.attacks.transfer import resolve_sources
from layerwise.core.threat import USUAL, ThreatModel
from layerwise.data import ImageData
from layerwise.errors import ConfigError, LayerwiseError
from layerwise.evaluation.evaluate import choose, evaluate
from layerwise.evaluation.measure import Measure, choose_measures
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.ranks import rank_and_world
from layerwise.evaluation.record import Evaluation
from layerwise.evaluation.settings import EvaluationSettings
from layerwise.evaluation.store import Store
from layerwise.training.run import VERSIONS

logger = logging.getLogger(__name__)

FACTS = "data.json"
"""What a run folder tells about its data, so that the network can be made without them."""

EACH = "transfer:each:"
"""Stands for a transfer from each of the sources."""

Load = Callable[[str], nn.Module]
"""Gives the network of a run folder."""


def evaluate_run(
    model: nn.Module,
    data: ImageData,
    settings: EvaluationSettings,
    *,
    threat: ThreatModel = USUAL,
    name: str | None = None,
    folder: Path | None = None,
    record: str = "evaluation",
    progress: bool = True,
    load: Load | None = None,
    fresh: bool = False,
) -> Evaluation:
    """Evaluate a network as the settings say, and write the record into the run's folder.

    With a folder, RECORD.journal there keeps what is done until the record is written: after an interruption the same call goes on.

    Args:
        model: the network.
        data: its test split is used, or its validation split where the settings say so.
        settings: how.
        threat: against what.
        name: what the record calls the network.
        folder: the run's; None writes nothing.
        record: name of the files RECORD.json and RECORD.md.
        progress: show progress where a person watches.
        load: gives the networks of the run folders that the settings name.
        fresh: begin anew instead of going on.

    Raises:
        ConfigError: the record's name belongs to another file, or a setting cannot be met.
        CheckpointError: the run to compare with has no such record, or an evaluation that is running has the journal.
    """
    if Path(record).name != record or f"{record}.json" in (FACTS, VERSIONS):
        raise ConfigError(f"a record cannot be called {record!r}; type a name such as evaluation-quick")
    if settings.inference is not None:
        model = settings.inference.wrap(model)
    wanted = choose_measures(settings.measures, other=settings.baseline is not None)
    base = _base(settings, wanted, folder, record)
    written = folder if rank_and_world()[0] == 0 else None  # of several processes the first one writes
    about = {"inference": repr(settings.inference)}
    store = Store(None if written is None else written / f"{record}.journal", about=about)
    if fresh:
        store.remove()
    network = partial(_network, model, load)
    is_test = settings.split == "test"
    with store.open():
        found = evaluate(
            model,
            data if is_test else replace(data, test=data.validation),
            threat=threat,
            attacks=_with_sources(settings, network),
            measures=wanted,
            others=_others(wanted, settings, network),
            num_examples=settings.num_examples,
            seed=settings.seed,
            batch_size=settings.batch_size,
            progress=progress,
            eot=settings.eot,
            model_name=name,
            data_name=data.name if is_test else f"{data.name} {settings.split}",
            journal=store,
        )
        if settings.baseline is not None:
            try:
                found = found.against(base or found)
            except LayerwiseError as error:  # the record holds what was measured all the same
                logger.warning("no comparison with %s: %s", settings.baseline, error)
        if written is not None:
            found.write(written, record)
        store.finish()
    return found


def _network(model: nn.Module, load: Load | None, run: str) -> nn.Module:
    """The network of a run folder, where the evaluated one is."""
    if load is None:
        raise ConfigError(f"the network of {run} is needed, and nobody said how it is loaded; give load=")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return load(run).to(device)


def _with_sources(settings: EvaluationSettings, network: Load) -> list[Attack]:
    """The attacks, `transfer:each` told for each source, and sources loaded."""
    texts = []
    for text in settings.attacks:
        if EACH in text and not settings.sources:
            logger.warning("%s is left out: it needs other networks, type --evaluation.sources '[RUN, RUN]'", text)
        texts += [text.replace(EACH, f"transfer:{s}:") for s in settings.sources] if EACH in text else [text]
    return resolve_sources(choose(texts), network)


def _others(wanted: Sequence[Measure], settings: EvaluationSettings, network: Load) -> dict[str, nn.Module]:
    """The network to compare with, if a measure needs one."""
    run = settings.baseline
    needed = run is not None and any(measure.needs_other for measure in wanted)
    return {Path(run).name: network(run)} if needed and run is not None else {}


def _base(
    settings: EvaluationSettings, wanted: Sequence[Measure], folder: Path | None, record: str
) -> Evaluation | None:
    """The record of the run to compare with; None if there is none, or it is this run.

    Raises:
        CheckpointError: it has no such record.
        ConfigError: it lacks what this one is to be compared with.
    """
    compared = [m for m in wanted if m.result.against is not Measurement.against]
    if settings.baseline is None or not compared:
        return None
    path = Path(settings.baseline)
    if folder is not None and path.resolve() == folder.resolve():
        return None
    base = Evaluation.read(path, record)
    for measure in compared:
        if not base.found(measure.result):
            raise ConfigError(
                f"{path} has no {measure.entry.name} in its {record}.json to compare with; type first: "
                f"layerwise evaluate {path} --record {record} --evaluation.measures '[{', '.join(map(str, compared))}]'"
            )
    return base
