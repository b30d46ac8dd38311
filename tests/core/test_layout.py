"""How images and weights lie in memory: faster where the network takes it, and nobody else notices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import layerwise as lw
from layerwise.core.layout import fastest, gradients_by_rows, laid_out
from tests.training.fakes import cheap

X, Y = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 4


class Viewing(nn.Module):
    """Written as most are: it takes a view of what convolutions gave."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(512, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.conv(x).relu().view(len(x), -1))
        return logits


class ViewOfWeights(Viewing):
    """It takes a view of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.conv(x).relu().flatten(1))
        return logits + 0 * self.conv.weight.view(-1).sum()


class Flattening(Viewing):
    """It takes any order."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.conv(x).relu().flatten(1))
        return logits


@pytest.mark.parametrize("network", [Viewing, ViewOfWeights, Flattening])
def test_a_network_that_takes_views_trains_and_is_evaluated(network: type[nn.Module]) -> None:
    net = network()
    lw.fit(net, lw.SLAT(sites=["conv"], eta=0.1), (X, Y), training=cheap(epochs=2), progress=False)
    assert lw.evaluate(net, (X, Y), attacks=["clean", "pgd-2"], progress=False)["clean"].count.total == len(X)
    assert next(net.parameters()).is_contiguous()


@pytest.mark.parametrize(("network", "last"), [(Viewing, False), (ViewOfWeights, False), (Flattening, True)])
def test_channels_come_last_where_the_network_takes_it(network: type[nn.Module], last: bool) -> None:
    net = network()
    assert (fastest(net, X) is torch.channels_last) == last
    assert net.training
    assert all(p.is_contiguous() for p in net.parameters())


def test_an_evaluation_runs_with_the_channels_of_each_pixel_together() -> None:
    seen: list[bool] = []
    net = Flattening()
    net.conv.register_forward_pre_hook(
        lambda conv, args: seen.append(conv.weight.is_contiguous(memory_format=torch.channels_last))
    )
    lw.evaluate(net, (X, Y), attacks=["pgd-1"], progress=False)
    assert seen[-1]


def test_attacks_of_others_take_views_of_gradients() -> None:
    def theirs(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
        return (x + 0.03 * gradient.view(-1).sign().view(x.shape)).clamp(0, 1)

    net = Flattening()
    found = lw.evaluate(net, (X, Y), attacks=[theirs], threat=lw.ThreatModel("linf", 0.1), progress=False)
    assert [result.count.total for result in found.results] == [len(X)]
    with laid_out(net, torch.channels_last):
        x = X.clone().requires_grad_()
        assert not torch.autograd.grad(net(x).sum(), x)[0].is_contiguous()
        with gradients_by_rows(net):
            assert torch.autograd.grad(net(x).sum(), x)[0].is_contiguous()
