"""Standard training."""

from __future__ import annotations

from tests.reference.common import SGD, Batches, mean_loss
from tests.reference.nets import Net


def standard(net: Net, batches: Batches, **sgd: float) -> Net:
    """One descent on the mean cross entropy a batch."""
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for x, y in batches:
        optimiser.step(mean_loss(net, x, y))
    return net
