"""Does every measure give the same number as before, on the same weights?

    python benchmarks/same_records.py ../before .
    python benchmarks/same_records.py ../before . --only 'pgd|rho'

trains two small networks (standard and SLAT on the embedded digits) with the earlier checkout, and
measures the same weights with both: accuracies under attack, the attacked images themselves (SHA-256),
findings of the self-checks, rho, eps_ref, corruptions, sequences, and every diagnostic at a small size.
Every number and text of the results is compared, but for times and versions; any difference exits with 1.

What is typed or called otherwise after a change is said in `renamed.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import both
import renamed
from method_table import find, of
from same_weights import NETWORKS, digest, pictures

Reading = Callable[[], Any]
EPS, IMAGES = 0.2, 100
LEFT_OUT = {"seconds", "versions", "device", "layerwise", "measures"}
"""Fields that differ by themselves, or hold what is read by itself."""

RUNS: dict[str, Any] = {
    "standard": of("Standard"),
    "slat": of("SLAT", sites=["conv1", "layer1"], eta={"input": 0.2, "conv1": 0.03, "layer1": 0.03}),
}
ATTACKS = [
    "clean",
    "fgsm",
    "bim-5",
    "pgd-20",
    "pgd-5-3",
    "mi-fgsm-5",
    "step-ll",
    "deepfool",
    "at:0.1:fgsm",
    "at:l2,0.5:pgd-5",
    "eot-2:pgd-3",
]
LATENT = "latent"
DIAGNOSTICS = [
    "landscape images=10 points=3",
    "alignment images=20",
    "feature-gradients images=20",
    "linearity images=10",
    "boundary-distance images=3 directions=4",
    "noise-insensitivity images=10 copies=2",
    "noise-insensitivity images=10 copies=2 noise=gaussian",
    "representation-insensitivity images=10",
    "jacobian images=3 top=5",
    "features images=30",
    "input-gradients images=3",
    "radius-curve images=20 steps=3",
    "reassignment images=20",
    "adversarialness images=20",
]
WIDE = of("Training", epochs=4, batch_size=64, eval_every=0, seed=0, accelerator="cpu", channels_last=False)


def make(name: str, /, **fields: Any) -> Any:
    """An object of the package, as this side spells it."""
    return of(name, **fields).build(both.side() or "", NETWORKS[0])


def network(data: Any) -> Any:
    """The network of both runs."""
    torch.manual_seed(0)
    return make("build_model", name="digits_cnn", num_classes=data.num_classes, shape=data.shape)


def train(folder: Path) -> None:
    """The runs' weights."""
    data = make("load_data", name="digits")
    for name, method in RUNS.items():
        model = network(data)
        what = {"model": model, "method": method, "data": data, "training": WIDE}
        make("fit", **what, progress=False)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / f"{name}.safetensors")
    both.write({})


def readings(folder: Path) -> dict[str, Reading]:
    """Everything that is measured, by name."""
    data = make("load_data", name="digits")
    models = {}
    for name in RUNS:
        models[name] = network(data)
        models[name].load_state_dict(load_file(folder / f"{name}.safetensors"))
        models[name].eval()
    found: dict[str, Reading] = {}
    for name, model in models.items():
        others = {other: each for other, each in models.items() if other != name}
        found |= {f"{name} | {what}": read for what, read in of_network(model, others, data).items()}
    return found | special()


def of_network(model: nn.Module, others: Mapping[str, nn.Module], data: Any) -> dict[str, Reading]:
    """What is measured of each of the trained networks."""
    threat, l2 = make("ThreatModel", eps=EPS), make("ThreatModel", norm="l2", eps=0.5)
    subset = {"num_examples": IMAGES, "seed": 0, "batch_size": 40}
    x, y = images_of(data)

    def evaluation(attacks: list[str], against: Any) -> Reading:
        asked = {"threat": against, "attacks": attacks, "progress": False}
        return lambda: make("evaluate", model=model, data=data, **asked, **subset)

    def attacked(attack: str) -> Reading:
        def images() -> str:
            stream = make("Stream", seed=0, total=len(x))
            return digest(find("parse_attack")(attack)(model, x, y, threat, generator=stream))

        return images

    def look(text: str) -> Reading:
        def measure() -> Any:
            subject = {"model": model, "x": x, "y": y, "threat": threat, "others": others}
            if renamed.LOOK and both.side() == "after":
                return renamed.LOOK(text, **subject)
            return find("parse_diagnostic")(text)(make("Subject", **subject))

        return measure

    measures: dict[str, Reading] = {
        "evaluation": evaluation(ATTACKS, threat),
        "evaluation, l2": evaluation(["clean", "fgsm", "pgd-5", "bim-5"], l2),
        "evaluation, latent": evaluation(["clean", LATENT], threat),
        "rho, 5 steps": lambda: make("rho", model=model, data=data, num_steps=5, **subset),
        "rho, linf": lambda: make("rho", model=model, data=data, num_steps=3, p=float("inf"), **subset),
        "eps_ref": lambda: make("eps_ref", model=model, data=data, **subset),
        "corruptions": lambda: make("corruption_errors", model=model, data=data, **subset),
        "sequences": lambda: make("flip_probabilities", model=model, data=data, **{**subset, "num_examples": 10}),
    }
    measures |= {f"images, {name}": attacked(name) for name in ATTACKS if name != "clean"}
    return measures | {f"diagnostic, {text}": look(text) for text in DIAGNOSTICS}


