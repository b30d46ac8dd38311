"""Manifold mixup (Verma et al. 2019) and noisy feature mixup (Lim et al. 2022): mixing, and noise, at a given layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tests.reference.common import SGD, Batches, each_loss
from tests.reference.nets import Net


@dataclass
class Draw:
    """What one batch draws: site, lam, partners, and noise already of its size; None where there is none."""

    site: str
    lam: float
    partners: Tensor
    additive: Tensor | None = None
    multiplicative: Tensor | None = None

    def mixed(self, z: Tensor) -> Tensor:
        """What the network goes on with, through which gradients flow."""
        z = self.lam * z + (1 - self.lam) * z[self.partners]
        if self.multiplicative is not None:
            z = (1 + self.multiplicative) * z
        return z if self.additive is None else z + self.additive


def mixup(net: Net, batches: Batches, *, draws: Sequence[Draw], **sgd: float) -> Net:
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), draw in zip(batches, draws, strict=True):
        logits = net.logits(x, replaced={draw.site: draw.mixed})
        one, other = each_loss(logits, y).mean(), each_loss(logits, y[draw.partners]).mean()
        optimiser.step(draw.lam * one + (1 - draw.lam) * other)
    return net
