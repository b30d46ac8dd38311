"""Successive halving: every trial trains briefly, the best third of them three times as long, and so on to the full length.

Each rung trains afresh. A recipe's schedule has to see its own end: a run stopped on the way, at a rate that is still high, ranks rates
and radii otherwise than a short run that is finished, and collapses come late. All rungs cost the same, so a third of each but the first
is what going on from checkpoints could save.

Reference: Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization".
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, final

from layerwise.core.checks import at_least
from layerwise.core.modes import evaluation_mode
from layerwise.data import ImageData, batches
from layerwise.errors import CheckpointError, ConfigError, LayerwiseError, did_you_mean
from layerwise.evaluation import Evaluation, Rho, evaluate_run
from layerwise.evaluation.checks import OVERFITTING, RANDOM_SEARCH, SATURATED, ZERO_GRADIENT
from layerwise.evaluation.settings import EvaluationSettings
from layerwise.evaluation.store import Store
from layerwise.experiments import experiment as experiments
from layerwise.experiments import recipe
from layerwise.experiments.ranges import Choice, Range, overlap
from layerwise.experiments.settings import SCHEMA, Experiment, make_phases, with_settings
from layerwise.experiments.tune.search import optuna, propose
from layerwise.experiments.tune.shorter import shortened
from layerwise.experiments.tune.trials import (
    TRIALS,
    Objective,
    State,
    Trial,
    Tuning,
    add_trial,
    read_trials,
    run_name,
)
from layerwise.experiments.tune.workers import JOURNAL, Several, Shared, Workers
from layerwise.files import atomic, held, refuse_link, write_text, writing
from layerwise.methods.sources import with_networks
from layerwise.reading import written
from layerwise.training import WEIGHTS, FitResult, load_weights
from layerwise.training.monitor import OVERFITTING as COLLAPSED
from layerwise.training.phases import Phases
from layerwise.training.run import CHECKPOINTS, FREE, Weights, check_config
from layerwise.trees import Tree, at, dump_yaml, load_yaml, parse_yaml

logger = logging.getLogger("layerwise")

FACTOR = 3
"""A rung keeps one trial in so many, and is so many times as long as the one before."""

LONGER = 5
"""So many times the PGD steps at the last rung."""

UNDONE = 0.1
"""Accuracy that the longer PGD may take from what the shorter one left (on the digits it takes 6 points from an honest network)."""

MASKING = frozenset(check.name for check in (OVERFITTING, RANDOM_SEARCH, SATURATED, ZERO_GRADIENT))
"""Self-checks after which accuracy under PGD is not to be believed."""

SETTLED = ("training.epochs", "training.max_steps", "training.eval_", "evaluation", "threat", "data")
"""Beginnings of settings that would change the yardstick."""

ASKED, TABLE, BEST, PICTURE = "tune.yaml", "tune.md", "best.yaml", "tune.png"


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a search is made.

    Args:
        trials: how many settings are tried.
        budget: epochs of the last rung; None is the recipe's.
        objective: `"robust"` (accuracy under PGD), `"clean"`, or `"rho"` (Deep Defense's rho_2).
        max_clean_drop: largest loss of clean accuracy, in [0, 1], against the network that the recipe starts from; None is any.
        weights: which weights of a trial are evaluated: `"last"`, `"best"` (by robust validation accuracy), `"ema"` or `"best-ema"`.
        seed: of the settings that are tried; those of training are the recipe's.
    """

    trials: int = 9
    budget: int | None = None
    objective: Objective = "robust"
    max_clean_drop: float | None = None
    weights: Weights = "last"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        at_least("trials", self.trials, 1)
        at_least("seed", self.seed, 0)
        if self.budget is not None:
            at_least("budget", self.budget, 1)
        for name, known in (("objective", ("robust", "clean", "rho")), ("weights", tuple(WEIGHTS))):
            if (value := getattr(self, name)) not in known:
                raise ConfigError(f"{name}: there is no {value!r}; {did_you_mean(value, known)}")
        if self.max_clean_drop is not None and not 0 <= self.max_clean_drop < 1:
            raise ConfigError(f"max_clean_drop={self.max_clean_drop} is no share; type one such as 0.01")

    def rungs(self, epochs: int, *, shortest: int = 1) -> list[tuple[int, int]]:
        """(trials, epochs) of every rung.

        >>> Plan(trials=9).rungs(30)
        [(9, 3), (3, 10), (1, 30)]
        """
        lengths = [epochs]
        while lengths[0] // FACTOR >= shortest and self.trials // FACTOR ** len(lengths):
            lengths.insert(0, lengths[0] // FACTOR)
        return [(self.trials // FACTOR**rung, length) for rung, length in enumerate(lengths)]


def tune(
    tree: Tree,
    ranges: Mapping[str, Range],
    plan: Plan,
    *,
    name: str,
    folder: Path,
    runs: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    trust: bool = False,
    workers: Workers | None = None,
) -> Tuning:
    """Search the ranges, and write trials.jsonl, tune.md, tune.png and best.yaml into the folder.

    Each trial is a run in FOLDER/trial-NNN-rung-R, evaluated on the validation split; the test split is never read. The same arguments
    give the same search, also after an interruption.

    Args:
        tree: the recipe's settings, resolved.
        ranges: {dotted setting: range}.
        plan: how.
        name: of the recipe, for the table.
        folder: of the search.
        runs: where the run that the recipe starts from may be; what is not there is trained in `folder`.
        resume: go on with the search in the folder.
        progress: show progress.
        trust: whether the ranges are the user's, and so may name code.
        workers: try several trials at once; the later proposals then hang on which ends first. None is one after the other, here.

    Raises:
        ConfigError: nothing to search, a range or setting that does not fit, no validation images, no optuna, or other settings than
            those of the search to resume.
        CheckpointError: the folder is taken or cannot be written.
        LayerwiseError: not one trial was sound.
    """
    optuna()
    base = _checked(tree, ranges, plan, trust=trust)
    plan = _bounded(plan, ranges)
    asked = _asked(tree, ranges, plan)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        if (folder / ASKED).is_file():
            if not resume:
                raise CheckpointError(
                    f"{folder} already holds a search; add --resume to go on with it, or --name another"
                )
            check_config(load_yaml(folder / ASKED), asked, where=folder, free=[f"recipe.{key}" for key in FREE])
        else:
            write_text(folder / ASKED, dump_yaml(asked))
        try:
            search = _Search(base, ranges, plan, folder, runs, progress)
            trials, best = search.run(Several(search, workers) if workers else None)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "stopped, what is done is kept; go on by typing the same again with --resume"
            ) from None
    found = Tuning(
        recipe=name, objective=plan.objective, weights=plan.weights, ranges=ranges, trials=tuple(trials), best=best
    )
    _, winner = shortened(with_settings(tree, best.settings, where="tune")[0], epochs=search.epochs)
    told = ", ".join(f"{key} {written(value)}" for key, value in best.settings.items())
    write_text(folder / BEST, f"# {name} with {told}.\n# {found.sentence()}\n{dump_yaml(winner)}")
    write_text(folder / TABLE, found.to_markdown())
    picture = found.figure()
    with writing(folder / PICTURE), atomic(folder / PICTURE) as partial:
        picture.savefig(partial, format="png")
    return found


def try_one(
    tree: Tree,
    ranges: Mapping[str, Range],
    plan: Plan,
    *,
    folder: Path,
    runs: Path | None,
    number: int,
    rung: int,
    trust: bool = False,
    progress: bool = True,
) -> None:
    """Train and evaluate one trial of a search that is going on: Optuna's storage has its settings, and takes what it gives.

    Raises:
        CheckpointError: the folder holds no such search, or the search no such trial.
    """
    plan = _bounded(plan, ranges)
    if not (folder / ASKED).is_file():
        raise CheckpointError(f"{folder} holds no search; leave out --only, and one begins")
    check_config(
        load_yaml(folder / ASKED), _asked(tree, ranges, plan), where=folder, free=[f"recipe.{key}" for key in FREE]
    )
    search = _Search(_checked(tree, ranges, plan, trust=trust), ranges, plan, folder, runs, progress)
    shared = Shared(folder, ranges)
    known, rungs = shared.settings(), search.rungs()
    if not (0 <= number < len(known) and 0 <= rung < len(rungs)):
        raise CheckpointError(f"{folder} has no trial {number} at rung {rung}: {len(known)} trials, {len(rungs)} rungs")
    search.floor = search.lowest()
    trial = search.attempt(number, rung, rungs[rung][1], known[number], last=rung + 1 == len(rungs))
    shared.tell(number, trial.run, trial.score(plan.objective), asdict(trial))


def _bounded(plan: Plan, ranges: Mapping[str, Range]) -> Plan:
    """The plan with no more trials than there are settings."""
    if (size := math.prod(each.size for each in ranges.values())) >= plan.trials:
        return plan
    logger.info("the ranges hold %d settings; each is tried once", size)
    return replace(plan, trials=int(size))


def _asked(tree: Tree, ranges: Mapping[str, Range], plan: Plan) -> Tree:
    """What a search is asked for, with lists for tuples, as its file says it."""
    wanted = {"recipe": tree, "ranges": {key: each.plain() for key, each in ranges.items()}, "plan": asdict(plan)}
    found: Tree = parse_yaml(dump_yaml(wanted), "the search")
    return found


def _checked(tree: Tree, ranges: Mapping[str, Range], plan: Plan, *, trust: bool) -> Experiment:
    """The recipe's experiment, if the search can begin."""
    base: Experiment = SCHEMA.read(tree)[0]
    if not ranges:
        rate = base.training.optimizer.lr
        own = ", ".join(f"method.{name}" for name in at(tree, "method") if name != "name")
        raise ConfigError(
            f"there is nothing to search; type --range training.optimizer.lr={rate / 4:g}:{rate * 4:g}:log, or give the recipe a "
            f"section tune:; the settings of {type(base.method).__name__} are {own or 'none'}"
        )
    for one, other in combinations(ranges, 2):
        if overlap(one, other, tree):
            raise ConfigError(f"the ranges of {one} and {other} set the same numbers; leave out one of them")
    firsts = {key: each.first for key, each in ranges.items()}
    first, _ = with_settings(tree, firsts, where="range", trust=trust)
    for key, each in ranges.items():
        for value in each.values if isinstance(each, Choice) else (each.high,):
            try:  # what is the user's own code is imported now
                with_settings(tree, {**firsts, key: value}, where="range", trust=trust)
            except ConfigError:
                # Another class may lack what other ranges set: such trials fail, and the search goes on.
                if at(tree, f"{key}.name") is None:
                    raise
    if fixed := [key for key in ranges if key.startswith(SETTLED)]:
        raise ConfigError(
            f"{fixed[0]} cannot be searched: it belongs to the rungs (see --budget) or to how trials are evaluated"
        )
    if plan.max_clean_drop is not None and base.model.start is None:
        raise ConfigError("max_clean_drop needs a network to compare with: a recipe that sets model.start")
    check_weights(base, plan.weights)
    data = experiments.load_data(base.data)
    if not len(data.validation):
        raise ConfigError("there are no validation images to choose by; type --data.validation 0.1")
    _check_sites(first, data)
    return base


def _check_sites(chosen: Experiment, data: ImageData) -> None:
    """Complain about sites that a range names and the network does not have."""
    model = experiments.build_model(chosen.model, data)
    method = with_networks(chosen.method.under(chosen.threat), lambda source: model)
    x, _ = next(batches(data.train, 2))
    with evaluation_mode(model), Phases(method, make_phases(chosen), chosen.training.epochs).attached(model, x):
        pass


def check_weights(chosen: Experiment, weights: Weights) -> None:
    """Complain about weights that a run would not have.

    Raises:
        ConfigError: with the setting that makes them.
    """
    training = chosen.training
    if "ema" in weights and training.ema_decay is None:
        raise ConfigError(
            f"the recipe averages no weights, so there are no {weights} ones; type --training.ema_decay 0.999"
        )
    if "best" in weights and not training.eval_every:
        raise ConfigError(
            f"the recipe never looks at the validation images, so there are no {weights} weights; type --training.eval_every 1"
        )


@final
class _Search:
    """A search in its folder."""

    def __init__(
        self, base: Experiment, ranges: Mapping[str, Range], plan: Plan, folder: Path, runs: Path | None, progress: bool
    ) -> None:
        start = base.model.start or ""
        if runs is not None and (start in recipe.names() or start.endswith((".yaml", ".yml"))):
            reference = runs / Path(start).stem
            if (reference / WEIGHTS["last"]).is_file():
                base = replace(base, model=replace(base.model, start=str(reference)))
        self.base, self.tree = base, SCHEMA.tree(base)
        self.ranges, self.plan, self.folder, self.progress = ranges, plan, folder, progress
        self.epochs = plan.budget or base.training.epochs
        self.store, self.floor = Store(folder / TRIALS), 0.0
        self.known: dict[tuple[int, int], Trial] = {}

    def own(self, trial: Trial) -> Trial:
        """A trial whose settings are those that are searched: what a file says may set nothing else."""
        searched = set(trial.settings) == set(self.ranges)
        if not searched or not all(trial.settings[key] in each for key, each in self.ranges.items()):
            raise CheckpointError(
                f"{self.folder / TRIALS}: the settings of trial {trial.trial} are not of this search; remove the file, "
                "and the search begins anew"
            )
        return trial

    def rungs(self) -> list[tuple[int, int]]:
        """(trials, epochs) of every rung."""
        return self.plan.rungs(self.epochs, shortest=max(1, len(self.base.phases)))

    def keep(self, trial: Trial) -> None:
        """Take what came of a trial; it is on the disk when this returns."""
        add_trial(self.store, trial)
        self.known[trial.trial, trial.rung] = trial

    def run(self, several: Several | None = None) -> tuple[list[Trial], Trial]:
        """Every trial in order, and the winner; `several` tries what it can side by side before."""
        self.known = {(t.trial, t.rung): self.own(t) for t in read_trials(self.store)}
        if several is None:
            self.floor = self.lowest()
        rungs = self.rungs()
        proposed = Shared(self.folder, self.ranges).settings() if (self.folder / JOURNAL).is_file() else []
        done: list[Trial] = []
        order: list[tuple[int, dict[str, Any] | None]] = [(number, None) for number in range(self.plan.trials)]
        for rung, (quota, epochs) in enumerate(rungs):
            last, there = rung + 1 == len(rungs), list[Trial]()
            if several is not None:
                several.run(order, rung, quota)
            for number, settings in order:
                # What turns out not to be sound makes room for the next best.
                if sum(t.state == "sound" for t in there) < quota:
                    if (number, rung) not in self.known:
                        settings = settings or (proposed[number] if number < len(proposed) else self.propose(there))
                        self.keep(self.attempt(number, rung, epochs, settings, last=last))
                    there.append(self.known[number, rung])
            done += there
            sound = [t for t in there if t.state == "sound"]
            if not sound:
                states = ", ".join(f"trial {t.trial} {t.state}{': ' * bool(t.message)}{t.message}" for t in there[:3])
                raise LayerwiseError(
                    f"not one of {len(there)} trials of {epochs} epochs was sound ({states}); see {self.folder / TRIALS}"
                )
            ranked = sorted(sound, key=lambda t: (-t.score(self.plan.objective), t.trial))
            order = [(t.trial, t.settings) for t in ranked]
        return done, ranked[0]

    def propose(self, before: list[Trial], running: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """What to try next; first the recipe as it is, where its values lie in the ranges."""
        own = {key: at(self.tree, key) for key in self.ranges}
        if not (before or running) and all(own[key] in each for key, each in self.ranges.items()):
            return own
        told = [(t.settings, t.score(self.plan.objective)) for t in before]
        first = max(4, self.plan.trials // FACTOR)
        return propose(self.ranges, told, running=running or [], seed=self.plan.seed, random=first)

    def attempt(self, number: int, rung: int, epochs: int, settings: dict[str, Any], *, last: bool) -> Trial:
        """Train and evaluate; what came of it."""
        run = run_name(number, rung)
        logger.info("%s: %s", run, ", ".join(f"{key} {written(value)}" for key, value in settings.items()))
        about: dict[str, Any] = {"trial": number, "rung": rung, "epochs": epochs, "settings": settings, "run": run}
        begin = time.perf_counter()
        refuse_link(self.folder / run)
        try:
            chosen, _ = with_settings(self.tree, settings, where=run)
            chosen, tree = shortened(chosen, epochs=epochs, evaluation=self._evaluation(last))
            check_weights(chosen, self.plan.weights)
            trained = experiments.train(
                chosen,
                tree,
                folder=self.folder / run,
                resume=True,
                progress=self.progress,
                weights=self.plan.weights,
            )
            scores: dict[str, Any] = self._scores(*trained)
        except (CheckpointError, OSError):  # the machine's fault, not the setting's
            raise
        except Exception as error:
            logger.warning("%s failed: %s", run, error)
            scores = {"state": "failed", "message": f"{type(error).__name__}: {error}"[:500]}
        trial = Trial(**about, **scores, seconds=round(time.perf_counter() - begin, 2))
        # Several times the size of everything else, and no rung goes on from them.
        shutil.rmtree(self.folder / run / CHECKPOINTS, ignore_errors=True)
        return trial

    @property
    def _rho(self) -> list[str]:
        """The recipe's own rho_2 of most steps, the last that it names."""
        named = [text for text in self.base.evaluation.measures if text.split()[0] == "rho"]
        return named[-1:] or ["rho"]

    def _evaluation(self, last: bool) -> EvaluationSettings:
        """How trials are evaluated: only what the search looks at, on the validation split."""
        steps = self.base.training.eval_steps or 10
        return replace(
            self.base.evaluation,
            attacks=["clean", f"pgd-{steps}", *[f"pgd-{LONGER * steps}"] * last],
            sources=[],
            measures=self._rho if self.plan.objective == "rho" else [],
            baseline=None,
            num_examples=self.base.training.eval_examples,
            split="validation",
        )

    def _scores(self, fitted: FitResult, evaluation: Evaluation) -> dict[str, Any]:
        """The fields of a `Trial` that training and evaluation tell."""
        clean, *attacked = evaluation.accuracies.values()
        findings = tuple(dict.fromkeys(finding.name for finding in evaluation.findings))
        state: State = "sound"
        if self.plan.objective == "robust":
            if COLLAPSED in fitted.flags and "best" not in self.plan.weights:  # the best ones are from before
                state = "overfitted"
            elif MASKING & set(findings) or attacked[-1] < attacked[0] - UNDONE:
                state = "masked"
        if clean < self.floor:
            state = "inaccurate"
        rho = [found.value for found in evaluation.found(Rho)]
        return {
            "state": state,
            "images": evaluation.worst.total,
            "clean": clean,
            "robust": attacked[-1],
            "rho": rho[0] if rho else None,
            "findings": findings,
        }

    def lowest(self) -> float:
        """The smallest clean accuracy that is accepted."""
        drop, base = self.plan.max_clean_drop, self.base
        if drop is None:
            return 0.0
        data = experiments.load_data(base.data)
        model = experiments.build_model(base.model, data)
        evaluation = replace(self._evaluation(False), attacks=["clean"], measures=[])
        chosen, _ = shortened(base, epochs=self.epochs, evaluation=evaluation)
        load_weights(
            model,
            experiments.run_of(str(base.model.start), "model.start", chosen, runs=self.folder, progress=self.progress),
        )
        network = model.to(experiments.best_device())
        found = evaluate_run(network, data, chosen.evaluation, threat=chosen.threat, progress=False)
        return found["clean"].accuracy - drop
