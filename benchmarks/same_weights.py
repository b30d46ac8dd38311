"""Does every training method give the same weights as before, bit for bit?

    python benchmarks/same_weights.py ../before .
    python benchmarks/same_weights.py ../before . --only 'SLAT|AWP' --networks mlp

trains every configuration of `method_table.py` with both checkouts over 8 batches (two epochs, the
last batch of each is smaller) on a small convolutional network with batch norm, an MLP and a small
pre-activation residual network with dropout: by `fit`, by `fit` in two micro-batches, in a user's
own loop, and with `layerwise.step` where the later checkout has it. Compared are every loss and the
SHA-256 of every parameter, buffer and tensor of the method's state; any difference exits with 1.

What is typed otherwise after a change is said in `renamed.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import re
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import both
import renamed
from method_table import CASES, Network, Spec, find, of

IMAGES, BATCH, CLASSES, SHAPE = 56, 16, 5, (3, 8, 8)
EPOCHS = 2
Found = dict[str, Any]
Train = Callable[[nn.Module, Any], Found]


class Conv(nn.Module):
    """Twice convolution, batch norm, ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.layer1 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.bn2, self.fc = nn.BatchNorm2d(12), nn.Linear(12 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = torch.relu(self.bn1(self.conv1(x)))
        h = torch.relu(self.bn2(self.layer1(h)))
        logits: Tensor = self.fc(nn.functional.avg_pool2d(h, 2).flatten(1))
        return logits


class MLP(nn.Module):
    """Three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(192, 24), nn.Linear(24, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x.flatten(1))))))
        return logits


class Block(nn.Module):
    """A pre-activation block. Its shortcut has 8 channels: fewer, strided, kill some processors."""

    is_residual_block: ClassVar[bool] = True

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        narrow = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if narrow else nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Shortcut and branch."""
        h = self.conv1(torch.relu(self.bn1(x)))
        out: Tensor = self.shortcut(x) + self.conv2(torch.relu(self.bn2(h)))
        return out


class Residual(nn.Module):
    """A stem, two groups of two blocks, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(Block(8, 8, 1), Block(8, 8, 1))
        self.layer2 = nn.Sequential(Block(8, 12, 2), Block(12, 12, 1))
        self.bn, self.drop, self.fc = nn.BatchNorm2d(12), nn.Dropout(0.1), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = torch.relu(self.bn(self.layer2(self.layer1(self.conv1(x)))))
        logits: Tensor = self.fc(self.drop(h.mean((2, 3))))
        return logits


def seeded(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """A network from a seed; the random state of the caller stays."""

    def made(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make()

    return made


def sites(slat: list[str], states: list[str], layer: str) -> dict[str, Any]:
    """Sites of one network: SLAT's, the states of LAD's, the first, and a layer with weights."""
    return {
        "slat": slat,
        "blocks": states[1:],
        "states": states,
        "first": states[0],
        "layer": layer,
    }


NETWORKS = [
    Network("conv", seeded(Conv), sites(["conv1", "layer1"], ["bn1", "layer1", "bn2"], "layer1")),
    Network("mlp", seeded(MLP), sites(["fc1", "fc2"], ["fc1", "fc2"], "fc2")),
    Network(
        "residual",
        seeded(Residual),
        sites(["conv1", "layer1"], ["conv1", "layer1", "layer2"], "layer1.0.conv1"),
    ),
]

LOOPS: dict[str, dict[str, Any]] = {
    "clip_norm": {"clip_norm": 0.1},
    "ema_decay": {"ema_decay": 0.9},
    "bf16": {"precision": "bf16-mixed"},
    "float64": {"precision": "64-true"},
    "Adam": {"optimizer": of("Adam", lr=0.01)},
    "augment": {"augment": of("Augment", crop=1)},
    "channels_last": {"channels_last": True},
    "drop_last": {"drop_last": True},
}
"""Settings of the loop, each with a few methods of different kinds."""

WITH_LOOPS = ("SLAT", "LAT", "AWP on PGD", "Parseval on Free-AT")
PHASES: dict[str, dict[str, Any]] = {"SLAT": {"eta": 0.02}, "PGD": {"steps": 2}}
"""Fields that change at the second epoch."""


def pictures() -> tuple[Tensor, Tensor]:
    """Images in [0, 1] that can be learnt: half their class's picture, half noise; and labels."""
    draw = torch.Generator().manual_seed(1234)
    classes = torch.rand(CLASSES, *SHAPE, generator=draw)
    y = torch.arange(IMAGES) % CLASSES
    return (classes[y] + torch.rand(IMAGES, *SHAPE, generator=draw)) / 2, y


def digest(tensor: Tensor) -> str:
    """SHA-256 of type, shape and bytes."""
    value = tensor.detach().contiguous()
    head = f"{value.dtype} {tuple(value.shape)}".encode()
    data = value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    return hashlib.sha256(head + data).hexdigest()


def digests(model: nn.Module, method: Any, losses: list[float]) -> Found:
    """What is compared: losses, weights and buffers, and the method's state."""
    state = method.state_dict()
    names = renamed.STATE if both.side() == "after" else {}
    if not all(value.isfinite().all() for value in model.state_dict().values()):
        raise ArithmeticError("weights that are not finite are equal to any others that are not")
    return {
        "losses": [loss.hex() for loss in losses],
        "weights": {name: digest(value) for name, value in model.state_dict().items()},
        "state": {names.get(name, name): digest(value) for name, value in state.items()},
    }


def by_fit(model: nn.Module, method: Any, settings: dict[str, Any], network: Network) -> Found:
    """Trained by `fit`; one split holds everything."""
    images, labels = pictures()
    phases = settings.get("phases", [])
    fixed = {"accelerator": "cpu", "eval_every": 0, "seed": 3, "channels_last": False}
    loop = {
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "optimizer": of("SGD", lr=0.05),
        **fixed,
        **settings,
    }
    data = of("from_tensors", images=images, labels=labels, test=(images, labels), validation=0)
    training = of("Training", **{k: v for k, v in loop.items() if k != "phases"})
    what = {"model": model, "method": method, "data": data, "training": training, "phases": phases}
    done = of("fit", **what, progress=False).build(both.side() or "", network)
    found = digests(model, method, [float(record["loss"]) for record in done.history])
    average = done.average or {}
    return {**found, "average": {name: digest(value) for name, value in average.items()}}


def batches() -> list[tuple[Tensor, Tensor]]:
    """Those of the loops without `fit`."""
    x, y = pictures()
    return [(x[n : n + BATCH], y[n : n + BATCH]) for n in range(0, IMAGES, BATCH)] * EPOCHS


def by_hand(model: nn.Module, method: Any) -> Found:
    """Trained in a user's own loop, with PyTorch's own random numbers."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    losses = []
    for x, y in batches():
        optimizer.zero_grad()
        for item in method.losses(model, x, y):
            partial = type(item).__name__ == "Partial"
            loss = item.loss if partial else item
            loss.backward()
            losses.append(loss.item())
            if not partial:
                optimizer.step()
                optimizer.zero_grad()
    return digests(model, method, losses)


def by_step(model: nn.Module, method: Any) -> Found:
    """Trained with the driver, which keeps its losses to itself; before there was one, by hand."""
    if both.side() == "before":
        return {**by_hand(model, method), "losses": []}
    step = find("step")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for x, y in batches():
        step(method, model, x, y, optimizer)
    return digests(model, method, [])


def attempt(train: Train, name: str, spec: Spec, network: Network) -> Found:
    """One training from the same start; an error is a result too, since it has to be the same."""
    which = both.side() or ""
    if which == "after" and name in renamed.METHODS:
        spec = Spec(*renamed.METHODS[name])
    model = network.make(0).train()
    torch.manual_seed(11)
    try:
        return train(model, spec.build(which, network))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}", "at": place}


def trainings(network: Network) -> dict[tuple[str, str], tuple[Spec, Train]]:
    """{(method, trained by what): (method, how)} for one network."""

    def fit(settings: dict[str, Any]) -> Train:
        return lambda model, method: by_fit(model, method, settings, network)

    found: dict[tuple[str, str], tuple[Spec, Train]] = {}
    for name, case in CASES.items():
        if network.name in case.networks:
            found[name, "fit"] = (case.spec, fit({}))
            found[name, "fit, 2 parts"] = (case.spec, fit({"accumulate": 2}))
            found[name, "own loop"] = (case.spec, by_hand)
            found[name, "step"] = (case.spec, by_step)
    for setting, fields in LOOPS.items():
        found |= {(name, f"fit, {setting}"): (CASES[name].spec, fit(fields)) for name in WITH_LOOPS}
    for name, change in PHASES.items():
        phases = [of("Phase", epochs=1), of("Phase", epochs=1, fields=change)]
        found[name, "fit, phases"] = (CASES[name].spec, fit({"phases": phases}))
    return found


def one_side(only: str, networks: list[str]) -> None:
    """Train everything with the package that is on the path."""
    both.check_package()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    found: Found = {}
    for network in NETWORKS:
        if network.name in networks:
            for (name, how), (spec, train) in trainings(network).items():
                what = f"{name} | {how} | {network.name}"
                by_hand_too = found.get(f"{name} | own loop | {network.name}")
                if how == "step" and both.side() == "before" and by_hand_too:
                    found[what] = {**by_hand_too, "losses": []}  # the same training again
                elif re.search(only, what):
                    found[what] = attempt(train, name, spec, network)
    both.write(found)


def without_step(before: Found, after: Found) -> tuple[Found, Found]:
    """The records without the driver's where the later checkout has none."""
    driven = {what for what, found in after.items() if "LookupError" in found.get("error", "")}
    if not all(" | step | " in what for what in driven):
        return before, after
    kept = [{k: v for k, v in found.items() if k not in driven} for found in (before, after)]
    return kept[0], kept[1]


def tell(found: dict[str, list[str]]) -> None:
    """A line a way of training and network, and what differs."""
    total: Counter[tuple[str, str]] = Counter()
    wrong: Counter[tuple[str, str]] = Counter()
    for what, unequal in found.items():
        _, how, network = what.split(" | ")
        key = (
            how if how in ("fit", "fit, 2 parts", "own loop", "step") else "fit, settings",
            network,
        )
        total[key] += 1
        wrong[key] += bool(unequal)
    print(f"{'trained by':16}{'network':10}{'trainings':>10}{'equal':>8}{'not equal':>11}")
    for how, network in sorted(total):
        key = (how, network)
        print(f"{how:16}{network:10}{total[key]:10}{total[key] - wrong[key]:8}{wrong[key]:11}")
    alike: dict[str, list[str]] = {}
    for what, unequal in found.items():
        if unequal:
            alike.setdefault("\n    ".join(unequal[:3]), []).append(what)
    for how, those in alike.items():
        more = f" and {len(those) - 3} more" if len(those) > 3 else ""
        print(f"{'; '.join(those[:3])}{more}\n    {how}")
    differing = sum(map(bool, found.values()))
    methods = len({what.partition(" | ")[0] for what in found})
    print(f"{len(found)} trainings of {methods} configurations: {differing} differ")


def main() -> None:
    """Train with both checkouts, or be one of the two."""
    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_is)
    parser.add_argument("checkouts", type=Path, nargs=2, help="folders: before, after")
    parser.add_argument("--only", default="", help="regular expression: METHOD | HOW | NETWORK")
    every = [network.name for network in NETWORKS]
    parser.add_argument("--networks", nargs="+", default=every, choices=every)
    parser.add_argument("--keep", type=Path, help="folder of records that need no second run")
    parser.add_argument("--jobs", type=int, default=1, help="2 runs both sides at a time")
    args = parser.parse_args()
    if both.side():
        one_side(args.only, args.networks)
        return
    again = ["-", "-", "--only", args.only, "--networks", *args.networks]
    sides = both.run_both(__file__, args.checkouts, again, keep=args.keep, jobs=args.jobs)
    found = both.compared(*without_step(*sides))
    tell(found)
    sys.exit(any(found.values()) or not found)


if __name__ == "__main__":
    main()
