"""The judgement of a run: how robust its network is, as a record in the run's folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from layerwise.attacks import At, Attack, Clean, DeepFoolAttack, InputAttack, ThreatModel
from layerwise.attacks.transfer import resolve_sources
from layerwise.core.threat import USUAL
from layerwise.data import ImageData
from layerwise.data.splits import Split
from layerwise.errors import ConfigError, LayerwiseError
from layerwise.evaluation import EpsRef, Rho, eps_ref, evaluate, rho
from layerwise.evaluation.corruptions import (
    SEQUENCES,
    SEVERITIES,
    CorruptionErrors,
    FlipProbabilities,
    corruption_errors,
    flip_probabilities,
    flip_rates,
    mce,
)
from layerwise.evaluation.corruptions.names import chosen_corruptions, chosen_sequences
from layerwise.evaluation.evaluate import choose
from layerwise.evaluation.examples import Examples, adversarial_examples
from layerwise.evaluation.journal import Journal
from layerwise.evaluation.judgement import Judgement, plain, typed
from layerwise.evaluation.measures import DIAGNOSTICS, Diagnostic, Plan, Subject, parse_diagnostic
from layerwise.evaluation.progress import Board
from layerwise.evaluation.ranks import rank_and_world
from layerwise.evaluation.session import judging
from layerwise.evaluation.settings import EvaluationSettings
from layerwise.training.run import VERSIONS

__all__ = ["FACTS", "Judgement", "judge"]

logger = logging.getLogger(__name__)

FACTS = "data.json"
"""What a run folder tells about its data, so that the network can be made without them."""

LONG = 10**6
"""Passes of single images from which on the plan is told before it begins."""

Load = Callable[[str], nn.Module]
"""Gives the network of a run folder."""


def judge(
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
) -> Judgement:
    """Evaluate a network, measure what else is asked for, and write the record into the run's folder.

    With a folder, RECORD.journal there keeps what is done until the record is written: after an interruption the same call goes on.

    Args:
        model: the network.
        data: its test split is judged on, or its validation split where the settings say so.
        settings: how.
        threat: against what.
        name: what the record calls the network.
        folder: the run's; None writes nothing.
        record: name of the files RECORD.json, RECORD.measures.json and RECORD.md.
        progress: show progress where a person watches.
        load: gives the networks of the run folders that the settings name.
        fresh: begin anew instead of going on.

    Raises:
        ConfigError: the record's name belongs to another file, or a measure lacks what it needs.
        CheckpointError: the base run has no such record, or an evaluation that is running has the journal.
    """
    if Path(record).name != record or f"{record}.json" in (FACTS, VERSIONS):
        raise ConfigError(f"a record cannot be called {record!r}; type a name such as evaluation-quick")
    if settings.inference is not None:
        model = settings.inference.wrap(model)
    written = folder if rank_and_world()[0] == 0 else None  # of several processes the first one writes
    journal = Journal(
        None if written is None else written / f"{record}.journal", about={"inference": repr(settings.inference)}
    )
    if fresh:
        journal.remove()
    bench = _Bench(model, data, settings, threat, name, load)
    base = _base(settings, folder, record)
    attacks, measures = bench.attacks(), list(bench.measures())
    images = bench.images()
    classes = data.num_classes
    costs = {str(a): float(a.passes(classes) * images) for a in attacks} | {m.name: float(m.cost) for m in measures}
    if sum(costs.values()) >= LONG:
        logger.info(
            "%s attacks and %s measures on %s images, at most %.3g passes of single images",
            *(len(attacks), len(measures), images, sum(costs.values())),
        )
    board = Board(costs) if progress and sys.stderr.isatty() else False
    with board.shown() if isinstance(board, Board) else nullcontext():
        evaluation = evaluate(
            model,
            bench.split,
            threat=bench.threat,
            attacks=attacks,
            eot=settings.eot,
            progress=board,
            model_name=name,
            data_name=bench.data_name,
            journal=journal,
            **bench.subset,
        )
        found: dict[str, Any] = {}
        with journal.open():
            for measure in measures:
                value = _measured(measure, journal, board)
                found[measure.field] = found[measure.field] + value if measure.field in found else value
    judgement = _scored(Judgement(evaluation=evaluation, **found), settings, base)
    if written is not None:
        judgement.write(written, record)
        journal.remove()
    return judgement


@final
@dataclass(frozen=True)
class _Measure:
    """Something to measure.

    Args:
        name: what the journal and the progress bar call it.
        field: of `Judgement`; of several measures of one field the tuples are joined.
        cost: about how many passes of single images.
        run: measures it; is given the board.
        moves: whether it moves the board's bar itself.
    """

    name: str
    field: str
    cost: int
    run: Callable[[Board | bool], Any]
    moves: bool = False


@final
@dataclass(frozen=True)
class _Bench:
    """A network and what it is judged by."""

    model: nn.Module
    data: ImageData
    settings: EvaluationSettings
    threat: ThreatModel
    name: str | None
    load: Load | None

    @property
    def split(self) -> Split:
        """The images."""
        return self.data.test if self.settings.split == "test" else self.data.validation

    @property
    def data_name(self) -> str:
        """What the record calls them: the plain name is the test split."""
        return self.data.name if self.settings.split == "test" else f"{self.data.name} {self.settings.split}"

    @property
    def subset(self) -> dict[str, Any]:
        """Which images, for everything that goes over all of them."""
        s = self.settings
        return {"num_examples": s.num_examples, "batch_size": s.batch_size, "seed": s.seed}

    def images(self) -> int:
        """How many images are judged."""
        return min(len(self.split), self.settings.num_examples or len(self.split))

    def network(self, run: str) -> nn.Module:
        """The network of a run folder, where the judged one is."""
        if self.load is None:
            raise ConfigError(f"the network of {run} is needed, and nobody said how it is loaded; give load=")
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        return self.load(run).to(device)

    def attacks(self) -> list[Attack]:
        """The attacks, `transfer:each` told for each source, and sources loaded."""
        texts = []
        for text in self.settings.attacks:
            if EACH in text and not self.settings.sources:
                logger.warning("%s is left out: it needs other networks, type --evaluation.sources '[RUN, RUN]'", text)
            texts += [text.replace(EACH, f"transfer:{s}:") for s in self.settings.sources] if EACH in text else [text]
        return resolve_sources(choose(texts, self.settings.eot), self.network)

    def measures(self) -> Iterator[_Measure]:
        """Everything else that is asked for."""
        s, images, classes = self.settings, self.images(), max(self.data.num_classes, 2)
        for steps in s.rho_steps:
            cost = images * DeepFoolAttack(num_steps=steps, num_classes=classes).passes(classes)
            yield _Measure(f"rho, {steps} steps", "rho", cost, partial(self._rho, steps))
        if s.eps_ref:
            yield _Measure("eps_ref", "eps_ref", 70 * images, self._eps_ref)
        if names := chosen_corruptions(s.corruptions):
            cost, title = images * (1 + len(SEVERITIES) * len(names)), " ".join(["corruptions", *s.corruptions])
            yield _Measure(title, "corruptions", cost, partial(self._corruptions, names, title), moves=True)
        if names := chosen_sequences(s.sequences):
            cost, title = images * (1 + sum(SEQUENCES[n][1] for n in names)), " ".join(["sequences", *s.sequences])
            yield _Measure(title, "sequences", cost, partial(self._sequences, names, title), moves=True)
        for plan in self._plans():
            yield _Measure(str(plan), "diagnostics", plan.passes, partial(self._look, plan))
        if s.num_pictures and (attack := self._pictured()) is None:
            logger.warning(
                "pictures are left out: no attack makes images within the threat model, type one such as pgd-20"
            )
        elif s.num_pictures and attack is not None:
            cost = s.num_pictures * attack.passes(classes)
            yield _Measure(f"{s.num_pictures} pictures, {attack}", "examples", cost, partial(self._pictures, attack))

    def _rho(self, steps: int, _: Board | bool) -> tuple[Rho]:
        return (rho(self.model, self.split, num_steps=steps, **self.subset),)

    def _eps_ref(self, _: Board | bool) -> EpsRef:
        return eps_ref(self.model, self.split, **self.subset)

    def _corruptions(self, names: list[str], title: str, board: Board | bool) -> CorruptionErrors:
        named: dict[str, Any] = {"model_name": self.name, "data_name": self.data_name}
        return corruption_errors(
            self.model, self.split, names=names, progress=board, progress_name=title, **self.subset, **named
        )

    def _sequences(self, names: list[str], title: str, board: Board | bool) -> FlipProbabilities:
        named: dict[str, Any] = {"model_name": self.name, "data_name": self.data_name}
        return flip_probabilities(
            self.model, self.split, names=names, progress=board, progress_name=title, **self.subset, **named
        )

    def _plans(self) -> Iterator[Plan]:
        """The diagnostics."""
        names = [t for t in self.settings.diagnostics if t != "all"]
        wanted = [parse_diagnostic(text) for text in names]
        if "all" in self.settings.diagnostics:
            wanted += [parse_diagnostic(name) for name in DIAGNOSTICS if name not in {plan.name for plan in wanted}]
        for plan in wanted:
            if plan.look.needs_other and self.settings.diagnostics_other is None:
                logger.warning(
                    "%s is left out: it needs another network, type --evaluation.diagnostics_other RUN", plan
                )
                continue
            yield plan

    def _look(self, plan: Plan, _: Board | bool) -> tuple[Diagnostic, ...]:
        """A diagnostic; none where it does not fit the network, which is no reason to lose everything else."""
        s, other = self.settings, self.settings.diagnostics_other
        # Some look at a choice of classes, so they see more images than they use.
        with judging(self.model, self.split, seed=s.seed) as session:
            x, y = session.batches.example(plan.images if "classes" not in plan.sizes else 10 * plan.images)
        others = {Path(other).name: self.network(other)} if plan.look.needs_other and other is not None else {}
        try:
            return (plan(Subject(self.model, x, y, self.threat, s.seed, self.name or "network", others)),)
        except LayerwiseError as error:
            logger.warning("%s is left out, it does not fit this network: %s", plan, error)
            return ()

    def _pictured(self) -> InputAttack | None:
        """The last attack that makes images within the threat model."""
        made = [
            a
            for a in choose(self.settings.attacks, self.settings.eot)
            if isinstance(a, InputAttack) and not isinstance(a, Clean | At) and EACH not in str(a)
        ]
        resolved = resolve_sources(made[-1:], self.network)
        return next((a for a in resolved if isinstance(a, InputAttack)), None)

    def _pictures(self, attack: InputAttack, _: Board | bool) -> Examples:
        s = self.settings
        return adversarial_examples(
            self.model,
            self.split,
            attack=attack,
            threat=self.threat,
            num_images=s.num_pictures,
            classes=self.data.classes,
            seed=s.seed,
        )


EACH = "transfer:each:"
"""Stands for a transfer from each of the sources."""


def _measured(measure: _Measure, journal: Journal, board: Board | bool) -> Any:
    """The measure, from the journal if it was done before."""
    item = f"measure {measure.name}"
    if 0 in (known := journal.found(item)):
        if isinstance(board, Board):
            board.skip(measure.name)
        return typed(measure.field, known[0], source=str(journal.path))
    for _ in board.track([0], measure.name, 1) if isinstance(board, Board) and not measure.moves else [0]:
        value = measure.run(board)
    journal.add([(item, 0, plain(value))])
    return value


def _base(settings: EvaluationSettings, folder: Path | None, record: str) -> Judgement | None:
    """The judgement of the run whose errors are 100 %; None if there is none, or it is this run.

    Raises:
        CheckpointError: it has no such record.
        ConfigError: it lacks what this one is to be compared with.
    """
    path = Path(settings.corruption_base or "")
    if settings.corruption_base is None or (folder is not None and path.resolve() == folder.resolve()):
        return None
    base = Judgement.read(path, record)
    for field in ("corruptions", "sequences"):
        if (names := getattr(settings, field)) and getattr(base, field) is None:
            raise ConfigError(
                f"{path} has no {field} in its {record}.json to compare with; type first: "
                f"layerwise evaluate {path} --record {record} --evaluation.{field} '[{', '.join(names)}]'"
            )
    return base


def _scored(judgement: Judgement, settings: EvaluationSettings, base: Judgement | None) -> Judgement:
    """The judgement with mCE and mFR against the base run, which may be this one."""
    if settings.corruption_base is None:
        return judgement
    base = base or judgement
    try:
        if judgement.corruptions is not None and base.corruptions is not None:
            judgement = replace(judgement, corruption_scores=mce(judgement.corruptions, base.corruptions))
        if judgement.sequences is not None and base.sequences is not None:
            judgement = replace(judgement, flip_rates=flip_rates(judgement.sequences, base.sequences))
    except LayerwiseError as error:  # the record holds what was measured all the same
        logger.warning("no comparison with %s: %s", settings.corruption_base, error)
    return judgement
