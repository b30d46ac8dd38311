"""How often the self-checks accuse honest networks, and how often they find planted defects, on the embedded digits.

Run from the root of the repository, which makes the file anew:

    python -m benchmarks.self_checks benchmarks/results/self-checks.json --seeds 0 6 --note "why"

Networks of seeds 0 and 1 were known when the last threshold was fixed (the others are older still: seeds 100 to 103); those of
seeds from 6 on are the half that is looked at once.
"""

from __future__ import annotations

import argparse
import json
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
FIXED_ON = (0, 1)
IMAGES = 256


def networks(seed: int) -> Iterator[tuple[str, bool, tuple[ThreatModel, ...], nn.Module]]:
    """Each network of a seed: what it is, whether it is honest, against what to look at it."""
    for name in HONEST:
        yield name, True, THREATS, recipe(name, seed=seed)
    for name, network in defects(recipe("pgd-digits", seed=seed), seed=seed).items():
        yield name, False, THREATS, network
    for kind in ("mlp", "digits_cnn"):
        yield f"overfitted {kind}", False, (OVERFITTED_AT,), overfitted(kind, seed=seed)
        short = recipe("fgsm-digits", "--method.eps=0.3", f"--model.name={kind}", seed=seed)
        yield f"overfitted {kind}, the recipe's 20 epochs", False, (OVERFITTED_AT,), short


def looked_at(network: nn.Module, threat: ThreatModel) -> dict[str, Any]:
    """What `evaluate` says, whose active checks look at 256 images, and what these say on 64."""
    record = evaluate(network, images(IMAGES), threat=threat, progress=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        few = [f.name for f in examine(network, *images(64), threat, Stream(0))]
    found = {f.name: round(f.value, 4) for f in record.findings}
    return {"accuracies": record.accuracies, "evaluate": found, "examine 64": few}


def rates(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many planted networks each way of looking found, how many honest ones it accused."""
    fair = [r for r in rows if r["honest"]]
    planted = [r for r in rows if not r["honest"] and r["network"] != "surrogate"]
    table: dict[str, Any] = {"planted": len(planted), "honest": len(fair)}
    for look in ("evaluate", "examine 64"):
        table[look] = {
            "found": sum(bool(r[look]) for r in planted),
            "not found": [_named(r) for r in planted if not r[look]],
            "accused": [f"{_named(r)}: {r[look]}" for r in fair if r[look]],
        }
    return table


def _named(row: dict[str, Any]) -> str:
    return f"{row['network']}, seed {row['seed']}, {row['threat']}"


def main() -> None:
    """Train, look, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 6])
    parser.add_argument("--note", default="", help="what this run is for")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        half = "fixed on" if seed in FIXED_ON else "looked at once"
        for name, honest, threats, network in networks(seed):
            for threat in threats:
                row = {"network": name, "honest": honest, "seed": seed, "half": half, "threat": str(threat)}
                rows.append(row | looked_at(network, threat))
                arguments.out.write_text(json.dumps(summed_up(rows, arguments.note), indent=1) + "\n", encoding="utf-8")


def summed_up(rows: list[dict[str, Any]], note: str) -> dict[str, Any]:
    """The record."""
    return {
        "note": note,
        "torch": torch.__version__,
        "images": IMAGES,
        "thresholds": {name: check.threshold for name, check in CHECKS.items()},
        "rates": {half: rates([r for r in rows if r["half"] == half]) for half in ("fixed on", "looked at once")},
        "rows": rows,
    }


if __name__ == "__main__":
    main()
