"""The tables and figures as definitions: which systems are the rows, which measures the columns, which claims are made of them.

One YAML file a paper; `items` are its tables and figures, `systems` what they share. A system is a recipe and what differs from it:

    systems:
      pgd-7: {recipe: pgd-cifar10, set: {model.name: wide_resnet}}
    items:
      table-1:
        seeds: 4
        set: {...}                         # for every row
        rows: {PGD-7: pgd-7, ...}          # {ROW OF THE PAPER: system, recipe, or {system: .., set: .., with: ..}}
        columns: {clean: clean, PGD-50-10: {attack: pgd-50-10 alpha=2/255, eps: 8/255}, ...}
        claims: {id: {says: sentence, if: predicate}}

A column is an attack, or `{measure: NAME, ...}` with that measure's options; `with` of a row changes options of the columns there.
`grid: {a: [1, 2], b: [3]}` of a row makes a row for each combination, `{a}` and `{b}` in its name and settings replaced.
An item with `draw` is a figure that a diagnostic draws; one with rows and columns and `axis` is a table that is drawn as curves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import product
from types import MappingProxyType
from typing import Any, final

from layerwise.core.checks import parse_radius
from layerwise.errors import ConfigError, did_you_mean
from layerwise.reproduce.papers import BESIDE, PAPERS, PaperFigure, PaperTable, paper
from layerwise.trees import parse_yaml

PERCENT = "%"


@final
@dataclass(frozen=True, kw_only=True)
class System:
    """What is trained.

    Args:
        recipe: a recipe's name.
        set: {dotted setting: value} that differ from it.
        weights: `last`, `best`, `ema`, `best-ema`, or `selected`: of the best and the best averaged ones, the better on validation.
        watched: whether validation images are needed: to choose weights by, or for a figure of what training logged.
        trace: measures that training logs every epoch, see `evaluation.trace`.
    """

    recipe: str
    set: dict[str, Any] = field(default_factory=dict)
    weights: str = "last"
    watched: bool = False
    trace: tuple[str, ...] = ()


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """A row: a system, and what differs there in the columns.

    Args:
        name: the paper's name of the row.
        system: what is evaluated.
        options: laid over every column's options.
        at: place on the horizontal axis, of an item that is drawn.
        series: curve that the row belongs to, of an item that is drawn.
    """

    name: str
    system: System
    options: dict[str, Any]
    at: float | None = None
    series: str = ""


@final
@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: a measure with its options.

    Args:
        name: the paper's name of the column.
        measure: a name of `layerwise.reproduce.measures.MEASURES`.
        options: of the measure.
        unit: of the number; `%` for accuracies.
    """

    name: str
    measure: str
    options: dict[str, Any]
    unit: str = PERCENT


@final
@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper says.

    Args:
        id: a short name.
        says: the sentence.
        predicate: see `layerwise.reproduce.claims`.
        in_paper: whether the paper's own numbers bear it out; stated where they do not.
    """

    id: str
    says: str
    predicate: dict[str, Any]
    in_paper: bool = True


@final
@dataclass(frozen=True, kw_only=True)
class Item:
    """A table or figure.

    Args:
        id: `slat/table-1`.
        title: what it shows.
        rows: in order.
        columns: in order; empty for a figure that a diagnostic draws.
        claims: what is said of it.
        seeds: how many the paper has.
        draw: name of what draws the figure, see `layerwise.reproduce.figures`; "" for a table.
        axis: label of the horizontal axis, of a table that is drawn.
        options: of the drawing.
        note: what a reader has to know about our version.
        systems: those of the file, by name.
    """

    id: str
    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    claims: tuple[Claim, ...]
    seeds: int
    draw: str
    axis: str
    options: dict[str, Any]
    note: str
    systems: Mapping[str, System]

    @property
    def paper(self) -> str:
        """The paper's short name."""
        return self.id.partition("/")[0]

    @property
    def printed(self) -> PaperTable | None:
        """The table as it is printed, if the item is one."""
        return paper(self.paper).table(self.id.partition("/")[2])

    @property
    def figure(self) -> PaperFigure | None:
        """The figure as it is printed, if the item is one."""
        return paper(self.paper).figure(self.id.partition("/")[2])


@cache
def items() -> dict[str, Item]:
    """Every table and figure that is defined, by id, in the papers' order.

    >>> items()["slat/table-1"].rows[0].name
    'PGD-7'
    """
    found: dict[str, Item] = {}
    for name in PAPERS:
        file = resources.files("layerwise") / "reproduce" / f"{name}.yaml"
        found |= read_items(parse_yaml(file.read_text(encoding="utf-8"), file.name), name)
    return found


def find(text: str) -> list[Item]:
    """The items that a command names: an id, a paper, or `all`.

    Raises:
        ConfigError: nothing is called so.
    """
    known = items()
    if text == "all":
        return [item for item in known.values() if item.paper not in BESIDE]
    if text in PAPERS:
        return [item for item in known.values() if item.paper == text]
    if text not in known:
        raise ConfigError(
            f"there is no table or figure {text!r}; {did_you_mean(text, [*known, *PAPERS])} (`layerwise reproduce list`)"
        )
    return [known[text]]


