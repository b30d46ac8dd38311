"""Small networks with known answers, and one that was trained."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.core.driving import AUTOGRAD
from tests.networks import TinyMLP, batch


class Linear(nn.Module):
    """Logits W x + b of the flattened image."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight, self.bias)


def two_classes(pixels: int = 16, *, seed: int = 0) -> tuple[Linear, Tensor, Tensor]:
    """Logits (0, f), f = w x + b, in float64: the network, w and b."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(pixels, generator=g, dtype=torch.float64)
    b = -0.5 * w.sum()
    return Linear(torch.stack([torch.zeros_like(w), w]), torch.stack([torch.zeros_like(b), b])), w, b


class Wrapped(nn.Module):
    """A filter in front of a network."""

    def __init__(self, front: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.front, self.network = front, network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(self.front(x))
        return out


class Rows(nn.Module):
    """Counts the rows of each forward pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen = network, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        out: Tensor = self.network(x)
        return out


class Quantise(nn.Module):
    """Round to multiples of 1/16: the gradient is zero everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return (16 * x).round() / 16


@functools.cache
def _weights() -> dict[str, Tensor]:
    net, (x, y) = TinyMLP().double(), batch(200)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        optimiser.zero_grad()
        AUTOGRAD(F.cross_entropy(net(x), y))
        optimiser.step()
    return {name: value.detach() for name, value in net.state_dict().items()}


def trained(dtype: torch.dtype = torch.float64) -> TinyMLP:
    """A network that learnt `tests.networks.batch`."""
    net = TinyMLP().double()
    net.load_state_dict(_weights())
    return net.to(dtype).eval()


def gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """DL/dx of the sum of the losses."""
    leaf = x.detach().clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(net(leaf), y, reduction="sum"), leaf)
    return g


def unit(z: Tensor) -> Tensor:
    """Each row divided by its l2 norm."""
    return torch.stack([row / row.norm() for row in z])


def distance(x: Tensor, x_adv: Tensor, norm: str) -> float:
    """The farthest that a row was moved."""
    moved = (x_adv - x).double().flatten(1)
    return (moved.abs().amax(1) if norm == "linf" else moved.square().sum(1).sqrt()).max().item()
