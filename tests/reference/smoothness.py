"""SMART (Jiang et al. 2020), VAT (Miyato et al. 2018) and R3F (Aghajanyan et al. 2021), each written out.

The random numbers come in as standard normal or uniform ones. The noise that is looked for takes its gradients with batch statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, each_loss
from tests.reference.latent_pgd import height, length
from tests.reference.nets import Net
from tests.reference.trades import kl

Numbers = Sequence[Mapping[str, Tensor]]
Divergence = Callable[[Tensor, Tensor], Tensor]


def both_ways(p: Tensor, q: Tensor) -> Tensor:
    return kl(p, q) + kl(q, p)


def ascent(net: Net, x: Tensor, clean: Tensor, noise: Mapping[str, Tensor], apart: Divergence) -> dict[str, Tensor]:
    """The gradient at every site of the summed divergence from constant logits."""
    logits, z = net.passes(x, noise, bn="frozen")
    return dict(
        zip(noise, torch.autograd.grad(apart(clean.detach(), logits).sum(), [z[k] for k in noise]), strict=True)
    )


def smart(
    net: Net,
    batches: Batches,
    *,
    normal: Numbers,
    std: float,
    step: float,
    steps: int,
    size: float,
    weight: float,
    **sgd: float,
) -> Net:
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), numbers in zip(batches, normal, strict=True):
        clean = net.logits(x, bn="train")
        r = {k: std * n for k, n in numbers.items()}
        for _ in range(steps):
            g = ascent(net, x, clean, r, both_ways)
            moved = {k: r[k] + step * g[k] for k in r}
            r = {k: size * v / height(v) for k, v in moved.items()}
        noisy = net.logits(x, r, bn="train")
        optimiser.step(each_loss(clean, y).mean() + weight * both_ways(clean, noisy).mean())
    return net


def vat(
    net: Net, batches: Batches, *, normal: Numbers, xi: float, eps: float, steps: int, weight: float, **sgd: float
) -> Net:
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), numbers in zip(batches, normal, strict=True):
        clean = net.logits(x, bn="train")
        d = {k: n / length(n) for k, n in numbers.items()}
        for _ in range(steps):
            g = ascent(net, x, clean, {k: xi * v for k, v in d.items()}, kl)
            d = {k: v / length(v) for k, v in g.items()}
        noisy = net.logits(x, {k: eps * v for k, v in d.items()}, bn="train")
        optimiser.step(each_loss(clean, y).mean() + weight * kl(clean.detach(), noisy).mean())
    return net


def r3f(net: Net, batches: Batches, *, numbers: Numbers, eps: float, weight: float, **sgd: float) -> Net:
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), drawn in zip(batches, numbers, strict=True):
        clean = net.logits(x, bn="train")
        noisy = net.logits(x, {k: eps * n for k, n in drawn.items()}, bn="train")
        optimiser.step(each_loss(clean, y).mean() + weight * both_ways(clean, noisy).mean())
    return net
