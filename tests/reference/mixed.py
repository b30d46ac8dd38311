"""PAT, NAT, EAT (Liu et al. 2021, implementation details) and Adv. Train I (Moosavi-Dezfooli et al. 2016; Yan et al. 2018).

Readings: the loss is the mean over the B clean and the B adversarial images. "apart": each half goes through the network
by itself, the clean one first; "together": one pass of all 2 B. Step-LL goes down the loss of the class with the
smallest logit; each image's radius is drawn from N(0, std) truncated to [0, largest], by the inverse of its
distribution from a uniform number. A fixed network has batch norm in eval mode. The DeepFool images of Adv. Train I
start from the fixed network's prediction; their pixels are clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, each_loss, gradients, mean_loss, pixels
from tests.reference.deep_defense import deepfool
from tests.reference.nets import Net
from tests.reference.pgd import pgd_attack

Attack = Callable[[Net, int, Tensor, Tensor], Tensor]


def half_and_half(
    net: Net, batches: Batches, attack: Attack, *, halves: str = "apart", alpha: float = 0.5, **sgd: Any
) -> Net:
    """A descent on alpha L(x) + (1 - alpha) L(x_adv), x_adv from the network as it is before the step."""
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for step, (x, y) in enumerate(batches):
        x_adv = attack(net, step, x, y)
        if halves == "together":
            every = each_loss(net.logits(torch.cat([x, x_adv])), torch.cat([y, y]))
            loss = alpha * every[: len(x)].mean() + (1 - alpha) * every[len(x) :].mean()
        elif alpha == 0:
            loss = mean_loss(net, x_adv, y)
        else:
            clean = mean_loss(net, x, y)
            loss = alpha * clean + (1 - alpha) * mean_loss(net, x_adv, y)
        optimiser.step(loss)
    return net


def pat(
    net: Net,
    batches: Batches,
    *,
    eps: float,
    alpha: float,
    steps: int,
    uniform: Sequence[Tensor] | None = None,
    halves: str = "apart",
    probe_bn: str = "frozen",
    **sgd: float,
) -> Net:
    """PGD from x, or from x + eps u."""

    def attack(net: Net, step: int, x: Tensor, y: Tensor) -> Tensor:
        start = x if uniform is None else x + eps * uniform[step]
        return pgd_attack(net, x, y, start, eps=eps, alpha=alpha, steps=steps, bn=probe_bn)

    return half_and_half(net, batches, attack, halves=halves, **sgd)


def step_ll(net: Net, x: Tensor, radii: Tensor, *, bn: str) -> Tensor:
    """x - eps sign of the gradient of the least likely class's loss."""
    least = net.logits(x, bn="eval" if bn == "eval" else "frozen").argmin(1)
    g = gradients(net, x, least, ["input"], bn=bn)["input"]
    return pixels(x - radii[:, None, None, None] * g.sign())


def eat(
    net: Net,
    batches: Batches,
    *,
    shares: Sequence[Tensor],
    sources: Sequence[Net] = (),
    drawn: Sequence[int] | None = None,
    std: float = 8 / 255,
    largest: float = 16 / 255,
    gradient: bool = False,
    halves: str = "apart",
    probe_bn: str = "frozen",
    **sgd: float,
) -> Net:
    """In step t from source drawn[t], 0 being the network itself; without sources it is NAT. `gradient`: FGSM steps."""

    def attack(net: Net, step: int, x: Tensor, y: Tensor) -> Tensor:
        low, high = (torch.special.ndtr(torch.tensor(end / std, dtype=x.dtype)) for end in (0.0, largest))
        radii = std * torch.special.ndtri(low + shares[step] * (high - low))
        number = 0 if drawn is None else drawn[step]
        source, bn = (net, probe_bn) if number == 0 else (sources[number - 1], "eval")
        if gradient:
            g = gradients(source, x, y, ["input"], bn=bn)["input"]
            return pixels(x + radii[:, None, None, None] * g.sign())
        return step_ll(source, x, radii, bn=bn)

    return half_and_half(net, batches, attack, halves=halves, **sgd)


def adv_train_1(net: Net, batches: Batches, *, fixed: Net, alpha: float = 0.5, iterations: int = 5, **sgd: Any) -> Net:
    """The DeepFool images of the fixed network, made before the training begins."""
    made = [
        pixels(x + torch.stack([deepfool(fixed, image, None, iterations=iterations).detach() for image in x]))
        for x, _ in batches
    ]

    def attack(net: Net, step: int, x: Tensor, y: Tensor) -> Tensor:
        return made[step]

    return half_and_half(net, batches, attack, alpha=alpha, **sgd)
