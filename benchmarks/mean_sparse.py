"""MeanSparse on a trained run: AutoAttack before and after, and with threshold 0, which has to change no bit.

    layerwise train slat-fashion-mnist --data.root DATA
    python -m benchmarks.mean_sparse runs/slat-fashion-mnist --data DATA --output benchmarks/results/mean-sparse.json

The threshold is the one of four with the highest accuracy under PGD-20 on validation images, the smaller where two are
equal. Means and deviations are those of training images. Exits with 1 if threshold 0 changes a logit of the test images
in any bit.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import layerwise as lw
from layerwise.evaluation.intervals import Count
from layerwise.experiments.experiment import load, load_data, read

THRESHOLDS = (0.1, 0.2, 0.3, 0.4)


def tensors(split: Any, count: int) -> tuple[Tensor, Tensor]:
    """The first images of a split and their labels."""
    images: Tensor = split.images[:count]
    return images.float() / 255 if images.dtype == torch.uint8 else images, split.labels[:count]


def said(record: dict[str, Any]) -> str:
    """The record in a sentence of the documentation."""

    def share(when: str, attack: str) -> str:
        count = Count(*record[when][attack])
        low, high = count.interval
        return f"{100 * count.accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

    changes = "; ".join(
        f"{name} {share('before', attack)} before and {share('after', attack)} after"
        for attack, name in (("clean", "clean"), ("pgd-20", "PGD-20"), ("autoattack", "AutoAttack"))
    )
    return (
        f"`{record['run']}`, {record['before']['clean'][1]} test images, threshold {record['threshold']} chosen on "
        f"{record['validation']['0.1']['clean'][1]} validation images: {changes}."
    )


def main() -> int:
    """Choose, attack, record; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, help="where the data lie")
    parser.add_argument("--images", type=int, default=200, help="of the test set, the first")
    parser.add_argument("--validation", type=int, default=500, help="images that choose the threshold")
    parser.add_argument("--training", type=int, default=2000, help="images that give means and deviations")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    experiment, _ = read(str(arguments.run / "config.yaml"), [f"--data.root={arguments.data}"])
    data = load_data(experiment.data)
    model = load(arguments.run).eval()
    sparse = lw.MeanSparse(model, threshold=0.0).calibrate([tensors(data.train, arguments.training)[0]]).eval()
    test, validation = tensors(data.test, arguments.images), tensors(data.validation, arguments.validation)

    def found(network: torch.nn.Module, images: tuple[Tensor, Tensor], *attacks: str) -> dict[str, Any]:
        record = lw.evaluate(network, images, threat=experiment.threat, attacks=list(attacks), progress=False)
        return {name: [record[name].count.correct, record[name].count.total] for name in attacks}

    with torch.no_grad():
        same = torch.equal(sparse(test[0]), model(test[0]))
    chosen: dict[str, Any] = {}
    for threshold in THRESHOLDS:
        sparse.threshold = threshold
        chosen[str(threshold)] = found(sparse, validation, "clean", "pgd-20")
        print(threshold, chosen[str(threshold)], flush=True)
    best = max(THRESHOLDS, key=lambda threshold: (chosen[str(threshold)]["pgd-20"][0], -threshold))
    record = {
        "run": arguments.run.name,
        "threat": str(experiment.threat),
        "threshold 0 changes no bit": same,
        "validation": chosen,
        "threshold": best,
        "before": found(model, test, "clean", "pgd-20", "autoattack"),
    }
    sparse.threshold = best
    record["after"] = found(sparse, test, "clean", "pgd-20", "autoattack")
    print(json.dumps(record, indent=1))
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
