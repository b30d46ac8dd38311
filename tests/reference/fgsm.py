"""Single-step adversarial training: FGSM, FGSM-RS (Wong et al. 2020), N-FGSM (de Jorge et al. 2022).

All gradients with batch statistics and unmoved running statistics (`probe_bn`).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tests.reference.common import SGD, Batches, gradients, mean_loss, pixels
from tests.reference.nets import Net


def fgsm(net: Net, batches: Batches, *, eps: float, step: float = 1.0, probe_bn: str = "frozen", **sgd: float) -> Net:
    """x' = clip(x + step eps sign g(x))."""
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for x, y in batches:
        g = gradients(net, x, y, ["input"], bn=probe_bn)["input"]
        optimiser.step(mean_loss(net, pixels(x + step * eps * g.sign()), y))
    return net


def fgsm_rs(
    net: Net,
    batches: Batches,
    *,
    uniform: Sequence[Tensor],
    eps: float,
    alpha: float = 1.25,
    probe_bn: str = "frozen",
    **sgd: float,
) -> Net:
    """The start is clip(x + eps u), u from U(-1, 1); then a step alpha eps, projection on +-eps, clip.

    Reading: the step goes on from the clipped start, as in the authors' code.
    """
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), u in zip(batches, uniform, strict=True):
        optimiser.step(mean_loss(net, fgsm_rs_attack(net, x, y, u, eps=eps, alpha=alpha, bn=probe_bn), y))
    return net


def fgsm_rs_attack(
    net: Net, x: Tensor, y: Tensor, u: Tensor, *, eps: float, alpha: float = 1.25, bn: str = "frozen"
) -> Tensor:
    start = pixels(x + eps * u)
    g = gradients(net, start, y, ["input"], bn=bn)["input"]
    return pixels(x + (start - x + alpha * eps * g.sign()).clamp(-eps, eps))


def n_fgsm(
    net: Net,
    batches: Batches,
    *,
    uniform: Sequence[Tensor],
    eps: float,
    noise: float = 2.0,
    step: float = 1.0,
    probe_bn: str = "frozen",
    **sgd: float,
) -> Net:
    """The start is clip(x + 2 eps u), u from U(-1, 1); then a step eps without projection, clip."""
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), u in zip(batches, uniform, strict=True):
        start = pixels(x + noise * eps * u)
        g = gradients(net, start, y, ["input"], bn=probe_bn)["input"]
        optimiser.step(mean_loss(net, pixels(start + step * eps * g.sign()), y))
    return net
