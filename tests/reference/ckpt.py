"""FGSM-CKPT (Kim et al. 2021): the checkpoints of FGSM-RS's step, one example at a time.

Readings: an example is wrong by the logits at the random start, in the probe's batch-norm mode; the checkpoints are
classified with the running statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, each_loss, mean_loss, pixels
from tests.reference.nets import Net


def checkpoint(net: Net, x: Tensor, y: int, delta: Tensor, c: int) -> tuple[Tensor, int]:
    """The first of x + (j / c) delta that is not classified as y, and its j; the last one if all are."""
    for j in range(1, c + 1):
        point = x + j / c * delta
        if j == c or int(net.logits(point[None], bn="eval")[0].argmax()) != y:
            break
    return point, j


def ckpt(
    net: Net,
    batches: Batches,
    *,
    uniform: Sequence[Tensor],
    eps: float,
    alpha: float = 1.25,
    c: int = 3,
    probe_bn: str = "frozen",
    taken: list[int] | None = None,
    **sgd: float,
) -> Net:
    """Wrong examples train clean, the others at their checkpoint; `taken` notes its j, 0 where clean."""
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), u in zip(batches, uniform, strict=True):
        start = pixels(x + eps * u).requires_grad_()
        logits = net.logits(start, bn=probe_bn)
        (g,) = torch.autograd.grad(each_loss(logits, y).sum(), start)
        full = pixels(x + (start.detach() - x + alpha * eps * g.sign()).clamp(-eps, eps))
        rows = []
        for i, label in enumerate(y.tolist()):
            point, j = x[i], 0
            if int(logits[i].argmax()) == label:
                point, j = checkpoint(net, x[i], label, full[i] - x[i], c)
            rows.append(point)
            if taken is not None:
                taken.append(j)
        optimiser.step(mean_loss(net, torch.stack(rows), y))
    return net
