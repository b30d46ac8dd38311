"""Clean accuracy, robust accuracy and cost of every recipe, in one figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from layerwise.core.cost import duration
from layerwise.evaluation.style import COLOURS, MARKERS, canvas, describe, legend_below, styled
from layerwise.report.document import Plot, Text
from layerwise.report.figures import labels, picture
from layerwise.report.runs import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def overview(entries: Sequence[Group]) -> Plot | Text:
    """A mark a recipe: up and to the right is good, and small is cheap."""
    timed = all(entry.row.train_seconds for entry in entries)
    size = "time of training" if timed else "passes of a batch in training"
    caption = (
        f"Up and to the right is good. Crosses are 95 % intervals. The area of a mark is the {size}"
        f"{'' if timed else ', where a run says it'}."
    )
    return picture(lambda: _drawn(entries, timed), title="Accuracy and cost", caption=caption)


def _passes(entry: Group) -> float:
    return float(entry.first.history.passes or "nan")


def _drawn(entries: Sequence[Group], timed: bool) -> Figure:
    costs = [(e.row.train_seconds if timed else _passes(e)) or 0.0 for e in entries]
    largest = max((c for c in costs if not math.isnan(c)), default=0.0) or 1.0
    said = []
    with styled():
        figure, (axes,) = canvas(height=3.4)
        for index, (entry, name, cost) in enumerate(zip(entries, labels(e.name for e in entries), costs, strict=True)):
            clean, worst = entry.row.cells.get("clean"), entry.row.worst
            if clean is None:
                continue
            x, y, colour = 100 * clean.value, 100 * worst.value, COLOURS[index % len(COLOURS)]
            across = [[x - 100 * clean.low], [100 * clean.high - x]]
            up = [[y - 100 * worst.low], [100 * worst.high - y]]
            axes.errorbar(x, y, xerr=across, yerr=up, color=colour, linewidth=1, alpha=0.6)
            spent = "" if math.isnan(cost) else f", {duration(cost) if timed else f'{cost:g} passes'}"
            area = 30 + 220 * (0 if math.isnan(cost) else cost / largest)
            look: dict[str, Any] = {"color": colour, "marker": MARKERS[index % len(MARKERS)], "label": f"{name}{spent}"}
            axes.scatter([x], [y], s=area, alpha=0.8, color=colour, marker=look["marker"])
            axes.plot([], [], linestyle="", **look)  # for the legend: marks of one size
            said.append(f"{entry.name}: {x:.1f} % clean, {y:.1f} % in the worst case{spent}")
        axes.set(xlabel="accuracy without attack (%)", ylabel="worst-case accuracy (%)", title="Accuracy and cost")
        axes.set_xlim(max(0, axes.get_xlim()[0] - 2), 101)
        axes.set_ylim(-4, 104)  # room for whole marks at the ends
        axes.set_xticks([tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= 100])
        legend_below(figure, axes)
    return describe(figure, f"Accuracy and cost. {'; '.join(said)}.")
