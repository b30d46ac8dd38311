"""Evaluate a network: accuracy on a fixed set of images under each attack, self-checks, measures, as a record."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict, Unpack, final, overload
from uuid import uuid4

import torch
from torch import Tensor, nn

from layerwise.attacks.at import At
from layerwise.attacks.base import Attack, Averaged, InputAttack
from layerwise.attacks.foreign import FORM, Foreign, Perturb, is_attack
from layerwise.attacks.gradient import Clean, FGSMAttack, PGDAttack
from layerwise.attacks.text import parse_attack
from layerwise.attacks.wrappers import EOT
from layerwise.core.arguments import named
from layerwise.core.calling import count_classes
from layerwise.core.checks import of_kind
from layerwise.core.criteria import as_criterion
from layerwise.core.random import Stream
from layerwise.core.threat import ThreatModel
from layerwise.data import ImageData, rank_rows
from layerwise.data.custom import of_any_kind
from layerwise.errors import ConfigError, DataError, LayerwiseError
from layerwise.evaluation.checks import Finding, compare
from layerwise.evaluation.conditions import Conditions, Data, digest, draws, evaluating
from layerwise.evaluation.examine import examine, examined
from layerwise.evaluation.intervals import Count
from layerwise.evaluation.losses import LossEvaluation, Problem, Score, evaluate_losses
from layerwise.evaluation.measure import Measure, Target, choose_measures
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.progress import Board, tracked
from layerwise.evaluation.ranks import joined, of_the_first, rank_and_world
from layerwise.evaluation.record import DataRecord, Evaluation, Measured, ModelRecord, Result, packed, settings_of
from layerwise.evaluation.store import Store, versions

logger = logging.getLogger(__name__)

EXAMPLE = "layerwise.attacks.PGDAttack(20)"
"""Of an attack, for messages."""


class Options(TypedDict, total=False):
    """What `evaluate` takes beside the network, the data and their loss."""

    threat: ThreatModel
    attacks: Sequence[Attack | Perturb | str]
    measures: Sequence[Measure | str]
    others: Mapping[str, nn.Module] | None
    num_examples: int | None
    seed: int
    batch_size: int
    device: torch.device | str | None
    progress: bool
    eot: int
    num_workers: int
    model_name: str | None
    data_name: str | None
    journal: Path | str | Store | None


LONG = 10**6
"""Passes of single images from which on the plan is told before it begins."""


@overload
def evaluate(
    model: nn.Module, data: Data, *, criterion: None = None, score: None = None, **options: Unpack[Options]
) -> Evaluation: ...


@overload
def evaluate(
    model: nn.Module, data: Any, *, criterion: Any, score: Score | None = None, **options: Unpack[Options]
) -> LossEvaluation: ...


@named
def evaluate(
    model: nn.Module,
    data: Any,
    *,
    criterion: Any = None,
    score: Score | None = None,
    threat: ThreatModel = ThreatModel(),  # noqa: B008 - immutable
    attacks: Sequence[Attack | Perturb | str] = (Clean(), FGSMAttack(), PGDAttack(20)),
    measures: Sequence[Measure | str] = (),
    others: Mapping[str, nn.Module] | None = None,
    num_examples: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    device: torch.device | str | None = None,
    progress: bool = True,
    eot: int = 1,
    num_workers: int = 0,
    model_name: str | None = None,
    data_name: str | None = None,
    journal: Path | str | Store | None = None,
) -> Evaluation | LossEvaluation:
    """Count the images that stay correct under each attack, and measure what else is asked for.

    In evaluation mode, float32 (float64 if the network is), without TF32 and autocast; everything is put back afterwards. The
    images are a permutation drawn by the seed, cut to `num_examples`; random starts belong to an image's place in it, so accuracies
    do not depend on the batch size (but for the last bits of the machine's sums, the network's own random numbers, and `latent`).
    Every attack's images are checked to lie in the threat model.

    Args:
        model: any classifier that takes pixels in [0, 1] and gives logits (B, C), wrapped or not.
        data: a data set (its test split is used), a split, or images and labels; with `criterion` examples of any kind, see
            `layerwise.data.examples`.
        criterion: any loss that methods take, in place of classes of images: the record is then a `LossEvaluation`, each example's loss
            (and score) under each attack. Of the measures it takes `audit`.
        score: with `criterion`, each example's score, score(output, y) -> (B,), more is better; None is the share that is correct.
        threat: against what.
        attacks: objects, their names (`"pgd-50-10"`, see `parse_attack`), or anybody's own, called as attack(model, x, y).
        measures: their names (`"landscape points=21"`, `"all"`, `"my_module:mine"`, see `layerwise.evaluation.measure`). One that does
            not fit the network is left out, and said so.
        others: {name: network} to compare with, for measures of two networks.
        num_examples: at most so many images; None is all.
        seed: of the images and the random starts.
        batch_size: images a batch.
        device: where; None is where the network is.
        progress: show bars with the estimated end on standard error, where a person watches.
        eot: average every gradient over so many passes, for networks that draw random numbers in evaluation mode. Under attack
            such a network, found by itself, is never taken for fooled after a single pass: steps and restarts go on.
        num_workers: processes that read streamed data.
        model_name: for the record; by default the class.
        data_name: for the record.
        journal: a file that keeps what each batch gave: after an interruption the same call goes on there and gives the same record.
            It is removed at the end (a `Store` by whoever made it).

    Returns:
        The record, with a 95 % interval for each accuracy and what the self-checks found.

    Raises:
        DataError: images outside [0, 1], not a number, or labels that the network has no logit for; no images, and no `criterion`.
        ConfigError: no or equal attacks, no logits, an attack that leaves the threat model.
        CheckpointError: another evaluation that is running has the journal.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    >>> data = torch.rand(20, 1, 4, 4), torch.arange(20) % 2
    >>> record = evaluate(net, data, attacks=["clean", "pgd-5"], progress=False)
    >>> record["pgd-5"].accuracy <= record["clean"].accuracy
    True
    """
    of_kind("threat", threat, ThreatModel, example="layerwise.ThreatModel(eps=8/255)")
    if others is not None:
        of_kind("others", others, Mapping, example="{name: network}")
    chosen = choose(attacks, eot, trust=True)
    wanted = choose_measures(measures, other=bool(others), trust=True)
    if criterion is not None:
        about = {"num_examples": num_examples, "seed": seed, "batch_size": batch_size}
        named = {"model_name": model_name, "data_name": data_name}
        loss = Problem(criterion=as_criterion(criterion), score=score, threat=threat, **about, **named)  # type: ignore[arg-type]
        return evaluate_losses(model, data, chosen, wanted, loss, device)
    if of_any_kind(data):
        raise DataError(
            f"a {type(data).__name__} of batches, of examples by name or of token ids holds no images with classes; type "
            "criterion=layerwise.CrossEntropy() for a class each, layerwise.NextToken() for language models, or any other loss. Images "
            "with classes are (images, labels) or layerwise.from_dataset(dataset, classes=[...])"
        )
    # Of several processes the first one keeps the journal.
    kept = None if rank_and_world()[0] else journal
    store = journal if isinstance(journal, Store) else Store(None if kept is None else Path(str(kept)))
    options = {"num_examples": num_examples, "seed": seed, "batch_size": batch_size, "device": device}
    with evaluating(model, data, num_workers=num_workers, **options) as found:  # type: ignore[arg-type]
        conditions = replace(found, data=data_name or found.data)
        first = conditions.batches.example(1)[0]
        threat.check_reach(first.shape[1:])
        for attack in chosen:
            attack.check(first, threat)
        classes = count_classes(conditions.network, first)
        costs = _costs(chosen, wanted, len(conditions.batches.split), classes)
        board = Board(costs, visible=progress and sys.stderr.isatty())
        names = data.classes if isinstance(data, ImageData) else ()
        name = model_name or type(conditions.network).__name__
        target = Target(conditions, threat, name, tuple(chosen), tuple(names), dict(others or {}), board)
        random = draws(conditions.network, first)
        work = _Work(target, store, eot, random)
        with store.open(), store.under(work.circumstances, tell=journal is not None), board.shown():
            findings = work.examine()
            outcomes = list(_each(work.attack, chosen))
            measured = [m for m in map(work.measure, wanted) if m is not None]
            if store is not journal:
                store.finish()
    masks = [mask for _, mask in outcomes]
    return Evaluation(
        model=work.model,
        data=work.data,
        threat=threat,
        results=tuple(result for result, _ in outcomes),
        worst=_worst(chosen, masks),
        findings=(*findings, *compare(dict(zip(chosen, masks, strict=True)), threat)),
        batch_size=batch_size,
        eot=eot,
        random=random,
        device=_device_name(conditions.batches.device),
        versions=versions(),
        measures=tuple(measured),
    )


def _each(run: Callable[[Attack], tuple[Result, Tensor]], attacks: Sequence[Attack]) -> Iterator[tuple[Result, Tensor]]:
    """What each attack gave; after Ctrl-C, those that are done are told."""
    done: list[str] = []
    try:
        for attack in attacks:
            result, mask = run(attack)
            done.append(f"{result.attack} {100 * result.accuracy:.1f} %")
            yield result, mask
    except KeyboardInterrupt:
        if done:
            logger.info("accuracy so far: %s", ", ".join(done))
        raise


def choose(attacks: Sequence[Attack | Perturb | str], eot: int = 1, *, trust: bool = False) -> list[Attack]:
    """The attacks to run, names read and gradients averaged.

    Args:
        attacks: objects, how they are written, or callables.
        eot: passes that gradients are averaged over.
        trust: see `parse_attack`.

    Raises:
        ConfigError: none, two that are the same, or something that is no attack.
    """
    if eot < 1:
        raise ConfigError(f"eot={eot} passes cannot be averaged; type 1 or more")
    if isinstance(attacks, str) or not isinstance(attacks, Iterable):
        attacks = [attacks]
    chosen = [_averaged(_attack_of(a, trust), eot) for a in attacks]
    names = [str(a) for a in chosen]
    if not names:
        raise ConfigError("there is no attack to evaluate under; give at least one, such as 'clean'")
    if double := [n for n in names if names.count(n) > 1]:
        raise ConfigError(f"attack {double[0]!r} is given {names.count(double[0])} times; give it once")
    return chosen


def _attack_of(given: Attack | Perturb | str, trust: bool) -> Attack:
    if isinstance(given, str):
        return parse_attack(given, trust=trust)
    if isinstance(given, Attack):
        return given
    if hasattr(given, "losses"):
        raise ConfigError(f"{_shown(given)} trains and is no attack; give one's name, such as 'pgd-20', or {EXAMPLE}")
    if not is_attack(given):
        raise ConfigError(f"{_shown(given)} is no attack; give a name such as 'pgd-20', or {EXAMPLE}: {FORM}")
    return Foreign(given)


def _shown(given: object) -> str:
    return f"the class {given.__name__}" if isinstance(given, type) else f"{given!r:.60}"


def _averaged(attack: Attack, eot: int) -> Attack:
    """The attack with every gradient averaged over `eot` passes, if it has one."""
    if isinstance(attack, At):
        inner = _averaged(attack.attack, eot)
        assert isinstance(inner, InputAttack)
        return replace(attack, attack=inner)
    averages = eot > 1 and isinstance(attack, InputAttack) and not isinstance(attack, EOT | Clean)
    return EOT(attack, eot) if averages else attack  # type: ignore[arg-type]


def _costs(attacks: Sequence[Attack], measures: Sequence[Measure], images: int, classes: int) -> dict[str, float]:
    """Passes of single images that everything makes, at most; told where they are many."""
    costs = {str(attack): float(attack.passes(classes) * images) for attack in attacks}
    costs |= {str(measure): float(measure.passes(images, classes)) for measure in measures}
    if (total := sum(costs.values())) >= LONG:
        logger.info(
            "%s attacks and %s measures on %s images, at most %.3g passes of single images",
            *(len(attacks), len(measures), images, total),
        )
    return costs


@final
@dataclass(frozen=True)
class _Work:
    """What is done for one evaluation; what the store knows is not done again."""

    target: Target
    store: Store
    eot: int
    random: bool

    @property
    def conditions(self) -> Conditions:
        return self.target.conditions

    @property
    def model(self) -> ModelRecord:
        parameters = sum(p.numel() for p in self.target.model.parameters())
        return ModelRecord(self.target.name, parameters, self.conditions.fingerprint())

    @property
    def data(self) -> DataRecord:
        fingerprint = self.conditions.data_fingerprint()
        return DataRecord(self.conditions.data, len(self.target.split), self.target.seed, fingerprint)

    @property
    def circumstances(self) -> dict[str, Any]:
        """All that the values hang on beside their names."""
        data, batches = self.data, self.conditions.batches
        return {
            "weights": self.model.fingerprint,
            "data": data.fingerprint,
            "images": [len(batches.split), data.size],
            "seed": data.seed,
            "threat": asdict(self.target.threat),
            "batch size": batches.batch_size,
            "device": _device_name(batches.device),
        }

    def examine(self) -> list[Finding]:
        """What the self-checks find in the first images."""

        def look() -> list[Any]:
            x, y = self.conditions.batches.example(examined(self.target.model))
            self.conditions.reseed()
            model = Averaged(self.target.model, self.eot) if self.eot > 1 else self.target.model
            found = examine(model, x, y, self.target.threat, Stream(self.target.seed))
            return [asdict(finding) for finding in found]

        return [Finding(**finding) for finding in self.store.get(f"self-checks, {self.eot} passes", look)]

    def attack(self, attack: Attack) -> tuple[Result, Tensor]:
        """One attack on all images; which ones stay correct, on the CPU."""
        name, item, total = str(attack), _item(attack), len(self.conditions.batches)
        done = of_the_first(_first(self.store.found(item), total))
        if not attack.resumable and len(done) < total:
            done = []
        self.target.board.skip(name, len(done) / total)
        if len(done) < total:
            first, (rank, world) = len(done), rank_and_world()
            # Batches that follow one another are every process's own.
            mine = rank_rows(total - first, (rank, world) if attack.resumable else (0, 1))
            steps = self._outcomes(attack, range(first + mine.start, first + mine.stop))
            fresh = []
            for value in tracked(steps, mine.stop - mine.start, name, self.target.board if rank == 0 else False):
                fresh.append(value)
                if attack.resumable and world == 1:
                    self.store.put(item, value, first + len(fresh) - 1)
            if attack.resumable:
                fresh = joined(fresh)
            if not attack.resumable or world > 1:
                self.store.extend((item, number, value) for number, value in enumerate(fresh, start=first))
            done += fresh
        correct = torch.tensor([bit == "1" for value in done for bit in value["correct"]])
        seconds = sum(value["seconds"] for value in done)
        count = Count(int(correct.sum()), len(correct))
        kept, settings = packed(correct.tolist()), settings_of(attack, self.target.threat)
        return Result(name, settings, count, seconds, attack.in_threat_model, kept), correct

    def _outcomes(self, attack: Attack, numbers: range) -> Iterator[dict[str, Any]]:
        """What the store keeps of each of these batches."""
        model = self.target.model
        if self.random and isinstance(attack, InputAttack):
            model = Averaged(model, 1)  # which no attack takes for fooled after a single pass
        outcomes = attack.outcomes(model, self.conditions.batches.after(numbers.start), self.target.threat)
        for number in numbers:
            # Each batch begins at a state of PyTorch's generator of its own, so that a random network's results depend neither on
            # the other attacks nor on interruptions.
            self.conditions.reseed(number)
            started = time.perf_counter()
            correct = "".join("01"[bit] for bit in next(outcomes).tolist())
            yield {"correct": correct, "seconds": time.perf_counter() - started}

    def measure(self, measure: Measure) -> Measured | None:
        """A measure; None where it does not fit the network, which is no reason to lose everything else."""
        name, board = str(measure), self.target.board
        with_others = [digest(n.state_dict().values()) for n in self.target.others.values() if measure.needs_other]
        item = " ".join(["measure", name, *with_others])
        known = self.store.found(item)
        if 0 in known:
            board.skip(name)
            return Measured(name, Measurement.from_dict(known[0], source=str(self.store.path)))
        try:
            with board.working(name):
                found = measure(replace(self.target, bar=name, store=self.store))
        except LayerwiseError as error:
            logger.warning("%s is left out: %s", name, error)
            return None
        self.store.put(item, found.to_dict())
        return Measured(name, found)


def _item(attack: Attack) -> str:
    """What the store calls an attack: its text, and the weights of the networks that it was given."""
    networks = [n for n in getattr(attack, "sources", ()) if isinstance(n, nn.Module)]
    weights = [digest(chain.from_iterable(n.state_dict().items())) for n in networks]
    inner = getattr(attack, "attack", None)
    if isinstance(attack, Foreign):  # its code may be another by now
        return f"attack {attack} {uuid4()}"
    return " ".join([f"attack {attack}", *weights, *([_item(inner)] if isinstance(inner, Attack) else [])])


def _first(found: Mapping[int, Any], total: int) -> list[Any]:
    """What is known of the first batches, without a gap."""
    done: list[Any] = []
    while len(done) < total and len(done) in found:
        done.append(found[len(done)])
    return done


def _worst(attacks: Sequence[Attack], masks: Sequence[Tensor]) -> Count:
    """Images correct under every attack of the threat model (of all attacks, if none keeps to it)."""
    kept = [m for a, m in zip(attacks, masks, strict=True) if a.in_threat_model] or list(masks)
    correct = torch.stack(kept).all(dim=0)
    return Count(int(correct.sum()), len(correct))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
