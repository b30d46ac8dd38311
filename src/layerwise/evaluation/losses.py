"""Networks with any loss: what the examples' losses and scores are under each attack, where no image is simply correct or not.

Attacks know classes and cross entropy. So the problem is posed to them as one of two classes whose cross entropy rises with an
example's own loss, and which no example ever leaves: they climb the loss to their last step.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.attacks.at import At
from layerwise.attacks.base import Attack, InputAttack, raw_gradient
from layerwise.attacks.foreign import Foreign
from layerwise.attacks.gradient import BIM, MIFGSM, Clean, FGSMAttack, PGDAttack
from layerwise.attacks.wrappers import EOT
from layerwise.core.calling import Inputs, carrier, logits, rows, with_examples
from layerwise.core.criteria import Criterion, FromFunction, NextToken
from layerwise.core.modes import evaluation_mode, exact_arithmetic, frozen
from layerwise.core.random import Stream
from layerwise.core.sites import unwrap
from layerwise.core.threat import ThreatModel
from layerwise.data.examples import in_batches, known
from layerwise.errors import CheckpointError, ConfigError, DataError
from layerwise.evaluation.audit import Examples, predictions
from layerwise.evaluation.checks import BAD_GRADIENT, RANDOM_GRADIENT, ZERO_GRADIENT, Finding
from layerwise.evaluation.conditions import digest, find_device
from layerwise.evaluation.examine import differ
from layerwise.evaluation.intervals import Estimate, estimate
from layerwise.evaluation.measure import Measure
from layerwise.evaluation.measurement import READERS, plain
from layerwise.evaluation.record import Measured, ModelRecord, escape, measures_of, unpack
from layerwise.evaluation.store import versions
from layerwise.files import write_text
from layerwise.reading import read_record

logger = logging.getLogger(__name__)

FORMAT, VERSION = "layerwise-losses", 1

Score: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Gives each example's score, (B,), of outputs and labels; more is better."""

CLIMBERS = (Clean, FGSMAttack, BIM, PGDAttack, MIFGSM, Foreign)
"""Attacks that climb a loss, or may."""

LABELS = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
LABEL_FUNCTIONS = (F.binary_cross_entropy_with_logits, F.multilabel_soft_margin_loss)
"""Losses of several labels, each of which is right or wrong by itself."""


@final
@dataclass(frozen=True)
class Scored:
    """What one attack leaves.

    Args:
        attack: how it is written; `worst case` is the worst of all in the threat model, for each example.
        loss: mean over the examples; the interval is over them.
        score: likewise, where the loss has one.
        seconds: how long it took.
        in_threat_model: whether it counts for the worst case.
    """

    attack: str
    loss: Estimate
    score: Estimate | None
    seconds: float
    in_threat_model: bool = True


