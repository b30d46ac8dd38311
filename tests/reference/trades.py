"""TRADES (Zhang et al. 2019): cross entropy at x plus beta KL(p(x) || p(x'))."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, each_loss, pixels
from tests.reference.nets import Net


def kl(clean: Tensor, adversarial: Tensor) -> Tensor:
    """KL(softmax clean || softmax adversarial) of every example."""
    log_p, log_q = clean.log_softmax(-1), adversarial.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def trades_attack(
    net: Net, x: Tensor, start: Tensor, *, eps: float, alpha: float, steps: int, bn: str = "frozen"
) -> Tensor:
    """PGD on the KL to the logits at x (a constant), both in the batch-norm mode `bn`.

    Reading: the start is clipped to the pixel range, as every input perturbation is; the authors' code does not.
    """
    clean = net.logits(x, bn=bn).detach()
    x_adv = pixels(start)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (g,) = torch.autograd.grad(kl(clean, net.logits(x_adv, bn=bn)).sum(), x_adv)
        x_adv = pixels(x + (x_adv.detach() - x + alpha * g.sign()).clamp(-eps, eps))
    return x_adv


def trades(
    net: Net,
    batches: Batches,
    *,
    normal: Sequence[Tensor],
    eps: float,
    alpha: float,
    steps: int,
    beta: float = 6.0,
    attack_bn: str = "frozen",
    **sgd: float,
) -> Net:
    """The start is x + 0.001 n, n from N(0, 1). The descent's natural pass comes first, and carries gradient."""
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), n in zip(batches, normal, strict=True):
        x_adv = trades_attack(net, x, x + 0.001 * n, eps=eps, alpha=alpha, steps=steps, bn=attack_bn)
        clean = net.logits(x)
        adversarial = net.logits(x_adv)
        optimiser.step(each_loss(clean, y).mean() + beta * kl(clean, adversarial).mean())
    return net
