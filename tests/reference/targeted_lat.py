"""Targeted latent adversarial training (Sheshadri et al. 2024) of classes, the unwanted ones given: AdamW on delta, then descents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, each_loss
from tests.reference.latent_pgd import length
from tests.reference.nets import Net


def away(logits: Tensor, y: Tensor, cutoff: float) -> Tensor:
    """-log(1 - p_y) of every example, nothing where log p_y < -cutoff."""
    p = logits.softmax(1)[torch.arange(len(y)), y]
    return torch.where(p.log() < -cutoff, torch.zeros_like(p), -(1 - p).log())


def targeted_lat(
    net: Net,
    batches: Batches,
    *,
    unwanted: Sequence[Tensor],
    sites: dict[str, tuple[int, ...]],
    eps: float,
    lr_attack: float,
    steps: int,
    descents: int,
    towards: float = 0.5,
    weight_away: float = 0.5,
    utility: float = 1.5,
    cutoff: float = 5.0,
    **sgd: float,
) -> Net:
    net = net.clone()
    optimiser = SGD(net, **sgd)
    total = towards + weight_away + utility
    for (x, y), bad in zip(batches, unwanted, strict=True):
        delta = {k: torch.zeros(len(x), *shape, dtype=x.dtype, requires_grad=True) for k, shape in sites.items()}
        attack = torch.optim.AdamW(list(delta.values()), lr=lr_attack)
        for _ in range(steps):
            logits, z = net.passes(x, delta, bn="frozen")
            loss = (towards * each_loss(logits, bad) + weight_away * away(logits, y, cutoff)).sum()
            for (_, d), g in zip(delta.items(), torch.autograd.grad(loss, [z[k] for k in delta]), strict=True):
                d.grad = g
            attack.step()
            with torch.no_grad():
                for d in delta.values():
                    d *= (eps / length(d)).clamp(max=1)
        fixed = {k: d.detach() for k, d in delta.items()}
        for _ in range(descents):
            clean = net.logits(x, bn="train") if utility else torch.zeros_like(logits)
            noisy = net.logits(x, fixed, bn="train")
            kept = towards * each_loss(noisy, y) + weight_away * away(noisy, bad, cutoff)
            optimiser.step((utility * each_loss(clean, y) + kept).mean() / total)
    return net
