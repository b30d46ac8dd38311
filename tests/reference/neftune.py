"""NEFTune (Jain et al. 2023), algorithm 1: a descent at z + alpha / sqrt(n) u, n the entries of an example's activation.

The size is rounded to float32, as trl has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, mean_loss
from tests.reference.nets import Net


def neftune(net: Net, batches: Batches, *, uniform: Sequence[Mapping[str, Tensor]], alpha: float, **sgd: float) -> Net:
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), units in zip(batches, uniform, strict=True):
        noise = {k: float(alpha / torch.tensor(u[0].numel()).sqrt()) * u for k, u in units.items()}
        optimiser.step(mean_loss(net, x, y, noise))
    return net
