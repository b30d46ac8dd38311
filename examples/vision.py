"""A vision transformer of timm on Fashion-MNIST, trained by Lightning: plainly, with SLAT, and with latent PGD.

    pip install timm lightning
    python -m examples.vision DATA --output vision.json

DATA holds Fashion-MNIST's files (`FashionMNIST/raw`). Every method takes the same epochs from the same weights; radii are fixed
beforehand. All are attacked on the same images.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import layerwise as lw
from examples.record import Record, compared, options, seeds_of
from layerwise.data import ImageData, batches
from layerwise.integrations.lightning import LayerwiseModule

ATTACKS = ("clean", "pgd-10")


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


METHODS: dict[str, Callable[[Settings], lw.Method]] = {
    "plain": lambda s: lw.Standard(),
    "SLAT": lambda s: lw.SLAT(sites=["model.blocks.0"], eta={"input": s.eps, "model.blocks.0": 0.02}),
    "LatentPGD": lambda s: lw.LatentPGD(sites=["model.blocks.0"], eps=0.2, relative=True, per="token", steps=3),
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


def trained(
    make: Callable[[Settings], lw.Method], data: ImageData, settings: Settings, seed: int
) -> dict[str, dict[str, Any]]:
    """One method: trained, and attacked on the test images; accuracy with its interval over the images."""
    torch.manual_seed(seed)
    network = vit(settings, data)
    train(network, make(settings), data, settings, seed)
    threat = lw.ThreatModel(eps=settings.eps)
    evaluation = lw.evaluate(
        network, data, threat=threat, attacks=ATTACKS, num_examples=settings.test_images, progress=False
    )
    return {
        name: {"accuracy": count.accuracy, "interval": count.interval, "images": count.total}
        for name in ATTACKS
        for count in [evaluation[name].count]
    }


def verdict(parts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """What came out, in words."""
    seeds = seeds_of(parts)
    found = {
        way: {kind: [parts[f"{seed} {way}"][kind]["accuracy"] for seed in seeds] for kind in ATTACKS} for way in METHODS
    }
    return compared(found, "plain")


def main(arguments: Sequence[str] | None = None, settings: Settings | None = None) -> Record:
    """Run the seeds and write what they found."""
    given = options(__doc__, folder="where Fashion-MNIST lies", seeds=3).parse_args(arguments)
    settings = settings or Settings()
    data = lw.load_data("fashion-mnist", root=given.folder)
    methods = {way: repr(make(settings)) for way, make in METHODS.items()}
    record = Record(given.output, asdict(settings) | {"methods": methods})
    for seed in range(given.seeds):
        for way, make in METHODS.items():
            record.part(f"{seed} {way}", partial(trained, make, data, settings, seed))
    record.conclude(verdict(record.parts))
    return record


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
