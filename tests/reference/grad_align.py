"""FGSM-GA (Andriushchenko and Flammarion 2020): FGSM with the cosine of two input gradients, one example at a time.

Readings: x + u is not clipped; an example whose gradient is zero at either point adds nothing, and the sum is divided by
the batch size; the descent's pass comes before that of the second gradient (it only matters to running statistics).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, each_loss, gradients, mean_loss, pixels
from tests.reference.fgsm import fgsm_rs_attack
from tests.reference.nets import Net


def misalignment(g: Tensor, here: Tensor) -> Tensor:
    """Sum over the examples of 1 - cos."""
    total = torch.zeros((), dtype=g.dtype)
    for a, b in zip(g, here, strict=True):
        if a.any() and b.any():
            total = total + 1 - (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())
    return total


def grad_align(
    net: Net,
    batches: Batches,
    *,
    uniform: Sequence[Tensor],
    eps: float,
    step: float = 1.0,
    weight: float = 0.2,
    starts: Sequence[Tensor] | None = None,
    probe_bn: str = "frozen",
    **sgd: float,
) -> Net:
    """CE(x') + (weight / B) sum (1 - cos(g(x), g(x + eps u))); x' of FGSM, or of FGSM-RS from the `starts`."""
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for index, ((x, y), u) in enumerate(zip(batches, uniform, strict=True)):
        g = gradients(net, x, y, ["input"], bn=probe_bn)["input"]
        x_adv = pixels(x + step * eps * g.sign())
        if starts is not None:
            x_adv = fgsm_rs_attack(net, x, y, starts[index], eps=eps)
        loss = mean_loss(net, x_adv, y)
        near = (x + eps * u).requires_grad_()
        (here,) = torch.autograd.grad(each_loss(net.logits(near, bn=probe_bn), y).sum(), near, create_graph=True)
        optimiser.step(loss + weight / len(x) * misalignment(g, here))
    return net
