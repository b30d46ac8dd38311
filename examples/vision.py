"""A vision transformer of timm on Fashion-MNIST, trained by Lightning: plainly, with SLAT, and with latent PGD.

    pip install timm lightning
    python -m examples.vision DATA --output vision.json

DATA holds Fashion-MNIST's files (`FashionMNIST/raw`). Every method takes the same epochs from the same weights. How much noise a
method has in the hidden layer is chosen under attack on validation images, by a seed that is not reported. All are attacked on the
same test images, so that differences are paired.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import layerwise as lw
from examples.record import Record, compared, options, seeds_of
from layerwise.data import ImageData, Split, batches
from layerwise.integrations.lightning import LayerwiseModule

ATTACKS = ("clean", "pgd-10")
BLOCK = "model.blocks.0"
CHOOSING = 100
"""The seed of the choice."""


@dataclass(frozen=True)
class Settings:
    """How large all of it is."""

    network: str = "vit_tiny_patch16_224"
    width: int = 48
    depth: int = 3
    patch: int = 7
    images: int = 2000
    test_images: int = 500
    epochs: int = 4
    batch: int = 50
    lr: float = 2e-3
    eps: float = 0.05
    slat: tuple[float, ...] = (0.02, 0.1)
    latent_pgd: tuple[float, ...] = (0.05, 0.2)


def ways(settings: Settings) -> dict[str, dict[float, lw.Method]]:
    """Every method, by how much noise it has in the hidden layer: in its unit, and as a share of a token's length."""
    eps = settings.eps
    return {
        "plain": {0.0: lw.Standard()},
        "SLAT": {eta: lw.SLAT(sites=[BLOCK], eta={"input": eps, BLOCK: eta}) for eta in settings.slat},
        "LatentPGD": {
            radius: lw.LatentPGD(sites=[BLOCK], eps=radius, relative=True, per="token", steps=3)
            for radius in settings.latent_pgd
        },
    }


def vit(settings: Settings, data: ImageData) -> nn.Module:
    """A transformer of timm at the images' size, pixels in [0, 1] in."""
    import timm

    network: nn.Module = timm.create_model(
        settings.network,
        img_size=data.shape[-1],
        in_chans=data.shape[0],
        num_classes=data.num_classes,
        patch_size=settings.patch,
        embed_dim=settings.width,
        depth=settings.depth,
        num_heads=3,
    )
    return lw.Normalized(network, mean=data.mean, std=data.std)


def train(network: nn.Module, method: lw.Method, data: ImageData, settings: Settings, seed: int) -> None:
    """Lightning's loop; the mixin's training step is the method's."""
    import lightning

    class Classifier(LayerwiseModule, lightning.LightningModule):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            super().__init__()
            self.network, self.method = network, method

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.network.parameters(), lr=settings.lr)

    images, labels = next(batches(data.train, settings.images))
    pixels = TensorDataset(images, labels)
    shuffled = DataLoader(pixels, settings.batch, shuffle=True, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    lightning.Trainer(max_epochs=settings.epochs, accelerator="cpu", **quiet).fit(Classifier(), shuffled)
    method.detach()


def trained(method: lw.Method, data: ImageData, split: Split, settings: Settings, seed: int) -> dict[str, Any]:
    """What one method leaves of the accuracy on a split, with its interval and every image's outcome."""
    torch.manual_seed(seed)
    network = vit(settings, data)
    train(network, copy.deepcopy(method), data, settings, seed)
    threat = lw.ThreatModel(eps=settings.eps)
    size = settings.test_images
    evaluation = lw.evaluate(network, split, threat=threat, attacks=ATTACKS, num_examples=size, progress=False)
    return {
        kind: {
            "accuracy": result.count.accuracy,
            "interval": result.count.interval,
            "correct": "".join(str(int(correct)) for correct in result.outcomes),
        }
        for kind in ATTACKS
        for result in [evaluation[kind]]
    }


def best(parts: Mapping[str, Any], way: str, sizes: Iterable[float]) -> float:
    """The size that leaves the most accuracy under attack, on validation images; the only one, where there is one."""
    first, *others = sizes
    tried = (first, *others) if others else ()
    return max(tried, key=lambda size: parts[f"choice {way} {size}"][ATTACKS[-1]]["accuracy"], default=first)


def verdict(parts: Mapping[str, Any], settings: Settings) -> list[str]:
    """What came out, in words: a share is an image's, over the seeds."""
    seeds, methods = seeds_of(parts), ways(settings)

    def shares(way: str, kind: str) -> list[float]:
        columns = zip(*(parts[f"{seed} {way}"][kind]["correct"] for seed in seeds), strict=True)
        return [column.count("1") / len(column) for column in columns]

    found = {way: {kind: shares(way, kind) for kind in ATTACKS} for way in methods}
    chosen = ", ".join(f"{way} {best(parts, way, sizes)}" for way, sizes in methods.items() if len(sizes) > 1)
    return [*compared(found, "plain", "images"), f"Chosen on validation: {chosen}. Seeds: {len(seeds)}."]


def main(arguments: Sequence[str] | None = None, settings: Settings | None = None) -> Record:
    """Choose, run the seeds and write what they found."""
    given = options(__doc__, folder="where Fashion-MNIST lies", seeds=3).parse_args(arguments)
    settings = settings or Settings()
    data = lw.load_data("fashion-mnist", root=given.folder)
    record = Record(given.output, asdict(settings))
    for way, methods in ways(settings).items():
        if len(methods) > 1:
            for size, method in methods.items():
                find = partial(trained, method, data, data.validation, settings, CHOOSING)
                record.part(f"choice {way} {size}", find)
    for seed in range(given.seeds):
        for way, methods in ways(settings).items():
            method = methods[best(record.parts, way, methods)]
            record.part(f"{seed} {way}", partial(trained, method, data, data.test, settings, seed))
    record.conclude(verdict(record.parts, settings))
    return record


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
