"""Manifold mixup (Verma et al. 2019) and noisy feature mixup (Lim et al. 2022): mixing, and noise, at a given layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tests.reference.common import SGD, Batches, each_loss
from tests.reference.nets import FORWARD, Net, Pass


@dataclass
class Draw:
    """What one batch draws: site, lam, partners, and noise already of its size; None where there is none."""

    site: str
    lam: float
    partners: Tensor
    additive: Tensor | None = None
    multiplicative: Tensor | None = None


class Mixing(Pass):
    """A pass that goes on with other values at one site, through which gradients flow."""

    draw: Draw

    def __call__(self, site: str, z: Tensor) -> Tensor:
        if site != self.draw.site:
            return z
        z = self.draw.lam * z + (1 - self.draw.lam) * z[self.draw.partners]
        if self.draw.multiplicative is not None:
            z = (1 + self.draw.multiplicative) * z
        return z if self.draw.additive is None else z + self.draw.additive


def mixup(net: Net, batches: Batches, *, draws: Sequence[Draw], **sgd: float) -> Net:
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), draw in zip(batches, draws, strict=True):
        p = Mixing(net, {}, "train")
        p.draw = draw
        logits = FORWARD[net.name](p, x)
        one, other = each_loss(logits, y).mean(), each_loss(logits, y[draw.partners]).mean()
        optimiser.step(draw.lam * one + (1 - draw.lam) * other)
    return net
