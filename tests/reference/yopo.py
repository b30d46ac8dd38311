"""YOPO-m-n (Zhang et al. 2019), algorithm 1, with the authors' code's second update of the first layer as an option.

Readings: pixels are clipped at the start and after every step, outside of the gradient; the gradients of the m
propagations add up; without the second update, the steps after the last propagation are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, each_loss, gradient_of, pixels
from tests.reference.nets import Net


def inner_product(net: Net, x: Tensor, p: Tensor, site: str, bn: str) -> Tensor:
    return (p * net.passes(x, bn=bn)[1][site]).sum()


def yopo(
    net: Net,
    batches: Batches,
    *,
    uniform: Sequence[Tensor],
    eps: float,
    alpha: float,
    site: str,
    m: int = 5,
    n: int = 3,
    adjoint_update: bool = False,
    probe_bn: str = "frozen",
    **sgd: float,
) -> Net:
    """P is dL/dz at the site, of the sum of the losses, held for n sign steps along d(p . z)/dx."""
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), u in zip(batches, uniform, strict=True):
        x_adv = pixels(x + eps * u)
        total = {name: torch.zeros_like(w) for name, w in net.weights.items()}
        for j in range(m):
            logits, z = net.passes(x_adv)
            (p,) = torch.autograd.grad(each_loss(logits, y).sum(), z[site], retain_graph=True)
            for name, g in gradient_of(each_loss(logits, y).mean(), net).items():
                total[name] += g
            if j == m - 1 and not adjoint_update:
                break
            for _ in range(n):
                x_adv = x_adv.detach().requires_grad_()
                (g,) = torch.autograd.grad(inner_product(net, x_adv, p, site, probe_bn), x_adv)
                x_adv = pixels(x + (x_adv.detach() - x + alpha * g.sign()).clamp(-eps, eps))
            if adjoint_update:
                first = {name: w for name, w in net.weights.items() if name.startswith(site)}
                value = inner_product(net, x_adv, p, site, probe_bn) / len(x)
                for name, g in zip(first, torch.autograd.grad(value, list(first.values())), strict=True):
                    total[name] += g
        optimiser.apply(total)
    return net
