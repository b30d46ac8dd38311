"""The curves of a training: loss, validation accuracy, learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from layerwise.evaluation.style import canvas, describe, legend_below, line, styled
from layerwise.report.document import Block
from layerwise.report.figures import labels, picture
from layerwise.report.history import History, Points
from layerwise.report.runs import Group, Waiting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 250
"""Points of a curve; of more, neighbours are averaged."""


def curves(entries: Sequence[Group | Waiting]) -> Iterator[Block]:
    """The figures that the records hold."""
    histories = [run.history for entry in entries for run in entry.runs]
    unit = "epochs" if all(h.per_epoch for h in histories if h.lines) else "batches"
    several = max(len(entry.runs) for entry in entries) > 1
    seeds = " Every seed has a thin line of its own." if several else ""
    panels = {
        (
            "Training loss",
            "loss (nats)",
            "loss",
        ): "What the method descends: losses of different methods do not compare.",
        ("Learning rate", "learning rate", "lr"): "Of every batch that was logged.",
    }
    drawn = [
        picture(partial(_figure, entries, *panel, unit), title=panel[0], caption=caption + seeds)
        for panel, caption in panels.items()
        if any(history.curve("train", panel[2]) for history in histories)
    ]
    if any(h.curve("epoch", "clean") for h in histories):
        steps = {str(_setting(entry, "eval_steps")) for entry in entries} - {"None"}
        attack = f"{'/'.join(sorted(steps))} steps of PGD" if steps else "a few steps of PGD"
        caption = (
            f"Dotted: clean; solid: under {attack} from one random start, a guide while training and no measurement. "
            f"A black ring marks catastrophic overfitting.{seeds}"
        )
        accuracy = picture(lambda: _accuracy(entries, unit), title="Validation accuracy", caption=caption)
        drawn.insert(min(1, len(drawn)), accuracy)
    yield from drawn


def _setting(entry: Group | Waiting, name: str) -> object:
    training = entry.first.config.get("training")
    return training.get(name) if isinstance(training, dict) else None


def _figure(entries: Sequence[Group | Waiting], title: str, label: str, field: str, unit: str) -> Figure:
    with styled():
        figure, (axes,) = canvas(height=3.0)
        said = []
        for index, (entry, name) in enumerate(zip(entries, labels(e.name for e in entries), strict=True)):
            found = [thinned(points) for run in entry.runs if (points := run.history.curve("train", field))]
            _lines(axes, found, {**line(index), "marker": None, "label": name})
            said += [f"{entry.name}: from {found[0][0][1]:.3g} to {found[0][-1][1]:.3g}"] if found else []
        axes.set(xlabel=unit, ylabel=label, title=title)
        axes.set_xlim(left=0)
        if len(entries) > 1:
            legend_below(figure, axes)
    return describe(figure, f"{title}. {'; '.join(said)}.")


def _accuracy(entries: Sequence[Group | Waiting], unit: str) -> Figure:
    with styled():
        figure, (axes,) = canvas(height=3.0)
        said = []
        for index, (entry, name) in enumerate(zip(entries, labels(e.name for e in entries), strict=True)):
            look = {"color": line(index)["color"], "markersize": 3.0}
            for field, style, label in (("clean", ":", None), ("robust", "-", name)):
                found = [_percent(run.history.curve("epoch", field)) for run in entry.runs]
                found = [thinned(points) for points in found if points]
                marker = line(index)["marker"] if found and len(found[0]) <= 40 else None
                _lines(axes, found, {**look, "linestyle": style, "marker": marker, "label": label})
                if found:
                    said.append(
                        f"{entry.name} ends at {found[0][-1][1]:.1f} % {'clean' if field == 'clean' else 'robust'}"
                    )
            for run in entry.runs:
                said += _mark_collapse(axes, run.folder.name, run.history)
        axes.set(xlabel=unit, ylabel="accuracy (%)", title="Validation accuracy")
        axes.set_ylim(0, 102)
        axes.set_xlim(left=0)
        if len(entries) > 1:
            legend_below(figure, axes)
    return describe(figure, f"Validation accuracy. {'; '.join(said)}.")


def _mark_collapse(axes: Axes, name: str, history: History) -> list[str]:
    if (epoch := history.overfitted) is None:
        return []
    scale = history.per_epoch or 1.0
    robust = [(x, y) for x, y in _percent(history.curve("epoch", "robust")) if x >= epoch * (1 if scale > 1 else scale)]
    if robust:
        axes.plot(*robust[0], marker="o", markersize=11, fillstyle="none", color="black", linestyle="")
        axes.annotate("overfitting", robust[0], xytext=(8, 8), textcoords="offset points", fontsize=8)
    return [f"{name} overfitted catastrophically in epoch {epoch}"]


def _lines(axes: Axes, found: Sequence[Points], look: dict[str, Any]) -> None:
    thin = {"linewidth": 0.8, "alpha": 0.8} if len(found) > 1 else {}
    for points in found:
        axes.plot(*zip(*points, strict=True), **{**look, **thin})
        look = {**look, "label": None}


def _percent(points: Points) -> Points:
    return [(x, 100 * y) for x, y in points]


def thinned(points: Points) -> Points:
    """At most `MOST` points: neighbours become their mean.

    >>> len(thinned([(float(i), 0.0) for i in range(1000)]))
    250
    """
    size = math.ceil(len(points) / MOST)
    parts = [points[i : i + size] for i in range(0, len(points), size)] if size else []
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