@final
@dataclass(frozen=True)
class LossEvaluation:
    """How much a network with any loss stands: what `evaluate(..., criterion=...)` gives.

    Args:
        model: the network.
        data: what the examples are called.
        fingerprint: digest of the first batch.
        examples: how many.
        criterion: the loss.
        score: what the score is of; empty where there is none.
        threat: against what.
        results: of each attack.
        worst: each example's largest loss and smallest score under the attacks of the threat model.
        findings: what the checks on gradients found; the other self-checks need classes.
        batch_size: examples a batch.
        device: the machine's part that computed.
        versions: of Python, torch and layerwise.
        measures: what else was measured.
    """

    model: ModelRecord
    data: str
    fingerprint: str
    examples: int
    criterion: str
    score: str
    threat: ThreatModel
    results: tuple[Scored, ...]
    worst: Scored
    findings: tuple[Finding, ...]
    batch_size: int
    device: str
    versions: dict[str, str]
    measures: tuple[Measured, ...] = ()

    def __getitem__(self, attack: str) -> Scored:
        """The result of an attack, by the way it is written."""
        return {result.attack: result for result in (*self.results, self.worst)}[attack]

    def __str__(self) -> str:
        """What is printed."""
        return self.to_markdown()

    def to_json(self) -> str:
        """The record as JSON text; null is what was not finite."""
        body = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name != "measures"}
        measures = [measured.to_dict() for measured in self.measures]
        return json.dumps({"format": FORMAT, "version": VERSION, **body, "measures": measures}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str = "the text", trust: bool = False) -> LossEvaluation:
        """Read what `to_json` wrote; arguments and errors are those of `Evaluation.from_json`."""
        what = "the record of an evaluation by a loss"
        body = unpack(text, format=FORMAT, version=VERSION, what=what, source=source)
        found = measures_of(body, source=source, trust=trust)
        record: LossEvaluation = read_record(cls, {**body, "measures": []}, source=source, own=READERS)
        return replace(record, measures=found)

    def write(self, folder: Path | str, record: str = "losses") -> None:
        """Write RECORD.md and RECORD.json into a folder."""
        write_text(Path(folder) / f"{record}.md", self.to_markdown())
        write_text(Path(folder) / f"{record}.json", self.to_json())

    @classmethod
    def read(cls, folder: Path | str, record: str = "losses", *, trust: bool = False) -> LossEvaluation:
        """Read what `write` wrote.

        Args:
            folder: where it is.
            record: name of the files, without `.json`.
            trust: see `Evaluation.from_json`.

        Raises:
            CheckpointError: there is no such record, or it is cut off, corrupt or something else.
        """
        file = Path(folder) / f"{record}.json"
        if not file.is_file():
            raise CheckpointError(f"{folder} holds no {file.name}; write it with record.write({str(folder)!r})")
        return cls.from_json(file.read_bytes(), source=str(file), trust=trust)

    def to_markdown(self) -> str:
        """A heading, the findings, a table with a row for each attack, and a sentence for each measure."""
        score = f"{self.score} %" if self.score else "score"
        lines = [
            f"**{escape(self.model.name)}** on {escape(self.data)}, {self.examples} examples, "
            f"{escape(self.criterion)}, {self.threat}.\n",
            *(f"> **Warning** {escape(finding)}\n" for finding in self.findings),
            f"| attack | loss | 95 % interval | {score} | 95 % interval | seconds |",
            "|---|---:|---:|---:|---:|---:|",
            *map(_row, (*self.results, replace(self.worst, attack="**worst case**"))),
        ]
        said = "".join(f"\n{m.found.title}: {m.found.sentence()}\n" for m in self.measures)
        return "\n".join(lines) + "\n" + said


def _row(result: Scored) -> str:
    loss, score = result.loss, result.score
    name = result.attack if result.attack.startswith("**") else escape(result.attack)
    cells = [name, f"{loss.value:.4g}", f"{loss.low:.4g} to {loss.high:.4g}"]
    cells += (
        ["", ""] if score is None else [f"{100 * score.value:.2f}", f"{100 * score.low:.2f} to {100 * score.high:.2f}"]
    )
    return f"| {' | '.join(cells)} | {result.seconds:.1f} |"


