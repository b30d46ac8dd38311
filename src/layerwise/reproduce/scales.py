"""Scales: how a system's settings and a measure's effort are cut down, as data in scales.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any, final

from layerwise.errors import ConfigError, did_you_mean
from layerwise.trees import Tree, at, parse_yaml

_MISSING = object()


@final
@dataclass(frozen=True, kw_only=True)
class Scale:
    """One scale.

    Args:
        name: of `scales.yaml`.
        title: what it is.
        decides: whether claims can be decided at it.
        machine: `cpu` or `gpu`: what its costs are stated for.
        seeds: of every system; None is the paper's number.
        images: evaluated under each attack; None is all.
        few: under what costs more: AutoAttack, C&W, corruptions, diagnostics.
        attacks: {regular expression: attack that is run in its place}.
        rules: see scales.yaml.
        unwatched: {dotted setting: value} of systems that need no validation images.
    """

    name: str
    title: str
    decides: bool
    machine: str
    seeds: int | None
    images: int | None
    few: int | None
    attacks: dict[str, str]
    rules: list[dict[str, Any]]
    unwatched: dict[str, Any] = field(default_factory=dict)

    def attack(self, text: str) -> str:
        """The attack that is run in place of another.

        >>> scales()["smoke"].attack("pgd-50-10 alpha=2/255"), scales()["full"].attack("pgd-50-10")
        ('pgd-5 alpha=2/255', 'pgd-50-10')
        """
        head, space, rest = text.partition(" ")
        for pattern, other in self.attacks.items():
            if re.fullmatch(pattern, head):
                return other + space + rest
        return text

    def images_under(self, attack: str) -> int | None:
        """How many images are evaluated under an attack."""
        costly = attack.partition(" ")[0].partition("-")[0] in ("autoattack", "cw", "apgd", "fab", "square")
        return self.few if costly else self.images

    def on_data(self, root: str | None, *, download: bool) -> Scale:
        """The same with the data from a folder, or from where they lie by default, and fetched if they may be."""
        found = {"data.root": root, "data.download": download}
        return replace(self, rules=[*self.rules, {"set": found}])

    def apply(self, tree: Tree) -> dict[str, Any]:
        """What the rules set, {dotted setting: value}, in a resolved tree."""
        changes: dict[str, Any] = {}
        for rule in self.rules:
            if all(_matches(_at(tree, changes, key), wanted) for key, wanted in rule.get("when", {}).items()):
                changes |= rule.get("set", {})
                if (limit := rule.get("epochs")) is not None:
                    changes |= _shortened(tree, limit)
        return changes


def _matches(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, list) else value == wanted


def _at(tree: Mapping[str, Any], changes: Mapping[str, Any], key: str) -> Any:
    return changes[key] if key in changes else at(tree, key, _MISSING)


def _shortened(tree: Tree, limit: int) -> dict[str, Any]:
    """Fewer epochs: milestones and phases keep their share of the run."""
    training = tree["training"]
    epochs = training["epochs"]
    if epochs <= limit:
        return {}
    changes: dict[str, Any] = {"training.epochs": limit}
    for key in ("milestones", "peak_at", "warmup"):
        times = training["schedule"].get(key)
        if isinstance(times, list | tuple):
            changes[f"training.schedule.{key}"] = tuple(t if t < 1 else t / epochs for t in times)
        elif isinstance(times, int | float) and times >= 1:
            changes[f"training.schedule.{key}"] = times / epochs
    if tree["phases"]:
        ends = [
            round(limit * sum(p["epochs"] for p in tree["phases"][: i + 1]) / epochs)
            for i in range(len(tree["phases"]))
        ]
        lengths = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        changes["phases"] = [{**p, "epochs": n} for p, n in zip(tree["phases"], lengths, strict=True) if n]
    return changes


@cache
def scales() -> dict[str, Scale]:
    """The scales by name."""
    text = (resources.files("layerwise") / "reproduce" / "scales.yaml").read_text(encoding="utf-8")
    return {name: Scale(name=name, **body) for name, body in parse_yaml(text, "scales.yaml").items()}


def scale(name: str) -> Scale:
    """The scale of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in scales():
        raise ConfigError(f"there is no scale {name!r}; {did_you_mean(name, scales())}")
    return scales()[name]
