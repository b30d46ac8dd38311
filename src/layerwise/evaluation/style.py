"""One look for every figure: colours that colour-blind people can tell apart, sizes, units, and a sentence in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from layerwise.core.checks import format_radius

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe and Ito (2008) without its yellow, which is too pale on white."""
CLASSES = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#F28E2B", "#7F7F7F", "#8C510A", "#9467BD")
"""Ten colours for points of classes, which touch: those of Tol (bright) and three more; marks differ as well."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
MAP = "cividis"
"""The colour map of every surface: it rises in lightness, and looks the same with and without colour blindness."""

SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.dpi": 150,
    "figure.constrained_layout.w_pad": 0.08,
}


@contextmanager
def styled() -> Iterator[None]:
    """Our settings for the duration; those of the caller come back."""
    from matplotlib import rc_context

    with rc_context(SETTINGS):
        yield


def canvas(
    rows: int = 1, columns: int = 1, *, width: float | None = None, height: float = 3.4
) -> tuple[Figure, list[Axes]]:
    """A figure without pyplot's state and its panels, row by row.

    Args:
        rows: of panels.
        columns: of panels.
        width: of the figure in inches; None is 5.2 for one panel and 4.4 a column for several.
        height: of a row, inches.
    """
    from matplotlib.figure import Figure

    wide = (5.2 if columns == 1 else 4.4 * columns) if width is None else width
    figure = Figure(figsize=(wide, height * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def line(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the so-manieth curve: the last two tell the curves apart in black and white."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
    }


def legend_below(figure: Figure, axes: Axes) -> None:
    """A legend below everything, in as many columns as the longest name leaves room for; the figure grows by its rows."""
    handles, labels = axes.get_legend_handles_labels()
    # Inches: of a character, and of a line with the room around it.
    column = 0.07 * max(map(len, labels)) + 0.6
    count = max(1, min(len(labels), int(figure.get_figwidth() // column)))
    figure.set_figheight(figure.get_figheight() + 0.18 * ((len(labels) - 1) // count))
    figure.legend(handles, labels, loc="outside lower center", ncols=count)


def finish_sites(axes: Axes, *, logarithmic: bool = False) -> None:
    """Input at the top, room for every name, and a logarithmic axis if all values allow one."""
    if logarithmic and axes.dataLim.x0 > 0:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    count = len(axes.get_yticks())
    axes.set_ylim(count - 0.5, -0.5)
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.set_figheight(max(2.6, 1.1 + 0.21 * count))


def scatter(
    axes: Axes, points: Sequence[Sequence[float]], labels: Sequence[int], *, size: float, prefix: str = ""
) -> None:
    """Points in the plane, a colour and a marker for each class."""
    for k in sorted(set(labels)):
        chosen = [point for point, label in zip(points, labels, strict=True) if label == k]
        first, second = zip(*chosen, strict=True)
        look: dict[str, Any] = {"color": CLASSES[k % len(CLASSES)], "marker": MARKERS[k % len(MARKERS)]}
        axes.scatter(first, second, s=size, linewidths=0, alpha=0.8, label=f"{prefix}{k}", **look)


def describe(figure: Figure, sentence: str) -> Figure:
    """Store what the figure shows in words, as `figure.alt`: the text for those who cannot see it.

    >>> from matplotlib.figure import Figure
    >>> describe(Figure(), "Nothing yet.").alt
    'Nothing yet.'
    """
    figure.alt = sentence  # type: ignore[attr-defined]
    return figure


def pixels(eps: float) -> str:
    """A radius as axis labels and sentences write it.

    >>> pixels(8 / 255)
    'eps 8/255'
    """
    return f"eps {format_radius(eps)}"
