"""A cheap look at the validation split while training: clean accuracy and PGD. The test split is never touched."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypedDict

import torch
from torch import Tensor, nn

from layerwise.attacks.base import ascend
from layerwise.core.ascent import random_start
from layerwise.core.calling import logits
from layerwise.core.modes import evaluation_mode
from layerwise.core.random import Stream
from layerwise.core.threat import ThreatModel
from layerwise.data import Split, batches, rank_rows
from layerwise.training.ranks import total
from layerwise.training.settings import Training

logger = logging.getLogger("layerwise")


class Scores(TypedDict):
    """Shares of correct answers and the number of images; `robust` is None where no attack was made."""

    clean: float
    robust: float | None
    examples: int


def score(
    model: nn.Module,
    split: Split,
    settings: Training,
    *,
    threat: ThreatModel,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    autocast: Callable[[], AbstractContextManager[object]],
    rows: tuple[int, int] = (0, 1),
) -> Scores:
    """Clean accuracy, and accuracy under `settings.eval_steps` steps of PGD from one random start, in evaluation mode.

    The start is the same in every epoch, so that epochs compare. It is a guide for choosing, in the precision of the training, not a
    measurement: that is what `layerwise.evaluation` is for.

    Args:
        model: the unwrapped network.
        split: where; only its first `settings.eval_examples` images.
        settings: steps, step size, batch size.
        threat: norm and radius of the PGD.
        device: where the network lives.
        dtype: of its input.
        autocast: context of the forward passes.
        rows: (rank, world): each rank takes its share.
    """
    examples = min(len(split), settings.eval_examples or len(split))
    chosen = split.subset(range(examples))
    correct = torch.zeros(2, device=device, dtype=torch.int64)
    parts = batches(
        chosen, max(settings.batch_size, rows[1]), device=device, rows=rows, num_workers=settings.num_workers
    )
    with evaluation_mode(model), autocast():
        for index, (x, y) in enumerate(parts):
            size = min(max(settings.batch_size, rows[1]), examples - index * max(settings.batch_size, rows[1]))
            stream = Stream(settings.seed, index, start=rank_rows(size, rows).start, total=size)
            if len(x):
                correct += _correct(model, x.to(dtype), y, settings, threat, stream, first=index == 0)
    clean, robust = total(correct).tolist()
    return {
        "clean": clean / examples,
        "robust": robust / examples if settings.eval_steps else None,
        "examples": examples,
    }


def _correct(
    model: nn.Module, x: Tensor, y: Tensor, settings: Training, threat: ThreatModel, stream: Stream, *, first: bool
) -> Tensor:
    """Correct answers before and after the attack (2,)."""
    with torch.no_grad():
        clean = logits(model, x).argmax(dim=1) == y
    if not settings.eval_steps:
        return torch.stack([clean.sum(), clean.sum()])
    start = random_start(x, threat.eps, threat.norm, stream)
    x_adv = ascend(model, x, y, threat, start=start, steps=settings.eval_steps, alpha=settings.eval_step * threat.eps)
    if first and threat.eps and torch.equal(x_adv, start):
        logger.warning(
            "the validation's PGD moved no image, since no gradient reaches the network's input: its robust accuracy "
            "says nothing; --training.eval_steps 0 leaves it out"
        )
    with torch.no_grad():
        robust = clean & (logits(model, x_adv).argmax(dim=1) == y)
    return torch.stack([clean.sum(), robust.sum()])
