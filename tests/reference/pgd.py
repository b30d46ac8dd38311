"""PGD adversarial training (Madry et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tests.reference.common import SGD, Batches, gradients, mean_loss, pixels
from tests.reference.nets import Net


def pgd_attack(
    net: Net, x: Tensor, y: Tensor, start: Tensor, *, eps: float, alpha: float, steps: int, bn: str = "frozen"
) -> Tensor:
    """From clip(start): `steps` times a sign step alpha, projection on +-eps around x, clip."""
    x_adv = pixels(start)
    for _ in range(steps):
        g = gradients(net, x_adv, y, ["input"], bn=bn)["input"]
        x_adv = pixels(x + (x_adv - x + alpha * g.sign()).clamp(-eps, eps))
    return x_adv


def pgd(
    net: Net,
    batches: Batches,
    *,
    uniform: Sequence[Tensor],
    eps: float,
    alpha: float,
    steps: int,
    probe_bn: str = "frozen",
    **sgd: float,
) -> Net:
    """A descent at the PGD example that starts from x + eps u, u from U(-1, 1)."""
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), u in zip(batches, uniform, strict=True):
        x_adv = pgd_attack(net, x, y, x + eps * u, eps=eps, alpha=alpha, steps=steps, bn=probe_bn)
        optimiser.step(mean_loss(net, x_adv, y))
    return net
