"""Choose the one strength of each method of the comparison, on validation images.

    python -m benchmarks.strengths --data /path/to/data --runs runs/strengths --output results/comparison/strengths.json

Every method has four values of one setting, fixed here before anything was run. Each value trains 200 batches of
the 55,000 images that are not held out, with the recipe's whole schedule in them and seed 0; the value whose network
has the highest accuracy under PGD-20 on the first 1,000 of the 5,000 validation images is the method's, the weaker one
where two are equal. No test image is looked at. What is chosen is to stand in
`experiments/recipes/fashion-mnist/all.yaml`, by hand.

What is in the record already is not run again, so that a run that was stopped goes on. Several processes may have some
methods each (`--only`), with a record and a folder of their own; `--merge a.json b.json --only` brings their records
together, and runs nothing where no method is named.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

from layerwise.experiments import experiment, recipe
from layerwise.experiments.choices import Layer
from layerwise.experiments.experiment import SCHEMA
from layerwise.files import write_text
from layerwise.trees import nested

PROTOCOL = "fashion-mnist"
RADII = (0.05, 0.075, 0.1, 0.125)
SITES = ("conv1", "layer1")
HIDDEN = tuple({site: eta for site in SITES} for eta in (0.01, 0.03, 0.1, 0.3))
GAMMAS = (0.001, 0.002, 0.005, 0.01)
LAD = (1.0, 10.0, 50.0, 200.0)
LAT = (5.0, 10.0, 20.0, 40.0)

GRID: Mapping[str, tuple[str, Sequence[Any]]] = {
    "gaussian-noise-input": ("method.std", (0.05, 0.1, 0.2, 0.4)),
    "gaussian-noise": ("method.std", (0.05, 0.1, 0.2, 0.4)),
    "fgsm": ("method.eps", RADII),
    "fgsm-rs": ("method.eps", RADII),
    "n-fgsm": ("method.eps", RADII),
    "fgsm-ga": ("method.weight", (0.05, 0.2, 0.5, 2.0)),
    "fgsm-ckpt": ("method.attack.eps", RADII),
    "fgs-orig": ("method.alpha", (0.25, 0.5, 0.75, 0.9)),
    "nat": ("method.attack.std", (0.5, 0.75, 1.0, 1.5)),
    "eat": ("method.attack.std", (0.5, 0.75, 1.0, 1.5)),
    "free": ("method.eps", RADII),
    "yopo": ("method.eps", RADII),
    "pgd": ("method.eps", RADII),
    "pat": ("method.attack.eps", RADII),
    "trades": ("method.beta", (1.0, 3.0, 6.0, 10.0)),
    "mart": ("method.beta", (1.0, 3.0, 5.0, 10.0)),
    "awp": ("method.gamma", GAMMAS),
    "slat": ("method.eta", HIDDEN),
    "slat-fgsmrs": ("method.eta", HIDDEN),
    "slat-nfgsm": ("method.eta", HIDDEN),
    "slat-awp": ("method.gamma", GAMMAS),
    "anp": ("method.eps", (0.1, 0.3, 0.6, 1.2)),
    "anp-sign": ("method.eps", (0.1, 0.2, 0.3, 0.6)),
    "lad": ("method.eta", LAD),
    "lad-natural": ("method.eta", LAD),
    "lad-sm": ("method.eta", LAD),
    "lad-trades": ("method.eta", LAD),
    "lad-awp": ("method.gamma", GAMMAS),
    "lat": ("method.eps", LAT),
    "lat-joint": ("method.eps", LAT),
    "fgs-inter": ("method.eps", LAT),
    "deep-defense": ("method.weight", (1.5, 5.0, 15.0, 50.0)),
    "adv-train-1": ("method.alpha", (0.25, 0.5, 0.75, 0.9)),
    "parseval": ("method.beta", (0.0001, 0.001, 0.01, 0.05)),
}
"""{method of the protocol: (its setting, four values, the weakest first)}."""


def trial(name: str, key: str, value: Any, *, data: str, runs: Path) -> dict[str, Any]:
    """Train once, briefly, and evaluate on validation images."""
    own = {
        key: value,
        "data.root": data,
        "training.max_steps": 200,
        "training.eval_every": 0,
        "evaluation.split": "validation",
        "evaluation.attacks": ["clean", "pgd-20"],
        "evaluation.num_examples": 1000,
    }
    settings, tree = SCHEMA.read(*recipe.load(f"{name}-{PROTOCOL}"), Layer(nested(own), "the trial"))
    try:
        _, found = experiment.train(settings, tree, folder=runs / "trial", progress=False)
    finally:
        rmtree(runs / "trial", ignore_errors=True)
    return {"value": value, "clean": found["clean"].accuracy, "pgd-20": found["pgd-20"].accuracy}


def best(trials: Sequence[Mapping[str, Any]]) -> Any:
    """The value of the highest accuracy under PGD-20; the first of equals."""
    return max(trials, key=lambda each: each["pgd-20"])["value"]


def merge(record: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Take over another record's trials, in the order of the values; what has all four is chosen among."""
    for name, entry in other.items():
        key, values = GRID[name]
        known = [*record.get(name, {"trials": []})["trials"], *entry["trials"]]
        trials = [next((t for t in known if t["value"] == value), None) for value in values]
        record[name] = {"setting": key, "trials": [t for t in trials if t is not None]}
        if None not in trials:
            record[name]["chosen"] = best(record[name]["trials"])


def main(argv: Sequence[str] | None = None) -> int:
    """Try what the record lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="root of the data")
    parser.add_argument("--output", type=Path, required=True, help="the record")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/strengths"),
        help="folder for the trials, and for the networks that some start from",
    )
    parser.add_argument("--merge", nargs="+", type=Path, default=[], metavar="RECORD", help="take over their trials")
    parser.add_argument("--only", nargs="*", choices=list(GRID), default=list(GRID), metavar="METHOD")
    given = parser.parse_args(argv)
    record: dict[str, Any] = json.loads(given.output.read_text()) if given.output.exists() else {}
    for file in given.merge:
        merge(record, json.loads(file.read_text()))
        write_text(given.output, json.dumps(record, indent=1) + "\n")
    for name in given.only:
        key, values = GRID[name]
        entry = record.setdefault(name, {"setting": key, "trials": []})
        known = [each["value"] for each in entry["trials"]]
        for value in values:
            if value in known:
                continue
            entry["trials"].append(trial(name, key, value, data=given.data, runs=given.runs))
            write_text(given.output, json.dumps(record, indent=1) + "\n")
            print(name, entry["trials"][-1], flush=True)
        entry["chosen"] = best(entry["trials"])
        write_text(given.output, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
