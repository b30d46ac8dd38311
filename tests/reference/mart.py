"""MART (Wang et al. 2020), its loss written out for one example at a time, at PGD's input.

Reading: the attack starts uniformly in the ball. The descent's natural pass comes first, and carries gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, pixels
from tests.reference.nets import Net
from tests.reference.pgd import pgd_attack


def example_loss(natural: Tensor, adversarial: Tensor, y: int, beta: float) -> Tensor:
    """-log p_y - log(1.0001 - max of the others) + beta (1 - q_y) KL(q || p), for q = natural, p = adversarial."""
    q, p = natural.softmax(0), adversarial.softmax(0)
    others = torch.stack([p[k] for k in range(len(p)) if k != y])
    divergence = sum((q[k] * (q[k].log() - p[k].log()) for k in range(len(p))), torch.zeros((), dtype=p.dtype))
    return -p[y].log() - (1.0001 - others.max()).log() + beta * (1 - q[y]) * divergence


def mart(
    net: Net,
    batches: Batches,
    *,
    uniform: Sequence[Tensor],
    eps: float,
    alpha: float,
    steps: int,
    beta: float = 5.0,
    probe_bn: str = "frozen",
    **sgd: float,
) -> Net:
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), u in zip(batches, uniform, strict=True):
        x_adv = pgd_attack(net, x, y, pixels(x + eps * u), eps=eps, alpha=alpha, steps=steps, bn=probe_bn)
        natural, adversarial = net.logits(x), net.logits(x_adv)
        rows = zip(natural, adversarial, y.tolist(), strict=True)
        optimiser.step(torch.stack([example_loss(*row, beta) for row in rows]).mean())
    return net
