"""A network that draws random numbers is found by itself, and no attack takes it for fooled after a single pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from layerwise.attacks import PGDAttack, ThreatModel
from layerwise.core.random import Stream
from layerwise.evaluation import evaluate

THREAT = ThreatModel("linf", 0.1)


class Noisy(nn.Module):
    """A linear classifier with noise on its logits, from PyTorch's own random numbers or from a generator that nobody sees."""

    def __init__(self, std: float, *, hidden: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear, self.std = nn.Linear(16, 3), std
        self.generator = torch.Generator().manual_seed(0) if hidden else None

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return logits + self.std * torch.randn(logits.shape, generator=self.generator)


def data(network: Noisy) -> tuple[Tensor, Tensor]:
    x = torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return x, network.linear(x.flatten(1)).argmax(dim=1)


@pytest.mark.parametrize("attack", ["pgd-20", "pgd-10-3", "bim-20", "mi-fgsm-10"])
def test_nothing_stops_at_a_single_pass(attack: str) -> None:
    network = Noisy(0.3, hidden=False)
    stopping, last = (
        evaluate(network, data(network), attacks=[text], threat=THREAT, progress=False)
        for text in (attack, f"{attack} stop_when_fooled=False")
    )
    assert stopping.results[0].count == last.results[0].count
    assert stopping.random
    assert "draws random numbers: gradients are means over 1 passes" in stopping.to_markdown()


def test_a_generator_of_its_own_is_found_too() -> None:
    network = Noisy(0.3, hidden=True)
    record = evaluate(network, data(network), attacks=["pgd-20"], threat=THREAT, progress=False)
    assert record.random
    assert "random-gradient" in {finding.name for finding in record.findings}


def test_a_fixed_network_is_not_called_random() -> None:
    network = Noisy(0.0, hidden=False)
    record = evaluate(network, data(network), attacks=["clean"], progress=False)
    assert not record.random
    assert "random numbers" not in record.to_markdown()


def test_attacks_by_hand_find_it_by_themselves() -> None:
    network = Noisy(0.3, hidden=False)
    x, y = data(network)
    images = []
    for stop in (True, False):
        torch.manual_seed(0)
        images.append(PGDAttack(10, stop_when_fooled=stop)(network, x, y, THREAT, generator=Stream(0, total=len(x))))
    assert torch.equal(*images)
