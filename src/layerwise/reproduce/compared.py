"""What the papers print of their settings beside what our tables really set: every verdict is computed from recipes and definitions.

`settings/PAPER.yaml` is a list of entries, those of `settings/all.yaml` come first. An entry speaks of subjects of a kind, and says of
each key what is printed of it:

    - of: systems                  # or attacks (the columns), items, networks, data, equations ({what is said: the test that holds it})
      only: ["table-2/*"]          # patterns of the subjects' names; all without them
      when: {method.name: SLAT}    # and what they have to have set
      where: appendix E            # the section that prints it
      printed: {method.eta: 8/255, training.epochs: {among: [30, 72]}}
      because: {training.epochs: why ours differs}
      ours: {training.batch_size: why it is so, where nothing is printed}

Of a subject and a key the last entry that fits decides. Every setting that a system's weights depend on has to be covered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any, final

import torch

from layerwise import models
from layerwise.attacks import parse_attack
from layerwise.errors import ConfigError, LayerwiseError
from layerwise.reproduce import papers
from layerwise.reproduce.costs import SIZES
from layerwise.reproduce.definitions import Column, Item, items
from layerwise.reproduce.scales import scale
from layerwise.reproduce.systems import NEEDS, resolve
from layerwise.trees import parse_yaml

PRINTED, DIFFERS, OURS, WRONG, ABSENT = "as printed", "differs", "not printed: ours", "wrong", "absent"
"""The verdicts; the last two are to be mended."""

NAMED = "what the table names"
"""Printed of a setting that each row or column has in its own name."""

KINDS = ("systems", "attacks", "items", "networks", "data", "equations")

METHODS = {"slat": "SLAT", "lad": "LAD", "anp": "ANP", "lat": "LAT", "deep-defense": "DeepDefense"}
"""The method that each paper proposes; every other one is a baseline there."""

LOOP = (
    "epochs",
    "batch_size",
    "optimizer",
    "schedule",
    "augment",
    "clip_norm",
    "ema_decay",
    "accumulate",
    "drop_last",
    "precision",
)
"""Of a run's loop, what its weights depend on wherever it runs."""

Leaves = dict[str, Any]


@final
@dataclass(frozen=True)
class Subject:
    """What settings are printed of.

    Args:
        kind: see `KINDS`.
        name: `table-1/PGD-7`, a row or a column of an item; or the item's, network's or test's own.
        has: {dotted key: value} that it sets; empty if it cannot be made.
    """

    kind: str
    name: str
    has: Leaves


@final
@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of the file, see the module's docstring; a shared one is said of all papers."""

    of: str = "systems"
    only: tuple[str, ...] = ("*",)
    when: Leaves = field(default_factory=dict)
    where: str = ""
    printed: Leaves = field(default_factory=dict)
    because: dict[str, str] = field(default_factory=dict)
    ours: dict[str, str] = field(default_factory=dict)
    shared: bool = False

    def speaks_of(self, subject: Subject) -> bool:
        """Whether it is about a subject."""
        return (
            self.of == subject.kind
            and any(fnmatchcase(subject.name, pattern) for pattern in self.only)
            and all(_agrees(subject.has.get(key), value) for key, value in self.when.items())
        )

    def told(self) -> Iterator[str]:
        """The keys, or patterns of keys, that it says something of."""
        yield from (*self.printed, *self.ours)


@final
@dataclass(frozen=True)
class Line:
    """What came of one key of one entry: a line of the page.

    Args:
        entry: that decides.
        key: as it has it.
        found: {subject: what it sets}.
        verdict: one of the five.
        why: the reason for a difference, or for a choice of ours.
    """

    entry: Entry
    key: str
    found: dict[str, Any]
    verdict: str
    why: str