def read_items(body: Mapping[str, Any], name: str) -> dict[str, Item]:
    """The items of a file.

    Raises:
        ConfigError: an unknown key, or a row without a system.
    """
    _known(name, body, ("systems", "items", "shared"))
    systems: dict[str, System] = {}
    for key, value in body.get("systems", {}).items():  # each may name those before it
        systems[key] = _system(f"{name}: {key}", value, systems, {})
    return {f"{name}/{key}": _item(f"{name}/{key}", value, systems) for key, value in body["items"].items()}


_ITEM = ("title", "rows", "columns", "claims", "seeds", "set", "eps", "strong", "draw", "axis", "options", "note")


def _item(id: str, body: Mapping[str, Any], systems: Mapping[str, System]) -> Item:
    _known(id, body, _ITEM)
    logged = {"watched": True, "trace": tuple(body.get("options", {}).get("trace", ()))}
    name, _, part = id.partition("/")
    printed: Any = paper(name).table(part) or paper(name).figure(part)
    if printed is None and not body.get("title"):
        raise ConfigError(f"{id}: the paper has no such table or figure, so it needs a title")
    eps = body.get("eps", "8/255")
    columns = {**body.get("columns", {}), **(STRONG if body.get("strong") else {})}
    return Item(
        id=id,
        title=body.get("title") or printed.title,
        rows=tuple(
            _row(id, k, v, systems, body.get("set", {}), logged if body.get("draw") == "curves" else {})
            for name, row in body.get("rows", {}).items()
            for k, v in _spread(name, row)
        ),
        columns=tuple(_column(id, k, v, eps) for k, v in columns.items()),
        claims=tuple(_claim(id, k, v) for k, v in body.get("claims", {}).items()),
        seeds=body.get("seeds", 1),
        draw=body.get("draw", ""),
        axis=body.get("axis", ""),
        options=body.get("options", {}),
        note=" ".join(str(body.get("note", "")).split()),
        systems=systems,
    )


def _spread(name: str, body: Any) -> Iterator[tuple[str, Any]]:
    """The rows that a grid stands for."""
    if not isinstance(body, Mapping) or "grid" not in body:
        yield name, body
        return
    grid = body["grid"]
    rest = {key: value for key, value in body.items() if key != "grid"}
    for values in product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        yield _filled(name, chosen), _filled(rest, chosen)


def _filled(value: Any, chosen: Mapping[str, Any]) -> Any:
    """Texts with `{a}` replaced; a text that is nothing else becomes the value itself."""
    if isinstance(value, Mapping):
        return {key: _filled(part, chosen) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, chosen) for part in value]
    if not isinstance(value, str):
        return value
    for name, number in chosen.items():
        if value == f"{{{name}}}":
            return number
        value = value.replace(f"{{{name}}}", str(number))
    return value


PARTS = ("system", "recipe", "set", "weights")
"""What a system is made of."""

STRONG: dict[str, Any] = {"PGD-50-10 (ours)": "pgd-50-10", "AutoAttack (ours)": "autoattack"}
"""The columns that stand beside a paper's weak attack."""


def _row(
    id: str, name: str, body: Any, systems: Mapping[str, System], common: Mapping[str, Any], logged: Mapping[str, Any]
) -> Row:
    found = body if isinstance(body, Mapping) else {"system": body}
    _known(f"{id}, {name}", found, (*PARTS, "with", "at", "series"))
    parts = {k: found[k] for k in PARTS if k in found}
    return Row(
        name=str(name),
        system=_system(f"{id}, {name}", parts, systems, common, logged),
        options=dict(found.get("with", {})),
        at=None if found.get("at") is None else parse_radius(found["at"]),
        series=str(found.get("series", "")),
    )


def _system(
    where: str,
    body: Any,
    systems: Mapping[str, System],
    common: Mapping[str, Any],
    logged: Mapping[str, Any] = MappingProxyType({}),
) -> System:
    """A system; the settings of the table come before the row's own."""
    found = body if isinstance(body, Mapping) else {"system": body}
    _known(where, found, PARTS)
    name = found.get("system", found.get("recipe"))
    if not isinstance(name, str):
        raise ConfigError(f"{where}: no system is named; write a system of the file, or a recipe")
    base = systems.get(name, System(recipe=name))
    weights = found.get("weights", base.weights)
    return System(
        recipe=base.recipe,
        set={**base.set, **common, **found.get("set", {})},
        weights=weights,
        **{"watched": weights != "last", **logged},
    )


def _column(id: str, name: str, body: Any, eps: Any) -> Column:
    found = dict(body) if isinstance(body, Mapping) else {"attack": body}
    measure, unit = found.pop("measure", "attack"), found.pop("unit", PERCENT)
    if measure in ("attack", "transfer", "average"):
        found = {"eps": eps, **found}
    if "attack" not in found and measure == "attack":
        raise ConfigError(f"{id}, {name}: a column needs an attack or a measure")
    return Column(name=str(name), measure=measure, options=found, unit=unit)


def _claim(id: str, name: str, body: Mapping[str, Any]) -> Claim:
    _known(f"{id}, {name}", body, ("says", "if", "in_paper"))
    return Claim(
        id=name, says=" ".join(body["says"].split()), predicate=body["if"], in_paper=body.get("in_paper", True)
    )


def _known(where: str, body: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    if unknown := [key for key in body if key not in keys]:
        raise ConfigError(f"{where}: there is no {unknown[0]!r}; {did_you_mean(str(unknown[0]), keys)}")
