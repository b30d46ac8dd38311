"""What reproduction costs: passes counted, floating-point operations counted on the meta device, rates measured once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias, final

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from layerwise import models
from layerwise.attacks import AutoAttack, parse_attack
from layerwise.attacks.base import EVALUATED, GRADIENT, Around, Attack
from layerwise.attacks.gradient import Iterated
from layerwise.attacks.wrappers import EOT as Averaging
from layerwise.core.cost import duration
from layerwise.errors import LayerwiseError
from layerwise.experiments.experiment import SCHEMA, make_phases
from layerwise.reproduce.definitions import PERCENT, Column, Item, Row
from layerwise.reproduce.scales import Scale, scales
from layerwise.reproduce.systems import Resolved, resolve, steps_of
from layerwise.training.phases import Phases
from layerwise.trees import Tree

Rows: TypeAlias = tuple[tuple[str, ...], list[tuple[str, ...]]]


@final
@dataclass(frozen=True)
class Machine:
    """What a machine does, eagerly.

    Args:
        name: of the machine.
        launch: seconds a layer of a pass takes at least.
        captured: the same where whole steps are captured.
        training: floating-point operations a second in training, in bf16.
        evaluating: the same in float32 without TF32, in training too.
        start: seconds a system costs beside its batches: reading data, writing.
    """

    name: str
    launch: float
    captured: float
    training: float
    evaluating: float
    start: float


MACHINES = {
    "gpu": Machine("one H200 at batch 128, steps captured where they can be", 1.3e-4, 5.0e-5, 3.0e14, 3.5e13, 30.0),
    "cpu": Machine("one core of a server, float32", 3.0e-5, 3.0e-5, 1.5e10, 1.5e10, 4.0),
}
"""The GPU's rates are of PRN-18 (a standard step in bf16 takes 6.98 ms, captured 2.75) and WRN-28-10 (13.1 ms); float32 has not been
timed in training, and is taken as in evaluation."""

EAGER = ("AdvTrainI", "EAT", "ManifoldMixup", "NFM", "Parseval")
"""Methods of the first order whose steps cannot be captured: they wait for the device, or draw on the host."""

SURVIVE = 0.5
"""Share of the images that an attack leaves correct, where the paper prints none."""

QUICK = 5
"""Steps after which an image drops out that falls to an attack of many steps: 3.7 to 5.3 under PGD-50 on digits, standard and SLAT."""

ASSUMED = (
    "\nTimes assume, at smoke, "
    + MACHINES["cpu"].name
    + "; at reduced and full, "
    + MACHINES["gpu"].name
    + ". They are estimates from passes and operations; what tables share is counted in each. Images that fall to an attack drop out: "
    "as many as the paper prints, or half."
)

SIZES = {
    "digits": ((1, 8, 8), 10, 1131),
    "mnist": ((1, 28, 28), 10, 60_000),
    "fashion-mnist": ((1, 28, 28), 10, 60_000),
    "cifar10": ((3, 32, 32), 10, 50_000),
    "cifar100": ((3, 32, 32), 100, 50_000),
    "tiny-imagenet": ((3, 64, 64), 200, 100_000),
    "image-folder": ((3, 224, 224), 1000, 1_281_167),
    "gaussians": ((2, 1, 1), 2, 1000),
}
"""{data set: (shape, classes, training images)}, so that nothing has to be read."""

MEASURES = {"corruption": 96, "corrupted": 96, "flips": 420, "rho": 65, "fgs-at-eps-ref": 60, "evaluated-by": 4}
"""Passes an image of the other measures."""


@cache
def _size(model: str, data: str) -> tuple[float, int]:
    """Operations of a forward pass of an image, and the number of convolutions and linear layers."""
    settings, (shape, classes, _) = json.loads(model), SIZES[data]
    side = settings["size"]
    shape = (1 if settings["grey"] else shape[0], *([side, side] if side else shape[1:]))
    with torch.device("meta"):
        network = models.build(settings["name"], num_classes=classes, shape=shape, **settings["options"]).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, *shape))
    layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules())
    return float(counter.get_total_flops()), layers


def size_of(tree: Tree) -> tuple[float, int]:
    """See `_size`."""
    data = {"grey": tree["data"]["options"].get("grey"), "size": tree["data"]["options"].get("size")}
    model = {"name": tree["model"]["name"], "options": tree["model"]["options"], **data}
    return _size(json.dumps(model, sort_keys=True), tree["data"]["name"])


def training_seconds(tree: Tree, machine: Machine) -> float:
    """The batches of every phase times their passes; the same whatever the seed."""
    return _training_seconds(json.dumps({**tree, "training": {**tree["training"], "seed": 0}}), machine)


@cache
def _training_seconds(settings: str, machine: Machine) -> float:
    tree = json.loads(settings)
    chosen = SCHEMA.read(tree)[0]
    flops, layers = size_of(tree)
    _, classes, images = SIZES[tree["data"]["name"]]
    rate = machine.training if chosen.training.precision == "bf16-mixed" else machine.evaluating
    batch = chosen.training.batch_size
    phases = Phases(chosen.method, make_phases(chosen), chosen.training.epochs)
    seconds, left, epoch = machine.start, chosen.training.max_steps, 0
    for phase in phases.phases:
        method = phases.enter(epoch).among(classes)
        eager = chosen.training.capture is False or method.second_order or type(method).__name__ in EAGER
        launch = machine.launch if eager else machine.captured
        steps = phase.epochs * images / batch
        if left is not None:
            steps = min(steps, left)
            left -= steps
        seconds += steps * method.passes.total * max(layers * launch, flops * batch / rate)
        epoch += phase.epochs
    return seconds


def evaluating_seconds(item: Item, row: Row, tree: Tree, scale: Scale) -> float:
    """The images of every column of a row times their passes."""
    machine = MACHINES[scale.machine]
    flops, layers = size_of(tree)
    each = max(layers * machine.launch / 250, flops / machine.evaluating)
    total = 0.0
    for column in item.columns:
        images, passes = _effort(column, scale, tree, _printed_share(item, row, column))
        total += images * passes * each
    if item.draw:
        total += (scale.few or 1000) * 500 * each
    return total


def _printed_share(item: Item, row: Row, column: Column) -> float:
    """Share of the images that stay correct, as the paper prints it."""
    printed = item.printed.cell(row.name, column.name) if item.printed and column.unit == PERCENT else None
    return SURVIVE if printed is None else min(1.0, max(0.0, printed.value / 100))


def _effort(column: Column, scale: Scale, tree: Tree, survive: float) -> tuple[int, float]:
    """Images and passes an image."""
    few = scale.few or 10_000
    inference = tree["evaluation"]["inference"] or {}
    looks, tries = inference.get("passes", 1), inference.get("attack_passes", 1)
    if "attack" not in column.options:
        if column.measure == "boundary":  # 26 points along both signs of every direction
            return min(few, 100), 52 * min(few, 1000) * looks
        return few, MEASURES.get(column.measure, 0) * looks
    text, sources = scale.attack(column.options["attack"]), column.options.get("sources")
    images = scale.images_under(text) if sources is None else scale.images and scale.few
    # Where passes differ, no image drops out: one wrong answer is not the last.
    passes = passes_under(parse_attack(text), SIZES[tree["data"]["name"]][1], 1.0 if inference else survive)
    return images or 10_000, ((passes - EVALUATED) * tries + EVALUATED * looks) * len(sources or [1])


def passes_under(attack: Attack, classes: int, survive: float) -> float:
    """Passes of an image on average.

    Args:
        attack: what is done; what falls drops out of later steps, restarts and members, see `PGDAttack` and `AutoAttack`.
        classes: of the data.
        survive: share of the images that stays correct under it.

    >>> from layerwise.attacks import parse_attack
    >>> [passes_under(parse_attack("pgd-50-10"), 10, share) for share in (0.0, 0.5, 1.0)]
    [11.0, 510.5, 1010.0]
    """
    most = float(attack.passes(classes))
    if isinstance(attack, AutoAttack):
        first, *others = attack.members  # nearly all that falls does so under the first
        return first.passes(classes) + survive * sum(member.passes(classes) for member in others)
    if isinstance(attack, Averaging):
        return most  # what is averaged does not stop
    if isinstance(attack, Around):
        return passes_under(attack.attack, classes, survive)
    if isinstance(attack, Iterated) and attack.stop_when_fooled:
        return survive * most + (1 - survive) * min(most, GRADIENT * QUICK + EVALUATED)
    return most


@final
@dataclass(frozen=True)
class Cost:
    """What an item costs at a scale: seconds by system, seconds of evaluating, and rows that cannot be run."""

    systems: dict[str, float]
    evaluating: float
    missing: dict[str, str]

    @property
    def seconds(self) -> float:
        """Everything."""
        return sum(self.systems.values()) + self.evaluating


def cost(item: Item, scale: Scale, place: Path | None = None) -> Cost:
    """The cost of an item; with a place, of what is not trained there yet."""
    machine = MACHINES[scale.machine]
    seeds = scale.seeds or item.seeds
    systems: dict[str, float] = {}
    evaluating, missing = 0.0, {}
    for row in item.rows:
        try:
            for seed in range(seeds):
                found = resolve(row.system, scale, seed=seed)
                for system in steps_of(found, place or Path("nowhere")):
                    if system.name not in systems:
                        systems[system.name] = training_seconds(_alone(system), machine)
            evaluating += seeds * evaluating_seconds(item, row, found.tree, scale)
        except LayerwiseError as error:
            missing[row.name] = str(error)
    return Cost(systems, evaluating, missing)


def _alone(system: Resolved) -> Tree:
    """The settings without the weights that training starts from, which cost nothing here."""
    return {**system.tree, "model": {**system.tree["model"], "start": None}}


def listing(chosen: Iterable[Item]) -> Rows:
    """A row an item with its time at each scale."""
    header = ("item", *scales(), "what it shows")
    body = []
    for item in chosen:
        times = [duration(cost(item, scale).seconds) for scale in scales().values()]
        body.append((item.id, *times, f"{item.title} ({len(item.rows)} rows, {len(item.claims)} claims)"))
    return header, body


def plan(chosen: Iterable[Item], scale: Scale, place: Path) -> Rows:
    """A row for every system that is not trained yet, one for the evaluating of each item, and the sum."""
    unit = "GPU hours" if scale.machine == "gpu" else "CPU hours"
    rows: dict[str, tuple[float, str]] = {}
    for item in chosen:
        found = cost(item, scale, place)
        for name, seconds in found.systems.items():
            rows.setdefault(name, (seconds, item.id))
        rows[f"evaluating {item.id}"] = (found.evaluating, item.id)
        rows |= {f"{item.id}: {name}": (0.0, f"not available: {why}") for name, why in found.missing.items()}
    total = sum(seconds for seconds, _ in rows.values())
    body = [(name, f"{seconds / 3600:.3f}", first) for name, (seconds, first) in rows.items()]
    return ("system", unit, "first needed by"), [*body, (f"{len(rows)} in all", f"{total / 3600:.1f}", "")]


__all__ = ["ASSUMED", "Cost", "cost", "listing", "plan"]
