"""Free adversarial training (Shafahi et al. 2019), algorithm 1.

Reading: delta of row i starts at zero and is carried over to row i of the next batch that has one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, mean_loss, pixels
from tests.reference.nets import Net


def free(net: Net, batches: Batches, *, eps: float, step: float = 1.0, m: int = 8, **sgd: float) -> tuple[Net, Tensor]:
    """M times: gradients of weights and input from one pass, both move. Gives the net and the last delta."""
    net = net.clone()
    optimiser = SGD(net, **sgd)
    delta: dict[int, Tensor] = {}
    for x, y in batches:
        for _ in range(m):
            rows = torch.stack([delta.get(i, torch.zeros_like(x[0])) for i in range(len(x))])
            x_adv = pixels(x + rows).requires_grad_()
            loss = mean_loss(net, x_adv, y)
            (g,) = torch.autograd.grad(loss, x_adv, retain_graph=True)
            optimiser.step(loss)
            for i in range(len(x)):
                delta[i] = (rows[i] + step * eps * g[i].sign()).clamp(-eps, eps)
    return net, torch.stack(list(delta.values()))
