"""What the algorithms share: the loss, the gradient at a site, a plain SGD, the pixel range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.reference.nets import Net, Noise

Batches = Sequence[tuple[Any, Tensor]]
"""Images and labels; or {"input_ids", "attention_mask"} and labels, or tokens, -100 where they have no part in the loss."""


def each_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Every example's own cross entropy; of a language model its share in the mean over the batch's next tokens."""
    losses, counted = entropies(logits, y)
    return losses if y.ndim == 1 else losses.sum(1) * len(y) / counted.sum()


def entropies(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of every label, or of every next token, (B,) or (B, L - 1), and which of them count."""
    if y.ndim == 2:
        logits, y = logits[:, :-1], y[:, 1:]
    counted = y != -100
    losses = -logits.log_softmax(-1).gather(-1, torch.where(counted, y, 0)[..., None])[..., 0]
    return torch.where(counted, losses, 0.0), counted


def masked(x: Any) -> bool:
    """Whether it says which positions are real."""
    return isinstance(x, Mapping) and "attention_mask" in x


def at_real(v: Tensor, x: Any) -> Tensor:
    """Nothing at the positions that a mask leaves out."""
    return v * x["attention_mask"][:, :, None] if masked(x) else v


def entries(v: Tensor, x: Any) -> Tensor | int:
    """How many entries of every example are real."""
    if not masked(x):
        return v[0].numel()
    count: Tensor = x["attention_mask"].double().sum(1)
    return count[:, None, None] * v.shape[2]


def mean_loss(net: Net, x: Any, y: Tensor, noise: Noise | None = None, *, bn: str = "train") -> Tensor:
    """What a descent goes down: the mean over the batch, at z + r."""
    return each_loss(net.logits(x, noise, bn=bn), y).mean()


def gradients(
    net: Net, x: Any, y: Tensor, sites: Iterable[str], noise: Noise | None = None, *, bn: str = "frozen"
) -> dict[str, Tensor]:
    """dL/dz at the sites for L = the sum of the examples' losses, at z + r; "input" is x itself."""
    sites = tuple(sites)
    logits, z = net.passes(x.detach().requires_grad_() if isinstance(x, Tensor) else x, noise, bn=bn)
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
