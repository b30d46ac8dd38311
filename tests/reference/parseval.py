"""Parseval training (Cisse et al. 2017, algorithm 1): after each step, a few rows of each weight matrix move.

Readings: rows, not columns; a convolution's matrix has a row an output channel; biases and norms have no matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tests.reference.common import SGD, Batches, mean_loss
from tests.reference.nets import Net


def parseval(net: Net, batches: Batches, *, rows: Sequence[dict[str, list[int]]], beta: float, **sgd: float) -> Net:
    """W_S <- (1 + beta) W_S - beta W_S W_S^T W_S with the rows S that each step names for each weight."""
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), chosen in zip(batches, rows, strict=True):
        optimiser.step(mean_loss(net, x, y))
        with torch.no_grad():
            for name, s in chosen.items():
                weight = net.weights[name]
                matrix = weight.reshape(weight.shape[0], -1)
                part = matrix[s]
                matrix = matrix.clone()
                matrix[s] = (1 + beta) * part - beta * torch.einsum("ij,kj,kl->il", part, part, part)
                weight.copy_(matrix.reshape(weight.shape))
    return net
