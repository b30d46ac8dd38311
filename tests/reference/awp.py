"""AWP (Wu et al. 2020) around a loss: weights of more than one dimension stand at w + v while the descent is made.

Readings: d is the gradient of the loss that is descended, in a pass that leaves the running statistics alone; weight
decay acts on w + v, where the optimiser finds the weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, gradient_of
from tests.reference.nets import Net

Loss = Callable[[str], Tensor]
"""The loss at the net's weights of now, for a batch-norm mode."""


def awp(
    net: Net, batches: Batches, *, find: Callable[[Net, Tensor, Tensor, int], Loss], gamma: float, **sgd: float
) -> Net:
    """`find` runs the attack once a batch, at w, and gives the loss at what it has found."""
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for index, (x, y) in enumerate(batches):
        loss = find(net, x, y, index)
        d = gradient_of(loss("frozen"), net)
        v = {k: gamma * w.detach().norm() / d[k].norm() * d[k] for k, w in net.weights.items() if w.ndim > 1}
        with torch.no_grad():
            for name in v:
                net.weights[name] += v[name]
        optimiser.apply(gradient_of(loss("train"), net))
        with torch.no_grad():
            for name in v:
                net.weights[name] -= v[name]
    return net
