"""Do the self-checks find ripples and tiny logits that they have never seen, and leave honest networks alone?

Run from the root of the repository, which adds a run to the record:

    python -m benchmarks.blind_spots benchmarks/results/blind-spots.json --note "why"

Networks of the embedded digits, honest ones and the same behind a mask: a ripple on the input or on
the first layer's output, x + a sin(w x), or logits times a small factor. Every other pair, in the
order in which they are made, belongs to the half on which thresholds were fixed; the rest are looked
at once. A mask counts as one where PGD-20 leaves at least five points more images correct than
images made on the bare network do: others hide nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tests.evaluation.planted import Rippled, Scaled, images, labels, learn, mlp, recipe
from torch import nn

from layerwise.attacks import PGDAttack, ThreatModel
from layerwise.attacks.base import is_correct
from layerwise.core.random import Stream
from layerwise.evaluation.examine import examine

THREATS = (ThreatModel("linf", 0.2), ThreatModel("l2", 1.0))
NEW = ("smoothed-gradient-beats-gradient", "flat-logits")
HIDES = 0.05
IMAGES = 256


MASKS: dict[str, Callable[[nn.Module], nn.Module]] = {
    **{
        f"ripple {a:g} sin({w:g} x)": partial(Rippled, a=a, w=w)
        for a, w in ((0.004, 2000), (0.002, 5000), (0.004, 700), (0.001, 20000), (0.01, 1000), (0.02, 300))
    },
    **{
        f"hidden ripple {a:g} sin({w:g} z)": partial(Rippled, a=a, w=w, inside=True)
        for a, w in ((0.01, 1000), (0.05, 200), (0.005, 5000), (0.1, 60))
    },
    **{f"logits x {factor:g}": partial(Scaled, factor=factor) for factor in (1e-6, 1e-2, 1e-4, 1e-9)},
}


def honest(seeds: Sequence[int]) -> Iterator[tuple[str, nn.Module]]:
    """Networks that hide nothing: natural, adversarial and smooth training, three architectures."""
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    for seed in seeds:
        for name in ("standard-digits", "pgd-digits", "n-fgsm-digits"):
            yield f"{name}, seed {seed}", recipe(name, seed=seed)
        yield f"mlp, seed {seed}", learn(mlp(seed=seed), nn.functional.cross_entropy, labels(), steps=100)
        yield f"tanh, seed {seed}", learn(mlp(nn.Tanh, seed=seed), smooth, labels(), steps=100)


@dataclass(frozen=True)
class Case:
    """A network to look at; `bare` is what a mask is over."""

    name: str
    network: nn.Module
    threat: ThreatModel
    bare: nn.Module | None = None

    def looked_at(self) -> dict[str, Any]:
        """What the self-checks find, and how much is hidden."""
        x, y = images(IMAGES)
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            findings = examine(self.network, x, y, self.threat, Stream(0))
        seconds = round(time.perf_counter() - started, 2)
        found = {finding.name: round(finding.value, 4) for finding in findings}
        row = {"network": self.name, "threat": str(self.threat), "findings": found, "seconds": seconds}
        if self.bare is None:
            return {**row, "honest": True}
        pgd, transfer = (self.accuracy(made) for made in (self.network, self.bare))
        return {**row, "honest": False, "pgd-20": pgd, "transfer": transfer}

    def accuracy(self, source: nn.Module) -> float:
        """Of the network on images that PGD makes of `source`."""
        x, y = images(IMAGES)
        attack = PGDAttack(20, stop_when_fooled=source is self.network)
        found = attack(source, x, y, self.threat, generator=Stream(0, total=len(x)))
        with torch.no_grad():
            return is_correct(self.network(found), y).double().mean().item()


def cases(seeds: Sequence[int], each: int) -> Iterator[Case]:
    """Honest networks first, then every mask on some of them, the next ones in turn."""
    bare = list(honest(seeds))
    for name, network in bare:
        for threat in THREATS:
            yield Case(name, network, threat)
    for index, (mask, make) in enumerate(MASKS.items()):
        for turn in range(each):
            name, network = bare[(each * index + turn) % len(bare)]
            # The threat changes with the halves' rhythm, so that both halves hold both.
            threat = THREATS[(turn // 2 + index) % 2]
            yield Case(f"{mask} on {name}", make(network), threat, network)


def rates(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one half: masks found, honest networks accused."""
    masks = [r for r in rows if not r["honest"] and r["pgd-20"] - r["transfer"] >= HIDES]
    fair = [r for r in rows if r["honest"]]
    return {
        "masks that hide something": len(masks),
        "found": sum(bool(r["findings"]) for r in masks),
        "found without the two new checks": sum(bool(r["findings"].keys() - {*NEW}) for r in masks),
        "not found": [f"{r['network']}, {r['threat']}" for r in masks if not r["findings"]],
        "honest networks": len(fair),
        "accused": [f"{r['network']}, {r['threat']}: {r['findings']}" for r in fair if r["findings"]],
        "masks that hide nothing": sum(not r["honest"] for r in rows) - len(masks),
    }


def main() -> None:
    """Look at everything, write."""
    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_is)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--each", type=int, default=4, help="networks that each mask is put on")
    parser.add_argument("--note", default="", help="what this run is for")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for number, case in enumerate(cases(arguments.seeds, arguments.each)):
        rows.append({**case.looked_at(), "half": ("fixed on", "looked at once")[number // 2 % 2]})
        print(rows[-1], flush=True)
    halves = {half: rates([r for r in rows if r["half"] == half]) for half in ("fixed on", "looked at once")}
    runs = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    runs.append({"note": arguments.note, "torch": torch.__version__, "rates": halves, "rows": rows})
    arguments.out.write_text(json.dumps(runs, indent=1) + "\n")
    print(json.dumps(halves, indent=1))


if __name__ == "__main__":
    main()