def compare(paper: str) -> list[Line]:
    """Every line of a paper: what is printed and what is set.

    Raises:
        ConfigError: an entry is about nothing, or gives a reason for a difference that is none.
    """
    entries, lines = read(paper), []
    decided: dict[tuple[int, str], dict[str, Any]] = {}
    for subject in subjects(paper):
        uncovered = []
        for key in subject.has:
            chosen = [
                (n, k) for n, e in enumerate(entries) if e.speaks_of(subject) for k in e.told() if _covers(k, key)
            ]
            if chosen:
                # The last entry, and there a name before a pattern.
                last = max(chosen, key=lambda found: (found[0], "*" not in found[1], len(found[1])))
                decided.setdefault(last, {})[f"{subject.name}: {key}"] = subject.has[key]
            elif subject.kind in ("systems", "attacks"):
                uncovered.append(key)
        if uncovered or not subject.has:
            found = {f"{subject.name}: {key}": subject.has[key] for key in uncovered}
            lines.append(Line(Entry(of=subject.kind), subject.name, found, ABSENT, "nothing is said of it"))
    for number, entry in enumerate(entries):
        for key in entry.told():
            if (number, key) in decided:
                lines += _lines(paper, entry, key, decided[number, key])
            elif not entry.shared:
                raise ConfigError(
                    f"{paper}: what is said of {key} ({entry.where or 'ours'}) is about nothing; remove it"
                )
    return lines


def _lines(paper: str, entry: Entry, key: str, found: dict[str, Any]) -> Iterator[Line]:
    if key in entry.ours:
        yield Line(entry, key, found, OURS, entry.ours[key])
        return
    equal = {name: value for name, value in found.items() if _agrees(value, entry.printed[key])}
    other = {name: value for name, value in found.items() if name not in equal}
    why = entry.because.get(key, "")
    if why and not other:
        raise ConfigError(f"{paper}: {key} ({entry.where}) is as printed, so no reason is needed; remove {why!r}")
    if equal:
        yield Line(entry, key, equal, PRINTED, "")
    if other:
        yield Line(entry, key, other, DIFFERS if why else WRONG, why)


def _covers(pattern: str, key: str) -> bool:
    return fnmatchcase(key, pattern)


def _agrees(value: Any, printed: Any) -> bool:
    """Whether a setting is what is printed: fractions are numbers, tuples are lists, `{among: [...]}` leaves a choice, as does `NAMED`."""
    if printed == NAMED:
        return True
    if isinstance(printed, Mapping) and "among" in printed:
        return any(_agrees(value, one) for one in printed["among"])
    value, printed = _number(value), _number(printed)
    if isinstance(value, list | tuple) and isinstance(printed, list | tuple):
        return len(value) == len(printed) and all(map(_agrees, value, printed))
    if isinstance(value, float) and isinstance(printed, float):
        return math.isclose(value, printed, rel_tol=1e-6)
    return bool(value == printed)


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    above, slash, below = str(value).partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except ValueError:
        return value


def read(paper: str) -> tuple[Entry, ...]:
    """The entries of a paper, after those that hold for all."""
    return (*_entries("all"), *_entries(paper))


@cache
def _entries(name: str) -> tuple[Entry, ...]:
    file = resources.files("layerwise") / "reproduce" / "settings" / f"{name}.yaml"
    body = parse_yaml(file.read_text(encoding="utf-8"), file.name)
    found = [Entry(**{**entry, "only": tuple(entry.get("only", ("*",)))}, shared=name == "all") for entry in body]
    if odd := [entry.of for entry in found if entry.of not in KINDS]:
        raise ConfigError(f"settings of {name}: there is no kind {odd[0]!r}; the kinds are {', '.join(KINDS)}")
    return tuple(found)


@cache
def subjects(paper: str) -> tuple[Subject, ...]:
    """Everything of a paper that has settings: its systems, attacks and measures, items, networks, and equations with their tests."""
    chosen = [item for item in items().values() if item.paper == paper]
    found = [subject for item in chosen for subject in _of_item(item)]
    names = {(s.has["model.name"], s.has["data.name"]) for s in found if s.kind == "systems" and s.has}
    networks = [Subject("networks", f"{model} on {data}", _network(model, data)) for model, data in sorted(names)]
    data = [Subject("data", name, _data(name)) for name in sorted({name for _, name in names})]
    said = [pair for entry in read(paper) if entry.of == "equations" for pair in entry.printed.items()]
    return (*found, *networks, *data, *(Subject("equations", what, {what: test}) for what, test in said))


