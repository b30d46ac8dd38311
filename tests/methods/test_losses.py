"""Losses other than that of classes, end to end: each is learnt by methods that can, and refused in a sentence by those that cannot."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import layerwise as lw
from layerwise.core.random import Stream
from layerwise.errors import ConfigError
from layerwise.methods import Method


def random(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(5))


class Tokens(nn.Module):
    """Logits of each token, (B, L, C)."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.words, self.first, self.second = nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.second(torch.tanh(self.first(self.words(input_ids))))}


def pixels() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))


def vectors(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 8), nn.Tanh(), nn.Linear(8, outputs))


IMAGES = random(6, 3, 4, 4)
IDS = torch.arange(6).repeat(4, 2) % 7
WORDS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
BRIGHT = IMAGES.mean(1) > 0.5
TAGS = torch.where(IDS % 5 == 4, -100, IDS % 2)

TASKS: dict[str, tuple[Callable[[], nn.Module], Any, Tensor, Any]] = {
    "segmentation": (pixels, IMAGES, BRIGHT.long(), nn.CrossEntropyLoss()),
    "several labels": (lambda: vectors(3), IMAGES, (IMAGES.mean((2, 3)) > 0.5).float(), nn.BCEWithLogitsLoss()),
    "regression": (lambda: vectors(1), IMAGES, IMAGES.mean((1, 2, 3))[:, None], nn.MSELoss()),
    "next token": (Tokens, WORDS, IDS, lw.NextToken()),
    "tags of tokens": (lambda: Tokens(2), WORDS, TAGS, lw.TokenCrossEntropy()),
}

METHODS: dict[str, Callable[[Any, bool], Method]] = {
    "PGD": lambda criterion, words: (lw.Standard if words else lambda **o: lw.PGD(eps=0.02, steps=2, **o))(
        criterion=criterion
    ),
    "SLAT": lambda criterion, words: lw.SLAT(
        sites="first(2)",
        eta=0.02,
        base=(lw.Standard if words else lambda **o: lw.FGSM(eps=0.02, **o))(criterion=criterion),
    ),
    "LAT": lambda criterion, words: lw.LAT(sites="first(1)", eps=1.0, criterion=criterion),
    "ANP": lambda criterion, words: lw.ANP(layers=1, k=2, eps=0.1, criterion=criterion),
    "LAD": lambda criterion, words: lw.LAD(sites="first(1)", eta=1.0, base=lw.Standard(criterion=criterion)),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_a_loss_is_learnt(task: str, name: str) -> None:
    make, x, y, criterion = TASKS[task]
    torch.manual_seed(0)
    model, method = make(), METHODS[name](criterion, isinstance(x, dict))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = [lw.step(method, model, x, y, optimizer, generator=Stream(0, step)).item() for step in range(60)]
    assert losses[-1] < 0.7 * losses[0]


CLASSES: dict[str, Callable[[Any], Method]] = {
    "TRADES": lambda criterion: lw.TRADES(attack=lw.PGD(eps=0.1, steps=1), criterion=criterion),
    "MART": lambda criterion: lw.MART(attack=lw.PGD(eps=0.1, steps=1), criterion=criterion),
    "DeepDefense": lambda criterion: lw.DeepDefense(criterion=criterion),
    "FGSMCKPT": lambda criterion: lw.FGSMCKPT(attack=lw.FGSMRS(eps=0.1), criterion=criterion),
}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("task", ["segmentation", "several labels", "regression"])
def test_methods_of_class_probabilities_say_so(task: str, name: str) -> None:
    make, x, y, criterion = TASKS[task]
    model, method = make(), CLASSES[name](criterion)
    message = (
        f"{name} needs class probabilities: logits (B, C) of two classes or more, and labels (B,); the network gives"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        next(method.losses(model, x, y))


class WithHead(nn.Module):
    """Gives another head's logits beside its own in training mode, as GoogLeNet does."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head, self.pack = nn.Linear(48, 8), nn.Linear(8, 3), nn.Linear(8, 3), pack

    def forward(self, x: Tensor) -> Any:
        z = torch.relu(self.first(x.flatten(1)))
        return self.pack(self.second(z), self.head(z)) if self.training else self.second(z)


class Outputs(NamedTuple):
    logits: Tensor
    aux: Tensor


PACKS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda z, head: (z, head),
    "named": Outputs,
    "mapping": lambda z, head: {"out": z, "aux": head},
}


@pytest.mark.parametrize("pack", PACKS)
def test_auxiliary_heads_are_run_and_with_their_criterion_trained(pack: str) -> None:
    x, y = IMAGES, torch.arange(6) % 3
    plain, alone, both = (WithHead(PACKS[pack]).train() for _ in range(3))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    hidden = torch.relu(plain.first(x.flatten(1)))
    loss = nn.functional.cross_entropy(plain.second(hidden), y) + 0.4 * nn.functional.cross_entropy(
        plain.head(hidden), y
    )
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    method = lw.Standard(criterion=lw.AuxiliaryHeads(weight=0.4))
    lw.step(method, both, x, y, torch.optim.SGD(both.parameters(), lr=0.1))
    assert all(torch.allclose(a, b) for a, b in zip(plain.parameters(), both.parameters(), strict=True))
    lw.step(lw.Standard(), alone, x, y, torch.optim.SGD(alone.parameters(), lr=0.1))
    assert torch.equal(alone.head.weight, WithHead(PACKS[pack]).head.weight)


@pytest.mark.parametrize("name", ["PGD", "SLAT", "LAT", "ANP", "LAD"])
def test_layer_wise_methods_train_auxiliary_heads(name: str) -> None:
    model, y = WithHead(PACKS["named"]).train(), torch.arange(6) % 3
    method = METHODS[name](lw.AuxiliaryHeads(), False)
    before = model.head.weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert all(lw.step(method, model, IMAGES, y, optimizer).isfinite() for _ in range(2))
    assert not torch.equal(model.head.weight, before)
