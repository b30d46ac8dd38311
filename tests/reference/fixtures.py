"""What the tests of the references share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.networks import IMAGE, batch
from tests.reference.nets import Net

BATCHES = [batch(6, seed=seed) for seed in range(3)]
LEARNING = [batch(64, seed=seed) for seed in range(10)] * 4
UNIFORM = list(2 * torch.rand(3, 6, *IMAGE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1)
X, Y = BATCHES[0]
EPS = 8 / 255
LR = 0.5
Descents = list[tuple[Tensor, dict[str, Tensor]]]


def net(module: type[nn.Module], **options: bool) -> Net:
    return Net.of(module(**options).double())


def same(a: Net, b: Net, *, weights_only: bool = False) -> bool:
    """Bitwise."""
    return all(torch.equal(a.weights[k], b.weights[k]) for k in a.weights) and (
        weights_only or all(torch.equal(a.buffers[k], b.buffers[k]) for k in a.buffers)
    )


def apart(a: Net, b: Net) -> float:
    return max((a.weights[k] - b.weights[k]).abs().max().item() for k in a.weights)