def _of_item(item: Item) -> Iterator[Subject]:
    name = item.id.partition("/")[2]
    options = dict(_leaves(item.options, "options"))
    yield Subject("items", name, {"seeds": item.seeds, "rows": len(item.rows), "draws": item.draw, **options})
    for row in item.rows:
        try:
            tree = resolve(row.system, scale("full"), seed=0).tree
        except LayerwiseError:
            tree = {}
        yield Subject("systems", f"{name}/{row.name}", dict(_decisive(tree)))
    for column in item.columns:
        yield Subject("attacks", f"{name}/{column.name}", _attack(column))


def _decisive(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a run that its weights depend on, and how it is evaluated where that is not as usual."""
    if not tree:
        return
    training = {key: tree["training"][key] for key in LOOP}
    data = {key: tree["data"][key] for key in ("name", "validation", "options")}
    kept = {"data": data, "model": tree["model"], "threat": tree["threat"], "method": tree["method"]}
    kept |= {"phases": tree["phases"], "training": training, "inference": tree["evaluation"]["inference"]}
    for key, value in _leaves(kept):
        yield key, value.removeprefix(NEEDS).rpartition("-")[0] if _needs(value) else value


def _needs(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(NEEDS)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a tree; what is empty or null is none."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        for number, part in enumerate(value, start=1):
            yield from _leaves(part, f"{key}.{number}")
    elif isinstance(value, list | tuple) and any(map(_needs, value)):
        yield key, [name.removeprefix(NEEDS).rpartition("-")[0] for name in value]
    elif value not in (None, [], ()):
        yield key, value


def _attack(column: Column) -> Leaves:
    """A column's measure and options; of an attack its fields."""
    options = {key: value for key, value in column.options.items() if key not in ("attack", "base")}
    if "attack" not in column.options:
        return {"measure": column.measure, **options}
    attack = parse_attack(column.options["attack"])
    fields = {key: value for key, value in vars(attack).items() if not key.startswith("_") and value is not None}
    return {"attack": type(attack).__name__, "measure": column.measure, **dict(_leaves(fields)), **options}


def _network(model: str, data: str) -> Leaves:
    shape, classes, _ = SIZES[data]
    shape = {"tiny-imagenet": (3, 224, 224)}.get(data, shape)
    with torch.device("meta"):
        network = models.build(model, num_classes=classes, shape=shape)
    modules = [type(module).__name__ for module in network.modules()]
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "convolutions": modules.count("Conv2d"),
        "linear": modules.count("Linear"),
    }


def _data(name: str) -> Leaves:
    shape, classes, images = SIZES[name]
    return {"training images": images, "classes": classes, "channels": shape[0], "side": shape[1]}


PARTS = ("systems", "baselines", "attacks", "networks", "data", "protocol", "equations", "tables", "figures", "claims")
"""The columns of `summary`."""


def part_of(paper: str, subject: Subject) -> str:
    """The column of the summary that a subject stands in."""
    if subject.kind == "systems":
        name = subject.has.get("method.name", METHODS.get(paper))
        return "systems" if name == METHODS.get(paper) else "baselines"
    return {"items": "protocol"}.get(subject.kind, subject.kind)


def summary(paper: str) -> dict[str, dict[str, int]]:
    """{part: {present, wrong, absent}}: subjects of which everything is said, something is wrong, or something is not said."""
    found: dict[str, dict[str, int]] = {part: dict.fromkeys(("present", WRONG, ABSENT), 0) for part in PARTS}
    bad: dict[str, str] = {}
    for line in compare(paper):
        if line.verdict in (WRONG, ABSENT):
            bad |= dict.fromkeys([name.partition(": ")[0] for name in line.found] or [line.key], line.verdict)
    for subject in subjects(paper):
        found[part_of(paper, subject)][bad.get(subject.name, "present")] += 1
    known, printed = items(), papers.paper(paper)
    found["claims"]["present"] = sum(len(item.claims) for item in known.values() if item.paper == paper)
    drawn = [figure for figure in printed.figures if figure.drawn_by is not None]  # the others are sketches
    for part, parts in (("tables", printed.tables), ("figures", drawn)):
        for one in parts:
            found[part]["present" if f"{paper}/{one.id}" in known else ABSENT] += 1
    return found