@final
class Posed(nn.Module):
    """A batch's problem as one of two classes: the second one's logit rises from -pi to 0 with each example's own loss.

    Its gradient is that of the loss, times a positive number for each example: no step of a rule that goes by signs or directions is
    another one.

    Args:
        network: the network.
        x: the batch.
        y: what the criterion takes.
        criterion: the loss.
    """

    def __init__(self, network: nn.Module, x: Inputs, y: Tensor, criterion: Criterion) -> None:
        super().__init__()
        self.network, self.x, self.y, self.criterion = network, x, y, criterion
        with torch.no_grad():
            usual = self.losses(logits(network, x)).abs().nanmean()
        self.unit = float(usual) if usual.isfinite() and usual > 0 else 1.0
        self.eval()

    def losses(self, output: Tensor) -> Tensor:
        """Each example's own loss, (B,), in float64: the mean over the positions that have a label."""
        found = self.criterion(output.double(), self.y.double() if self.y.is_floating_point() else self.y)
        labels = self.y[:, 1:] if isinstance(self.criterion, NextToken) else self.y
        if found.ndim == 1 or labels.shape != found.shape or labels.is_floating_point():
            return found if found.ndim == 1 else found.flatten(1).mean(1)
        counted = (labels != ignored(self.criterion)).flatten(1)
        return found.flatten(1).sum(1) / counted.sum(1).clamp(min=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 2) of which the first is the larger."""
        if len(x) != rows(self.x):
            raise ConfigError(
                "the attack looks at a part of the batch, which a loss of any kind does not allow; type pgd-20"
            )
        found = self.losses(logits(self.network, with_examples(self.x, x))).nan_to_num(
            nan=1e30, posinf=1e30, neginf=-1e30
        )
        second = torch.atan(found / self.unit) - math.pi / 2
        # Where it is rounded to 0 the first is still the larger.
        return torch.stack([torch.full_like(second, 1e-9), second], dim=1)


def check_attack(attack: Attack) -> None:
    """Complain about an attack that means classes.

    Raises:
        ConfigError: saying what to type instead.
    """
    inner: Any = attack
    while isinstance(inner, At | EOT):
        inner = inner.attack
    if not isinstance(inner, CLIMBERS):
        raise ConfigError(
            f"{attack} means classes of images, and criterion= is any loss; type one that climbs it: clean, fgsm, bim, pgd-20-5, mi-fgsm, "
            "or give a callable (model, x, y)"
        )


def ignored(criterion: Criterion) -> int:
    """The label of what does not count."""
    found: int = getattr(getattr(criterion, "function", criterion), "ignore_index", -100)
    return found


def score_of(criterion: Criterion, output: Tensor, y: Tensor) -> tuple[str, Score | None]:
    """What is right or wrong under a criterion, and how to count it; None where nothing is."""
    inner = criterion.function if isinstance(criterion, FromFunction) else None
    if isinstance(inner, LABELS) or inner in LABEL_FUNCTIONS:
        return "labels correct", lambda output, y: ((output > 0) == (y > 0.5)).flatten(1).double().mean(1)
    if y.is_floating_point() or output.ndim < 2:
        return "", None
    try:
        said, _, _ = predictions(criterion, output, y)
    except DataError:
        return "", None

    def share(output: Tensor, y: Tensor) -> Tensor:
        said, labels, _ = predictions(criterion, output, y)
        hits, counted = (said == labels).flatten(1), (labels != ignored(criterion)).flatten(1)
        return (hits & counted).sum(1).double() / counted.sum(1)  # NaN where nothing is labelled

    def one(output: Tensor, y: Tensor) -> Tensor:
        return (output.argmax(1) == y).double()

    return ("correct", one) if said.ndim == 1 else ("positions correct", share)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """How it is evaluated.

    Args:
        criterion: the loss.
        score: of the user's own; None takes the share of what is correct, where a criterion has it.
        threat: against what.
        seed: of random starts.
        batch_size: examples a batch, where the data do not come in batches.
        num_examples: at most so many, the first ones; None is all.
        model_name: for the record.
        data_name: for the record.
    """

    criterion: Criterion
    score: Score | None
    threat: ThreatModel
    seed: int
    batch_size: int
    num_examples: int | None
    model_name: str | None
    data_name: str | None


def evaluate_losses(
    model: nn.Module,
    data: Any,
    attacks: Sequence[Attack],
    measures: Sequence[Measure],
    problem: Problem,
    device: torch.device | str | None,
) -> LossEvaluation:
    """Every attack on every batch; the network is put back as it was."""
    network = unwrap(model)
    home = next((p.device for p in network.parameters()), torch.device("cpu"))
    place = home if device is None else find_device(device)
    sizes: dict[str, Any] = {"batch_size": problem.batch_size, "num_examples": problem.num_examples}
    with exact_arithmetic(place), evaluation_mode(network), frozen(network):
        try:
            batches = known(in_batches(data, device=place, **sizes))
            found = _evaluated(network.to(place), batches, _possible(attacks, batches), problem)
            return replace(found, measures=tuple(_measured(network, batches, measures, problem)))
        finally:
            network.to(home)


def _measured(
    network: nn.Module, batches: Examples, measures: Sequence[Measure], problem: Problem
) -> Iterator[Measured]:
    """The audit, which takes any loss; the other measures need classes of images."""
    from layerwise.evaluation.measures.latent_audit import audit, read_radii

    for measure in measures:
        if measure.entry.name != "audit":
            logger.warning(
                "%s is left out: it needs classes of images, and criterion= is any loss; type audit", measure
            )
            continue
        sizes = dict(measure.sizes)
        options = {"radii": read_radii(sizes.pop("radii")), "num_examples": sizes.pop("images"), **sizes}
        chosen = list(measure.words) or None
        found = audit(network, batches, sites=chosen, criterion=problem.criterion, seed=problem.seed, **options)
        yield Measured(str(measure), found)


def _evaluated(network: nn.Module, batches: Examples, attacks: Sequence[Attack], problem: Problem) -> LossEvaluation:
    x, y = batches[0]
    criterion, threat, seed, score = problem.criterion, problem.threat, problem.seed, problem.score
    with torch.no_grad():
        told, counted = ("score", score) if score else score_of(criterion, logits(network, x), y)
    found = {
        str(attack): list(_attacked(network, batches, criterion, attack, threat, counted, seed)) for attack in attacks
    }
    results: list[Scored] = []
    kept: list[tuple[Tensor, ...]] = []
    for attack in attacks:
        name = str(attack)
        losses, scores = (torch.cat([part[0] for part in found[name]]), torch.cat([part[1] for part in found[name]]))
        seconds = sum(part[2] for part in found[name])
        results.append(_scored(name, losses, scores, seconds, attack.in_threat_model))
        kept += [(losses, scores)] if attack.in_threat_model else []
    worst = [torch.stack(each) for each in zip(*(kept or [(losses, scores)]), strict=True)]
    values = [value for pair in network.state_dict().items() for value in pair]
    size = sum(p.numel() for p in network.parameters())
    tensors = x.values() if isinstance(x, dict) else x if isinstance(x, tuple | list) else [x]
    return LossEvaluation(
        model=ModelRecord(problem.model_name or type(network).__name__, size, digest(values)),
        data=problem.data_name or "data",
        fingerprint=digest(chain(tensors, [y])),
        examples=len(worst[0][0]),
        criterion=str(getattr(criterion, "function", criterion)),
        score=told if counted else "",
        threat=threat,
        results=tuple(results),
        worst=_scored("worst case", worst[0].amax(0), worst[1].amin(0), 0.0, True),
        findings=tuple(_findings(network, batches, criterion)),
        batch_size=problem.batch_size,
        device=str(y.device),
        versions=versions(),
    )


def _possible(attacks: Sequence[Attack], batches: Examples) -> list[Attack]:
    """The attacks that can be made: all, or `clean` alone where nothing carries a gradient."""
    for attack in attacks:
        check_attack(attack)
    moving = [str(attack) for attack in attacks if not isinstance(attack, Clean)]
    if moving and any(carrier(x) is None for x, _ in batches):
        logger.warning(
            "%s left out: whole numbers (token ids) carry no gradient; measures=['audit'] perturbs every layer, embeddings too",
            f"{', '.join(moving)} {'is' if len(moving) == 1 else 'are'}",
        )
        return [Clean()]
    for x, _ in batches if moving else ():
        low, high = (float(v) for v in carrier(x).aminmax())  # type: ignore[union-attr]
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"the inputs lie in [{low:.4g}, {high:.4g}], and attacks keep them in [0, 1]; scale the data to [0, 1], put the rest into "
                "the network (layerwise.Normalized), or type attacks=['clean']"
            )
    return list(attacks)


def _attacked(
    network: nn.Module,
    batches: Examples,
    criterion: Criterion,
    attack: Attack,
    threat: ThreatModel,
    score: Score | None,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """For each batch the examples' losses, their scores (NaN where there is none), and the seconds."""
    assert isinstance(attack, InputAttack)
    allowed = attack.threat(threat) if isinstance(attack, At) else threat
    start, total = 0, sum(rows(x) for x, _ in batches)
    for x, y in batches:
        began = time.perf_counter()
        given = x
        posed, zeros = Posed(network, x, y, criterion), torch.zeros(rows(x), dtype=torch.int64, device=y.device)
        if (pixels := carrier(x)) is not None and not isinstance(attack, Clean):
            moved = attack(posed, pixels, zeros, threat, generator=Stream(seed, start=start, total=total))
            allowed.check(pixels, moved, attack=str(attack))
            given = with_examples(x, moved)
        start += rows(x)
        with torch.no_grad():
            output = logits(network, given)
            losses = posed.losses(output)
            scores = torch.full_like(losses, math.nan) if score is None else score(output, y).double()
        yield losses.cpu(), scores.cpu(), time.perf_counter() - began


def _scored(name: str, losses: Tensor, scores: Tensor, seconds: float, inside: bool) -> Scored:
    known = scores[~scores.isnan()]
    return Scored(name, estimate(losses), estimate(known, share=True) if len(known) else None, seconds, inside)


def _findings(network: nn.Module, batches: Examples, criterion: Criterion) -> list[Finding]:
    """What the gradients at the inputs of the first batch give away."""
    x, y = batches[0]
    pixels = carrier(x)
    if pixels is None:
        return []
    posed, zeros = Posed(network, x, y, criterion), torch.zeros(rows(x), dtype=torch.int64, device=y.device)
    first, again = (raw_gradient(posed, pixels, zeros) for _ in range(2))
    flat = first.flatten(1)
    return [
        *ZERO_GRADIENT.share((flat == 0).all(dim=1), len(flat)),
        *BAD_GRADIENT.share((~flat.isfinite()).any(dim=1), len(flat)),
        *RANDOM_GRADIENT.share(differ(first, again), len(flat)),
    ]
