"""Noise at activations in proportion to their spread (He et al. 2019, at activations, with a fixed scale)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from tests.reference.common import SGD, Batches, at_real, mean_loss
from tests.reference.nets import Net


def in_proportion(z: Tensor, *, numbers: Tensor, scale: float) -> Tensor:
    ones = [1] * (z.ndim - 1)
    spread = (z - z.flatten(1).mean(1).reshape(-1, *ones)).pow(2).flatten(1).mean(1).sqrt()
    return scale * spread.reshape(-1, *ones) * numbers


def pni(net: Net, batches: Batches, *, normal: Sequence[Mapping[str, Tensor]], scale: float, **sgd: float) -> Net:
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), drawn in zip(batches, normal, strict=True):
        noise = {k: partial(in_proportion, numbers=at_real(n, x), scale=scale) for k, n in drawn.items()}
        optimiser.step(mean_loss(net, x, y, noise))
    return net
