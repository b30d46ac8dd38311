"""What the algorithms share: the loss, the gradient at a site, a plain SGD, the pixel range."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tests.reference.nets import Net, Noise

Batches = Sequence[tuple[Tensor, Tensor]]


def each_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Every example's own cross entropy."""
    return -logits.log_softmax(1)[torch.arange(len(y)), y]


def mean_loss(net: Net, x: Tensor, y: Tensor, noise: Noise | None = None, *, bn: str = "train") -> Tensor:
    """What a descent goes down: the mean over the batch, at z + r."""
    return each_loss(net.logits(x, noise, bn=bn), y).mean()


def gradients(
    net: Net, x: Tensor, y: Tensor, sites: Iterable[str], noise: Noise | None = None, *, bn: str = "frozen"
) -> dict[str, Tensor]:
    """dL/dz at the sites for L = the sum of the examples' losses, at z + r; "input" is x itself."""
    sites = tuple(sites)
    logits, z = net.passes(x.detach().requires_grad_(), noise, bn=bn)
    found = torch.autograd.grad(each_loss(logits, y).sum(), [z[site] for site in sites]) if sites else ()
    return dict(zip(sites, found, strict=True))


def pixels(x: Tensor) -> Tensor:
    return x.clamp(0, 1)


def pixel_noise(r: Tensor, x: Tensor) -> Tensor:
    """The noise that leaves x + r in the pixel range."""
    return pixels(x + r) - x


class SGD:
    """v <- momentum v + gradient + weight_decay w; w <- w - lr v."""

    def __init__(self, net: Net, *, lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        self.net, self.lr, self.momentum, self.weight_decay = net, lr, momentum, weight_decay
        self.v = {name: torch.zeros_like(w) for name, w in net.weights.items()}

    def step(self, loss: Tensor) -> None:
        self.apply(gradient_of(loss, self.net))

    def apply(self, gradient: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, w in self.net.weights.items():
                self.v[name] = self.momentum * self.v[name] + gradient[name] + self.weight_decay * w
                w -= self.lr * self.v[name]


def gradient_of(loss: Tensor, net: Net) -> dict[str, Tensor]:
    """The loss's gradient for every weight."""
    return dict(zip(net.weights, torch.autograd.grad(loss, list(net.weights.values())), strict=True))
