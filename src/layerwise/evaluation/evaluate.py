"""Judge a network: accuracy on a fixed set of images under each attack, with self-checks, as a record."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from typing import TypeVar

import torch
from torch import Tensor, nn

from layerwise.errors import ConfigError
from layerwise.evaluation.attacks import FGSM, PGD, Clean
from layerwise.evaluation.base import Attack, InputAttack
from layerwise.evaluation.checks import compare, inspect
from layerwise.evaluation.metrics import Count
from layerwise.evaluation.record import DataRecord, Evaluation, ModelRecord, Result, settings_of
from layerwise.evaluation.registry import parse_attack
from layerwise.evaluation.session import Data, Session, judging
from layerwise.evaluation.threat import ThreatModel
from layerwise.evaluation.wrappers import EOT

_T = TypeVar("_T")

INSPECTED = 64
"""Images whose gradients and outputs the self-checks look at."""


def evaluate(
    model: nn.Module,
    data: Data,
    *,
    threat: ThreatModel = ThreatModel(),  # noqa: B008 - immutable
    attacks: Sequence[Attack | str] = (Clean(), FGSM(), PGD(20)),
    num_examples: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    device: torch.device | str | None = None,
    progress: bool = True,
    eot: int = 1,
    num_workers: int = 0,
    model_name: str | None = None,
    data_name: str | None = None,
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
        progress: show a bar with the estimated end on standard error.
        eot: average every gradient over so many passes, for networks that draw random numbers in evaluation mode.
        num_workers: processes that read streamed data.
        model_name: for the record; by default the class.
        data_name: for the record.

    Returns:
        The record, with a 95 % interval for each accuracy and what the self-checks found.

    Raises:
        DataError: images outside [0, 1], not a number, or labels that the network has no logit for.
        ConfigError: no or equal attacks, no logits, an attack that leaves the threat model.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    >>> data = torch.rand(20, 1, 4, 4), torch.arange(20) % 2
    >>> record = evaluate(net, data, attacks=["clean", "pgd-5"], progress=False)
    >>> record["pgd-5"].accuracy <= record["clean"].accuracy
    True
    """
    chosen = choose(attacks, eot)
    with judging(
        model,
        data,
        num_examples=num_examples,
        seed=seed,
        batch_size=batch_size,
        device=device,
        num_workers=num_workers,
    ) as session:
        x, y = session.batches.example(INSPECTED)
        threat.check_reach(x.shape[1:])
        findings = inspect(session.network, x, y)
        results, masks = [], []
        for number, attack in enumerate(chosen, start=1):
            title = f"{attack} ({number}/{len(chosen)})"
            result, right = _judge(session, attack, threat, title if progress else None)
            results.append(result)
            masks.append(right)
        findings += compare({a: r.accuracy for a, r in zip(chosen, results, strict=True)})
        return Evaluation(
            model=_model_record(session, model_name),
            data=DataRecord(data_name or session.data, session.size, seed, session.data_fingerprint()),
            threat=threat,
            results=tuple(results),
            worst=_worst(chosen, masks),
            findings=tuple(findings),
            batch_size=batch_size,
            eot=eot,
            device=_device_name(session.batches.device),
            versions=versions(),
        )


def choose(attacks: Sequence[Attack | str], eot: int = 1) -> list[Attack]:
    """The attacks to run, names read and gradients averaged.

    Raises:
        ConfigError: none, or two that are the same.
    """
    if eot < 1:
        raise ConfigError(f"eot={eot} passes cannot be averaged; type 1 or more")
    if isinstance(attacks, str):
        attacks = [attacks]
    chosen = [parse_attack(a) if isinstance(a, str) else a for a in attacks]
    if eot > 1:
        chosen = [EOT(a, eot) if isinstance(a, InputAttack) and not isinstance(a, EOT | Clean) else a for a in chosen]
    names = [str(a) for a in chosen]
    if not names:
        raise ConfigError("there is no attack to judge by; give at least one, such as 'clean'")
    if double := [n for n in names if names.count(n) > 1]:
        raise ConfigError(f"attack {double[0]!r} is given {names.count(double[0])} times; give it once")
    return chosen


def _judge(session: Session, attack: Attack, threat: ThreatModel, title: str | None) -> tuple[Result, Tensor]:
    """One attack on all images; which ones stay right, on the CPU."""
    # Each attack starts from the same state of PyTorch's generator, so that a random network's results do not depend on their order.
    session.reseed()
    started = time.perf_counter()
    outcomes = attack.outcomes(session.network, session.batches, threat)
    right = torch.cat(list(_tracked(outcomes, len(session.batches), title))).cpu()
    seconds = time.perf_counter() - started
    count = Count(int(right.sum()), len(right))
    return Result(str(attack), settings_of(attack, threat), count, seconds, attack.in_threat_model), right


def _worst(attacks: Sequence[Attack], masks: Sequence[Tensor]) -> Count:
    """Images right under every attack of the threat model (of all attacks, if none keeps to it)."""
    kept = [m for a, m in zip(attacks, masks, strict=True) if a.in_threat_model] or list(masks)
    right = torch.stack(kept).all(dim=0)
    return Count(int(right.sum()), len(right))


def _tracked(values: Iterable[_T], total: int, title: str | None) -> Iterator[_T]:
    """The values, with a progress bar if there is a title."""
    if title is None:
        yield from values
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(values, title, total=total, console=Console(stderr=True), transient=True)


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
