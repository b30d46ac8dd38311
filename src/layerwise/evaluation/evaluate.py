"""Judge a network: accuracy on a fixed set of images under each attack, with self-checks, as a record."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.attacks.at import At
from layerwise.attacks.base import Attack, Averaged, InputAttack
from layerwise.attacks.gradient import Clean, FGSMAttack, PGDAttack
from layerwise.attacks.text import parse_attack
from layerwise.attacks.wrappers import EOT
from layerwise.core.random import Stream
from layerwise.core.threat import ThreatModel
from layerwise.data import rank_rows
from layerwise.errors import ConfigError
from layerwise.evaluation.checks import Finding, compare
from layerwise.evaluation.examine import examine, examined
from layerwise.evaluation.journal import Journal
from layerwise.evaluation.metrics import Count
from layerwise.evaluation.progress import Board, tracked
from layerwise.evaluation.ranks import joined, of_the_first, rank_and_world
from layerwise.evaluation.record import DataRecord, Evaluation, ModelRecord, Result, settings_of
from layerwise.evaluation.session import Data, Session, digest, judging


def evaluate(
    model: nn.Module,
    data: Data,
    *,
    threat: ThreatModel = ThreatModel(),  # noqa: B008 - immutable
    attacks: Sequence[Attack | str] = (Clean(), FGSMAttack(), PGDAttack(20)),
    num_examples: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    device: torch.device | str | None = None,
    progress: bool | Board = True,
    eot: int = 1,
    num_workers: int = 0,
    model_name: str | None = None,
    data_name: str | None = None,
    journal: Path | Journal | None = None,
) -> Evaluation:
    """Count the images that stay right under each attack.

    In evaluation mode, float32 (float64 if the network is), without TF32 and autocast; everything is put back afterwards. The
    images are a permutation drawn by the seed, cut to `num_examples`; random starts belong to an image's place in it, so accuracies
    do not depend on the batch size (but for the last bits of the machine's sums, the network's own random numbers, and `latent`).
    Every attack's images are checked to lie in the threat model.

    Args:
        model: any classifier that takes pixels in [0, 1] and gives logits (B, C), wrapped or not.
        data: a data set (its test split is used), a split, or images and labels.
        threat: against what.
        attacks: objects, or their names (`"pgd-50-10"`, see `parse_attack`).
        num_examples: at most so many images; None is all.
        seed: of the images and the random starts.
        batch_size: images a batch.
        device: where; None is where the network is.
        progress: show a bar with the estimated end on standard error, or move those of a board.
        eot: average every gradient over so many passes, for networks that draw random numbers in evaluation mode.
        num_workers: processes that read streamed data.
        model_name: for the record; by default the class.
        data_name: for the record.
        journal: a file that keeps what each batch gave: after an interruption the same call goes on there and gives the same record.
            It is removed at the end (a `Journal` by whoever made it).

    Returns:
        The record, with a 95 % interval for each accuracy and what the self-checks found.

    Raises:
        DataError: images outside [0, 1], not a number, or labels that the network has no logit for.
        ConfigError: no or equal attacks, no logits, an attack that leaves the threat model.
        CheckpointError: another evaluation that is running has the journal.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    >>> data = torch.rand(20, 1, 4, 4), torch.arange(20) % 2
    >>> record = evaluate(net, data, attacks=["clean", "pgd-5"], progress=False)
    >>> record["pgd-5"].accuracy <= record["clean"].accuracy
    True
    """
    chosen = choose(attacks, eot)
    # Of several processes the first one keeps the journal.
    kept = journal if isinstance(journal, Journal) else Journal(journal if rank_and_world()[0] == 0 else None)
    options = {"num_examples": num_examples, "seed": seed, "batch_size": batch_size, "device": device}
    with judging(model, data, num_workers=num_workers, **options) as session:  # type: ignore[arg-type]
        first = session.batches.example(1)[0]
        threat.check_reach(first.shape[1:])
        for attack in chosen:
            attack.check(first, threat)
        network = _model_record(session, model_name)
        images = DataRecord(data_name or session.data, session.size, seed, session.data_fingerprint())
        with kept.open(_circumstances(session, network, images, threat)):
            findings = _examined(session, threat, eot, kept)
            outcomes = [_judge(session, attack, threat, kept, progress) for attack in chosen]
        results, masks = [r for r, _ in outcomes], [m for _, m in outcomes]
        findings += compare(dict(zip(chosen, masks, strict=True)), threat)
        record = Evaluation(
            model=network,
            data=images,
            threat=threat,
            results=tuple(results),
            worst=_worst(chosen, masks),
            findings=tuple(findings),
            batch_size=batch_size,
            eot=eot,
            device=_device_name(session.batches.device),
            versions=versions(),
        )
    if kept is not journal:
        kept.remove()
    return record


def choose(attacks: Sequence[Attack | str], eot: int = 1) -> list[Attack]:
    """The attacks to run, names read and gradients averaged.

    Raises:
        ConfigError: none, or two that are the same.
    """
    if eot < 1:
        raise ConfigError(f"eot={eot} passes cannot be averaged; type 1 or more")
    if isinstance(attacks, str):
        attacks = [attacks]
    chosen = [_averaged(parse_attack(a) if isinstance(a, str) else a, eot) for a in attacks]
    names = [str(a) for a in chosen]
    if not names:
        raise ConfigError("there is no attack to judge by; give at least one, such as 'clean'")
    if double := [n for n in names if names.count(n) > 1]:
        raise ConfigError(f"attack {double[0]!r} is given {names.count(double[0])} times; give it once")
    return chosen


def _averaged(attack: Attack, eot: int) -> Attack:
    """The attack with every gradient averaged over `eot` passes, if it has one."""
    if isinstance(attack, At):
        inner = _averaged(attack.attack, eot)
        assert isinstance(inner, InputAttack)
        return replace(attack, attack=inner)
    averages = eot > 1 and isinstance(attack, InputAttack) and not isinstance(attack, EOT | Clean)
    return EOT(attack, eot) if averages else attack  # type: ignore[arg-type]


def _judge(
    session: Session, attack: Attack, threat: ThreatModel, journal: Journal, progress: bool | Board
) -> tuple[Result, Tensor]:
    """One attack on all images; which ones stay right, on the CPU. What the journal knows is not done again."""
    name, item, total = str(attack), _item(attack), len(session.batches)
    done = of_the_first(_known(journal.found(item), total))
    if not attack.resumable and len(done) < total:
        done = []
    if isinstance(progress, Board):
        progress.skip(name, len(done) / total)
    if len(done) < total:
        first, (rank, world) = len(done), rank_and_world()
        # Batches that follow one another are every process's own.
        mine = rank_rows(total - first, (rank, world) if attack.resumable else (0, 1))
        steps = _outcomes(session, attack, threat, range(first + mine.start, first + mine.stop))
        fresh = []
        for value in tracked(steps, mine.stop - mine.start, name, progress if rank == 0 else False):
            fresh.append(value)
            if attack.resumable and world == 1:
                journal.add([(item, first + len(fresh) - 1, value)])
        if attack.resumable:
            fresh = joined(fresh)
        if not attack.resumable or world > 1:
            journal.add((item, number, value) for number, value in enumerate(fresh, start=first))
        done += fresh
    right = torch.tensor([bit == "1" for value in done for bit in value["right"]])
    seconds = sum(value["seconds"] for value in done)
    count = Count(int(right.sum()), len(right))
    return Result(name, settings_of(attack, threat), count, seconds, attack.in_threat_model), right


def _examined(session: Session, threat: ThreatModel, eot: int, journal: Journal) -> list[Finding]:
    """What the self-checks find in the first images."""
    item = f"self-checks, {eot} passes"
    if 0 not in journal.found(item):
        x, y = session.batches.example(examined(session.network))
        session.reseed()
        attacked = Averaged(session.network, eot) if eot > 1 else session.network
        found = examine(attacked, x, y, threat, Stream(session.batches.seed))
        journal.add([(item, 0, [asdict(finding) for finding in found])])
        return found
    return [Finding(**finding) for finding in journal.found(item)[0]]


def _outcomes(session: Session, attack: Attack, threat: ThreatModel, numbers: range) -> Iterator[dict[str, Any]]:
    """What the journal keeps of each of these batches."""
    outcomes = attack.outcomes(session.network, session.batches.after(numbers.start), threat)
    for number in numbers:
        # Each batch begins at a state of PyTorch's generator of its own, so that a random network's results depend neither on the
        # other attacks nor on interruptions.
        session.reseed(number)
        started = time.perf_counter()
        right = "".join("01"[bit] for bit in next(outcomes).tolist())
        yield {"right": right, "seconds": time.perf_counter() - started}


def _item(attack: Attack) -> str:
    """What the journal calls an attack: its text, and the weights of the networks that it was given."""
    networks = [n for n in getattr(attack, "sources", ()) if isinstance(n, nn.Module)]
    weights = [digest(chain.from_iterable(n.state_dict().items())) for n in networks]
    inner = getattr(attack, "attack", None)
    return " ".join([f"attack {attack}", *weights, *([_item(inner)] if isinstance(inner, Attack) else [])])


def _known(found: Mapping[int, Any], total: int) -> list[Any]:
    """What the journal knows of the first batches, without a gap."""
    done: list[Any] = []
    while len(done) < total and len(done) in found:
        done.append(found[len(done)])
    return done


def _circumstances(session: Session, network: ModelRecord, images: DataRecord, threat: ThreatModel) -> dict[str, Any]:
    """All that the outcomes of an attack hang on."""
    return {
        "weights": network.fingerprint,
        "data": images.fingerprint,
        "images": [len(session.batches.split), images.size],
        "seed": images.seed,
        "threat": asdict(threat),
        "batch size": session.batches.batch_size,
        "device": _device_name(session.batches.device),
        "versions": versions(),
    }


def _worst(attacks: Sequence[Attack], masks: Sequence[Tensor]) -> Count:
    """Images right under every attack of the threat model (of all attacks, if none keeps to it)."""
    kept = [m for a, m in zip(attacks, masks, strict=True) if a.in_threat_model] or list(masks)
    right = torch.stack(kept).all(dim=0)
    return Count(int(right.sum()), len(right))


def _model_record(session: Session, name: str | None) -> ModelRecord:
    parameters = sum(p.numel() for p in session.network.parameters())
    return ModelRecord(name or type(session.network).__name__, parameters, session.fingerprint())


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def versions() -> dict[str, str]:
    """Versions of Python, torch and layerwise."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "layerwise": metadata.version("layerwise"),
    }
