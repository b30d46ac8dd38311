"""SMART (Jiang et al. 2020), VAT (Miyato et al. 2018) and R3F (Aghajanyan et al. 2021), each written out.

The random numbers come in as standard normal or uniform ones. The noise that is looked for takes its gradients with batch statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, at_real, each_loss
from tests.reference.latent_pgd import height, length, unit
from tests.reference.nets import Net
from tests.reference.trades import kl

Numbers = Sequence[Mapping[str, Tensor]]
Divergence = Callable[[Tensor, Tensor, Any], Tensor]


def one_way(p: Tensor, q: Tensor, x: Any) -> Tensor:
    """KL(p || q) of every example; of a sequence its mean over the real positions."""
    found = kl(p, q)
    return found if found.ndim == 1 else (found * x["attention_mask"]).sum(1) / x["attention_mask"].sum(1)


def both_ways(p: Tensor, q: Tensor, x: Any) -> Tensor:
    return one_way(p, q, x) + one_way(q, p, x)


def ascent(net: Net, x: Any, clean: Tensor, noise: Mapping[str, Tensor], apart: Divergence) -> dict[str, Tensor]:
    """The gradient at every site of the summed divergence from constant logits."""
    logits, z = net.passes(x, noise, bn="frozen")
    found = torch.autograd.grad(apart(clean.detach(), logits, x).sum(), [z[k] for k in noise])
    return {k: at_real(g, x) for k, g in zip(noise, found, strict=True)}


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
    per: str = "example",
    **sgd: float,
) -> Net:
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), numbers in zip(batches, normal, strict=True):
        clean = net.logits(x, bn="train")
        r = {k: at_real(std * n, x) for k, n in numbers.items()}
        for _ in range(steps):
            g = ascent(net, x, clean, r, both_ways)
            moved = {k: r[k] + step * g[k] for k in r}
            r = {k: size * unit(v, height(v, per)) for k, v in moved.items()}
        noisy = net.logits(x, r, bn="train")
        optimiser.step(each_loss(clean, y).mean() + weight * both_ways(clean, noisy, x).mean())
    return net


def vat(
    net: Net, batches: Batches, *, normal: Numbers, xi: float, eps: float, steps: int, weight: float, **sgd: float
) -> Net:
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), numbers in zip(batches, normal, strict=True):
        clean = net.logits(x, bn="train")
        d = {k: at_real(n / length(n), x) for k, n in numbers.items()}
        for _ in range(steps):
            g = ascent(net, x, clean, {k: xi * v for k, v in d.items()}, one_way)
            d = {k: v / length(v) for k, v in g.items()}
        noisy = net.logits(x, {k: eps * v for k, v in d.items()}, bn="train")
        optimiser.step(each_loss(clean, y).mean() + weight * one_way(clean.detach(), noisy, x).mean())
    return net


def r3f(net: Net, batches: Batches, *, numbers: Numbers, eps: float, weight: float, **sgd: float) -> Net:
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), drawn in zip(batches, numbers, strict=True):
        clean = net.logits(x, bn="train")
        noisy = net.logits(x, {k: at_real(eps * n, x) for k, n in drawn.items()}, bn="train")
        optimiser.step(each_loss(clean, y).mean() + weight * both_ways(clean, noisy, x).mean())
    return net
