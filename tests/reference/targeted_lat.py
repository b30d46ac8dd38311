"""Targeted latent adversarial training (Sheshadri et al. 2024) of classes, the unwanted ones given: AdamW on delta, then descents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, at_real, entropies
from tests.reference.latent_pgd import length
from tests.reference.nets import Net


def near(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y of every example, the mean over its labels."""
    return of_rows(*entropies(logits, y))


def away(logits: Tensor, y: Tensor, cutoff: float) -> Tensor:
    """-log(1 - p_y) of every example, nothing where log p_y < -cutoff; the mean over its labels."""
    losses, counted = entropies(logits, y)
    gone = torch.where(losses > cutoff, 0.0, -(1 - torch.where(counted, (-losses).exp(), 0.0)).log())
    return of_rows(torch.where(counted, gone, 0.0), counted)


def of_rows(losses: Tensor, counted: Tensor) -> Tensor:
    return losses if losses.ndim == 1 else losses.sum(1) / counted.sum(1)


def targeted_lat(
    net: Net,
    batches: Batches,
    *,
    unwanted: Sequence[Tensor],
    sites: Iterable[str],
    eps: float,
    lr_attack: float,
    steps: int,
    descents: int,
    towards: float = 0.5,
    weight_away: float = 0.5,
    utility: float = 1.5,
    cutoff: float = 5.0,
    per: str = "example",
    **sgd: float,
) -> Net:
    net = net.clone()
    optimiser = SGD(net, **sgd)
    total = towards + weight_away + utility
    for (x, y), bad in zip(batches, unwanted, strict=True):
        seen = net.passes(x, bn="frozen")[1]
        delta = {k: torch.zeros_like(seen[k]).requires_grad_() for k in sites}
        attack = torch.optim.AdamW(list(delta.values()), lr=lr_attack)
        for _ in range(steps):
            logits, z = net.passes(x, delta, bn="frozen")
            loss = (towards * near(logits, bad) + weight_away * away(logits, y, cutoff)).sum()
            for (_, d), g in zip(delta.items(), torch.autograd.grad(loss, [z[k] for k in delta]), strict=True):
                d.grad = at_real(g, x)
            attack.step()
            with torch.no_grad():
                for d in delta.values():
                    d *= (eps / length(d, per)).clamp(max=1)
        fixed = {k: d.detach() for k, d in delta.items()}
        for _ in range(descents):
            clean = net.logits(x, bn="train") if utility else torch.zeros_like(logits)
            noisy = net.logits(x, fixed, bn="train")
            kept = towards * near(noisy, y) + weight_away * away(noisy, bad, cutoff)
            optimiser.step((utility * near(clean, y) + kept).mean() / total)
    return net
