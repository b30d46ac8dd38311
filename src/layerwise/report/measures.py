"""What was measured beside the attacks, each measurement where it says that it belongs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from layerwise.core.registry import entries as registered
from layerwise.evaluation.measure import result_of
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.measures.pictures import Example, Examples
from layerwise.evaluation.style import pixels
from layerwise.report.corruptions import corruptions
from layerwise.report.document import Block, Gallery, Table, Triple, shorten
from layerwise.report.figures import drawable, labels, picture, thumbnail, unescaped
from layerwise.report.runs import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPARISON = "Comparison"
"""The part that holds the accuracies; measurements that are a number or two stand below them."""

EXAMPLES = Examples.section or Examples.title
"""The part that holds adversarial examples."""

FEW = 4
"""Examples of a run that are shown."""


def part_of(kind: type[Measurement]) -> str:
    """The part of the page that a kind of measurement belongs to."""
    return kind.section or kind.title


def parts(entries: Sequence[Group]) -> list[tuple[str, list[Block]]]:
    """(title, what it holds) of every part for which something was measured, in order."""
    kinds = {type(found) for entry in entries for run in entry.runs for found in run.measurements}
    ranks = sorted({(kind.rank, part_of(kind)) for kind in kinds if part_of(kind) != COMPARISON})
    made = [(title, list(_blocks(title, entries))) for _, title in ranks]
    return [(title, blocks) for title, blocks in made if blocks]


def missing(entries: Sequence[Group]) -> dict[str, list[str]]:
    """{part of the page: measures that would make it}, of those that none of the runs has."""
    there = {part_of(type(found)) for entry in entries for run in entry.runs for found in run.measurements}
    found: dict[str, list[str]] = {}
    for entry in registered("measure").values():
        special = entry.facts.get("special") or entry.facts.get("other")
        if (title := part_of(result_of(entry))) not in there and not special:
            found.setdefault(title, []).append(entry.name)
    return found


def _blocks(title: str, entries: Sequence[Group]) -> Iterator[Block]:
    special: Mapping[str, Callable[[Sequence[Group]], Iterator[Block]]] = {
        "Corruptions": corruptions,
        EXAMPLES: galleries,
    }
    yield from special[title](entries) if title in special else (*figures(title, entries), *tables(title, entries))


def figures(title: str, entries: Sequence[Group]) -> Iterator[Block]:
    """The figures of a part, of each recipe's first seed, in one figure where it can hold several networks."""
    several = any(len(entry.runs) > 1 for entry in entries)
    found: dict[Any, dict[str, Measurement]] = {}
    for entry, name in zip(entries, labels(e.name for e in entries), strict=True):
        for one in entry.first.measurements:
            if one.drawn and part_of(type(one)) == title:
                settings = tuple(repr(getattr(one, field)) for field in one.alike)
                key = (one.title, settings, one.total, None if one.shared else name)
                found.setdefault(key, {})[name] = drawable(one)
    for named in found.values():
        (name, first), *others = named.items()
        said = [
            "" if first.shared or len(entries) == 1 else f"{unescaped(name)}:",
            f"{first.total} images." if first.total else "",
            first.caption,
            "Of several seeds, the first." if several else "",
        ]
        draw = partial(_draw, first, name, dict(others))
        yield picture(draw, title=first.title, caption=" ".join(filter(None, said)))


def _draw(one: Any, name: str, others: Mapping[str, Any]) -> Figure:
    figure: Figure = one.figure(name=name, others=others) if one.shared else one.figure()
    return figure


def tables(title: str, entries: Sequence[Group]) -> Iterator[Block]:
    """The measurements of a part that are numbers only, a table a kind."""
    found: dict[type[Measurement], list[tuple[str, Mapping[str, str]]]] = {}
    for entry in entries:
        for one in entry.first.measurements:
            if not one.drawn and part_of(type(one)) == title:
                found.setdefault(type(one), []).append((entry.name, one.cells()))
    for kind, rows in found.items():
        columns = list(dict.fromkeys(column for _, cells in rows for column in cells))
        body = tuple((name, *(cells.get(column, "") for column in columns)) for name, cells in rows)
        caption = f"{kind.caption} Of several seeds, the first."
        yield Table(("run", *columns), body, caption).without_empty_columns()


def galleries(entries: Sequence[Group]) -> Iterator[Block]:
    """Adversarial examples of each recipe's first seed."""
    said = ""
    for entry in entries:
        for examples in entry.first.evaluation.found(Examples):
            if examples.items:
                made = _gallery(entry.name, examples)
                yield replace(made, caption="") if made.caption == said else made
                said = made.caption


def _gallery(name: str, examples: Examples) -> Gallery:
    pairs = [(a.numpy().astype(int), b.numpy().astype(int)) for a, b in examples.pictures()][:FEW]
    largest = max((int(abs(b - a).max()) for a, b in pairs), default=0)
    factor = max(1, 127 // largest) if largest else 1
    items = [
        _triple(examples, item, [a, b, (128 + factor * (b - a)).clip(0, 255)], factor)
        for item, (a, b) in zip(examples.items, pairs, strict=False)
    ]
    caption = (
        f"The first {len(items)} images of the evaluation, none left out, under {shorten(examples.attack)} ({examples.threat}): "
        f"original, adversarial, and their difference times {factor}, grey where there is none. Pixels are rounded to 1/255."
    )
    return Gallery(name, caption, tuple(items))


def _triple(examples: Examples, item: Example, pictures: Sequence[Any], factor: int) -> Triple:
    label, before, after = (shorten(examples.class_name(k), 24) for k in (item.label, item.predicted, item.attacked))
    distance = item.distance if examples.threat.norm == "l2" else pixels(item.distance).removeprefix("eps ")
    shown = f"{distance:.3g}" if isinstance(distance, float) else distance
    return Triple(
        tuple(thumbnail(p.astype("uint8")) for p in pictures),  # type: ignore[arg-type]
        (f"Image of class {label}", "The same image under attack", f"Their difference, times {factor}"),
        f"{label}: seen as {before} ({100 * item.confidence:.0f} %), attacked as {after} "
        f"({100 * item.attacked_confidence:.0f} %), {examples.threat.norm} distance {shown}",
        item.attacked != item.label,
    )
