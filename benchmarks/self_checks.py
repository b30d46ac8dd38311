"""How often the self-checks accuse honest networks, and how often they find planted defects, on the embedded digits.

Run from the root of the repository, which adds a run to the file:

    python -m benchmarks.self_checks benchmarks/results/self-checks.json --seeds 0 1 2 --note "why"
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tests.evaluation.planted import defects, images, overfitted, recipe
from torch import nn

from layerwise.attacks import ThreatModel
from layerwise.core.random import Stream
from layerwise.evaluation import CHECKS, evaluate
from layerwise.evaluation.examine import examine

HONEST = ("standard-digits", "pgd-digits", "n-fgsm-digits")
THREATS = (ThreatModel("linf", 0.2), ThreatModel("l2", 1.0))
OVERFITTED_AT = ThreatModel("linf", 0.3)


def networks(seed: int) -> Iterator[tuple[str, bool, tuple[ThreatModel, ...], nn.Module]]:
    """Each network of a seed: what it is, whether it is honest, against what to judge it."""
    for name in HONEST:
        yield name, True, THREATS, recipe(name, seed=seed)
    for name, network in defects(recipe("pgd-digits", seed=seed), seed=seed).items():
        yield name, False, THREATS, network
    for kind in ("mlp", "digits_cnn"):
        yield f"overfitted {kind}", False, (OVERFITTED_AT,), overfitted(kind, seed=seed)
        short = recipe("fgsm-digits", "--method.eps=0.3", f"--model.name={kind}", seed=seed)
        yield f"overfitted {kind}, the recipe's 20 epochs", False, (OVERFITTED_AT,), short


def judged(network: nn.Module, threat: ThreatModel) -> dict[str, Any]:
    """What `evaluate` says on all test images, and what the active checks say on 64 and on 256 of them."""
    record = evaluate(network, images(), threat=threat, progress=False)
    found: dict[str, Any] = {"accuracies": record.accuracies, "evaluate": [f.name for f in record.findings]}
    for count in (64, 256):
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            names = [f.name for f in examine(network, *images(count), threat, Stream(0))]
        found[f"examine {count}"], found[f"seconds {count}"] = names, round(time.perf_counter() - started, 2)
    return found


def rates(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of how many networks each way of looking raised anything, by what they are and the norm."""
    table: dict[str, Any] = {}
    for row in rows:
        entry = table.setdefault(f"{row['network']}, {row['threat']}", {"honest": row["honest"], "networks": 0})
        entry["networks"] += 1
        for look in ("evaluate", "examine 64", "examine 256"):
            entry[look] = entry.get(look, 0) + bool(row[look])
    return table


def main() -> None:
    """Train, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--honest", action="store_true", help="only the honest networks")
    parser.add_argument("--note", default="", help="what this run is for")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for name, honest, threats, network in networks(seed):
            if arguments.honest and not honest:
                break
            for threat in threats:
                row = {"network": name, "honest": honest, "seed": seed, "threat": str(threat)}
                rows.append(row | judged(network, threat))
    thresholds = {name: check.threshold for name, check in CHECKS.items()}
    run = {
        "note": arguments.note,
        "seeds": arguments.seeds,
        "thresholds": thresholds,
        "raised": rates(rows),
        "rows": rows,
    }
    before = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.is_file() else []
    arguments.out.write_text(json.dumps([*before, run], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
