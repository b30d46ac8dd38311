"""Untargeted latent adversarial training (Casper et al. 2024): ascent in a ball at hidden sites, one descent there.

The starts are handed in as points of the unit ball. Norms are an example's; with `relative` a radius is in units of its ||z||.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, at_real, gradients, mean_loss
from tests.reference.nets import Net


def length(z: Tensor, per: str = "example") -> Tensor:
    """||z||_2 of each example, (B, 1, ...), or of each token of (B, L, d)."""
    if per == "token" and z.ndim == 3:
        return z.pow(2).sum(2, keepdim=True).sqrt()
    return z.pow(2).flatten(1).sum(1).sqrt().reshape(-1, *[1] * (z.ndim - 1))


def height(z: Tensor, per: str = "example") -> Tensor:
    """||z||_inf of each example or token."""
    if per == "token" and z.ndim == 3:
        return z.abs().amax(2, keepdim=True)
    return z.abs().flatten(1).amax(1).reshape(-1, *[1] * (z.ndim - 1))


def unit(v: Tensor, size: Tensor) -> Tensor:
    """V / size; zero stays zero."""
    return torch.where(size == 0, 0.0, v / size)


def stepped(delta: Tensor, g: Tensor, *, eps: float, alpha: float, norm: str, per: str) -> Tensor:
    """A step along g's direction and back into the ball."""
    if norm == "linf":
        return (delta + alpha * g.sign()).clamp(-eps, eps)
    delta = delta + alpha * unit(g, length(g, per))
    return delta * (eps / length(delta, per)).clamp(max=1)


def added(r: Tensor, z: Tensor, *, norm: str, relative: bool, clamp: bool) -> Tensor:
    """What z gets."""
    r = r * (height(z) if norm == "linf" else length(z)) if relative else r
    return (z + r).clamp(z.min(), z.max()) - z if clamp else r


def latent_pgd(
    net: Net,
    batches: Batches,
    *,
    eps: Mapping[str, float],
    steps: int,
    starts: Sequence[Mapping[str, Tensor]] | None = None,
    step: float | None = None,
    norm: str = "l2",
    per: str = "example",
    relative: bool = False,
    clamp: bool = False,
    probe_bn: str = "frozen",
    **sgd: float,
) -> Net:
    """For every batch: delta from its start by `steps` steps of eps / steps (or step eps), then the descent at z + delta."""
    net = net.clone()
    optimiser = SGD(net, **sgd)
    add = partial(added, norm=norm, relative=relative, clamp=clamp)

    def noise(delta: Mapping[str, Tensor]) -> dict[str, Tensor | Callable[[Tensor], Tensor]]:
        return {site: partial(add, r) for site, r in delta.items()}

    for index, (x, y) in enumerate(batches):
        delta = {} if starts is None else {k: at_real(eps[k] * u, x) for k, u in starts[index].items()}
        for _ in range(steps):
            g = gradients(net, x, y, list(eps), noise(delta), bn=probe_bn)
            for k, e in eps.items():
                alpha, before = e / steps if step is None else step * e, delta.get(k, torch.zeros_like(g[k]))
                delta[k] = stepped(before, at_real(g[k], x), eps=e, alpha=alpha, norm=norm, per=per)
        optimiser.step(mean_loss(net, x, y, noise(delta)))
    return net
