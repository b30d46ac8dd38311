"""The demonstration's record: strengths chosen on validation images, then every method once on the test images.

    python -m benchmarks.few results/demo

Each method has four or six strengths, fixed here before they were run. Each trains on the 100 labelled digits with three seeds that
the demonstration does not use; the strength of the highest mean accuracy under PGD-20 on the 1,157 images that
are held out is the method's (`strengths.json`). No test image is looked at. What is chosen stands in
`experiments/recipes/digits/few.yaml`, by hand; a test holds the two together. `--test` evaluates these recipes on the 540
test images, five seeds each (`test.json`). What is in the records already is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from layerwise.experiments import experiment, recipe
from layerwise.experiments.choices import Layer
from layerwise.experiments.experiment import SCHEMA
from layerwise.files import write_text
from layerwise.trees import nested

SEEDS, TESTED = (100, 101, 102), (0, 1, 2, 3, 4)
GRID: Mapping[str, tuple[str, Sequence[Any]]] = {
    "standard": ("training.optimizer.lr", (0.1,)),
    "fgsm": ("method.eps", (0.05, 0.075, 0.1, 0.15, 0.2, 0.3)),
    "slat": (
        "method.eta",
        tuple({"input": a, "conv1": b, "layer1": b} for a in (0.05, 0.1, 0.2) for b in (0.03, 0.1)),
    ),
    "n-fgsm": ("method.eps", (0.05, 0.1, 0.15, 0.2)),
}
"""{method: (its setting, the values)}."""


def trained(name: str, seed: int, **own: Any) -> dict[str, float]:
    """Train once, and evaluate."""
    changes = nested({"training.seed": seed, "evaluation.attacks": ["clean", "pgd-20"], **own})
    settings, tree = SCHEMA.read(*recipe.load(f"{name}-few-digits"), Layer(changes, "the trial"))
    with TemporaryDirectory() as folder:
        _, found = experiment.train(settings, tree, folder=Path(folder) / "trial", progress=False)
    return {"clean": found["clean"].accuracy, "pgd-20": found["pgd-20"].accuracy}


def seeds(name: str, over: Sequence[int], **own: Any) -> dict[str, list[float]]:
    """{attack: accuracy of each seed}."""
    runs = [trained(name, seed, **own) for seed in over]
    return {attack: [run[attack] for run in runs] for attack in runs[0]}


def choose(record: dict[str, Any], name: str, save: Callable[[], None]) -> None:
    """Try every strength of a method that its record lacks, and name the best."""
    key, values = GRID[name]
    entry = record.setdefault(name, {"setting": key, "seeds": SEEDS, "trials": []})
    for value in values:
        if value not in [each["value"] for each in entry["trials"]]:
            found = seeds(name, SEEDS, **{key: value, "evaluation.split": "validation"})
            entry["trials"].append({"value": value} | found)
            save()
    entry["chosen"] = max(entry["trials"], key=lambda each: mean(each["pgd-20"]))["value"]
    save()


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the records lack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the records")
    parser.add_argument("--only", nargs="+", choices=list(GRID), default=list(GRID), metavar="METHOD")
    parser.add_argument("--test", action="store_true", help="evaluate what was chosen on the test images")
    given = parser.parse_args(argv)
    path = given.folder / ("test.json" if given.test else "strengths.json")
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def save() -> None:
        write_text(path, json.dumps(record, indent=1) + "\n")

    for name in given.only:
        if not given.test:
            choose(record, name, save)
        elif name not in record:
            record[name] = {"seeds": TESTED, "images": 540, **seeds(name, TESTED)}
            save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