def images_of(data: Any) -> tuple[Tensor, Tensor]:
    """The first test images, in the order of the split."""
    found: tuple[Tensor, Tensor] = next(iter(make("batches", split=data.test, batch_size=64)))
    return found


def special() -> dict[str, Reading]:
    """What asks for another network or other data than the runs'."""
    residual = next(each for each in NETWORKS if each.name == "residual").make(3).eval()
    x, y = pictures()
    flat = torch.rand(60, 1, 1, 2, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    plane = nn.Sequential(nn.Flatten(), nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    labels = (flat.flatten(1).sum(1) > 1).long()
    return {
        "residual | state ratio": lambda: make("state_gradient_ratio", model=residual, x=x, y=y),
        "plane | decision boundary": lambda: make("decision_boundary", model=plane, x=flat, y=labels),
    }


def plain(value: Any, where: str = "") -> Any:
    """A result in JSON's types, as it was called before; tensors as digests, numbers to the last bit."""
    if isinstance(value, Tensor):
        return digest(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        kept = {called(str(key), where): each for key, each in value.items()}
        return {key: plain(each, key) for key, each in kept.items() if key not in LEFT_OUT}
    if isinstance(value, list | tuple):
        return [plain(each, where) for each in value]
    if isinstance(value, float):
        return value.hex()
    return value if value is None or isinstance(value, bool | int | str) else repr(value)


def called(field: str, where: str) -> str:
    """What a field was called before."""
    names = renamed.RECORD if both.side() == "after" else {}
    return names.get(f"{where}.{field}", names.get(field, field))


def measured(read: Reading) -> Any:
    """What a reading gives; an error is a result too."""
    try:
        return plain(read())
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}", "at": place}


def one_side(weights: Path, only: str) -> None:
    """Measure everything with the package that is on the path."""
    both.check_package()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if not any(weights.iterdir()):
        train(weights)
        return
    wanted = {name: read for name, read in readings(weights).items() if re.search(only, name)}
    both.write({name: measured(read) for name, read in wanted.items()})


def tell(found: dict[str, list[str]]) -> None:
    """A line a measure, and what differs."""
    for name, unequal in found.items():
        print(f"{name:64}{'equal' if not unequal else f'{len(unequal)} differ'}")
        for each in unequal[:5]:
            print(f"    {each}")
    print(f"{len(found)} measures: {sum(map(bool, found.values()))} differ")


def main() -> None:
    """Measure with both checkouts, or be one of the two."""
    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_is)
    parser.add_argument("checkouts", type=Path, nargs=2, help="folders: before, after")
    parser.add_argument("--only", default="", help="regular expression: NETWORK | MEASURE")
    parser.add_argument("--weights", type=Path, help="folder of the runs' weights, made if it is empty")
    parser.add_argument("--jobs", type=int, default=1, help="2 runs both sides at a time")
    args = parser.parse_args()
    if both.side():
        one_side(args.weights, args.only)
        return
    with tempfile.TemporaryDirectory() as folder:
        weights = (args.weights or Path(folder)).resolve()
        weights.mkdir(parents=True, exist_ok=True)
        again = ["-", "-", "--only", args.only, "--weights", str(weights)]
        if not any(weights.iterdir()):
            both.run(__file__, args.checkouts[0], "before", again)
        before, after = both.run_both(__file__, args.checkouts, again, keep=None, jobs=args.jobs)
    found = both.compared(before, after)
    tell(found)
    sys.exit(any(found.values()) or not found)


if __name__ == "__main__":
    main()
