"""FreeLB (Zhu et al. 2020), algorithm 1: K passes at a growing delta, whose weight gradients add up to one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, at_real, each_loss, entries
from tests.reference.latent_pgd import length
from tests.reference.nets import Net


def freelb(
    net: Net,
    batches: Batches,
    *,
    uniform: Sequence[Mapping[str, Tensor]],
    start: float,
    step: float,
    steps: int,
    eps: float | None = None,
    **sgd: float,
) -> Net:
    """delta_0 = start u / sqrt(n); K times: add the gradient of loss / K, and move delta along its own unit gradient."""
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), units in zip(batches, uniform, strict=True):
        delta = {k: at_real(start * u / entries(u, x) ** 0.5, x) for k, u in units.items()}
        total = {name: torch.zeros_like(w) for name, w in net.weights.items()}
        for _ in range(steps):
            logits, z = net.passes(x, delta, bn="train")
            loss = each_loss(logits, y).mean() / steps
            found = torch.autograd.grad(loss, [z[k] for k in delta] + [*net.weights.values()])
            g = dict(zip([*delta, *net.weights], found, strict=True))
            total = {name: total[name] + g[name] for name in total}
            for k in delta:
                real = at_real(g[k], x)
                delta[k] = delta[k] + step * real / length(real)
                if eps is not None:
                    delta[k] = delta[k] * (eps / length(delta[k])).clamp(max=1)
        optimiser.apply(total)
    return net
