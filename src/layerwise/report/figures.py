"""Figures as data URIs."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from layerwise.evaluation.style import CLASSES, COLOURS
from layerwise.report.document import Plot, Text, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

T = TypeVar("T")

HEAVIEST = 120_000
"""Bytes of an SVG; above it what it is drawn of becomes an image inside it, as sharp at its size; text stays text."""
DARK = """\
<style>
text { fill: #1c1f23 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e8ea }
  [style*="stroke: #000000"] { stroke: #e6e8ea !important }
  [style*="fill: #000000"] { fill: #e6e8ea !important }
  [style*="stroke: #d9d9d9"] { stroke: #3a4048 !important }
%s}
</style>
"""
"""What lets a figure follow the reader's scheme: axes, text and grid; and the data, see `_on_dark`."""
NARROW = (5.2, 4.4)
"""Inches: a figure of one panel, and how wide it is drawn here, so that its text can be read on a phone."""
LABEL = 30
"""Characters of a run's name in a legend."""
THUMBNAIL = 96
"""Pixels of the longer side of an example, at most."""


def uri(kind: str, data: bytes) -> str:
    """Bytes inside a page."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def labels(names: Iterable[str]) -> list[str]:
    """Names as legends show them: short, different from one another, and nothing that matplotlib would read as mathematics or hide.

    >>> labels(["_a$b$"])
    ['\\u2009_a\\\\$b\\\\$']
    """
    found: list[str] = []
    for name in names:
        short = plain(shorten(name, LABEL))
        found.append(short if short not in found else f"{short} ({len(found) + 1})")
    return found


def plain(text: str) -> str:
    """Text that matplotlib draws as it is: a dollar begins mathematics, and a legend leaves out what begins with an underscore."""
    text = text.replace("$", r"\$")
    return f"\u2009{text}" if text.startswith("_") else text


def unescaped(text: str) -> str:
    """What `plain` was given."""
    return text.replace(r"\$", "$").replace("\u2009", "")


def drawable(value: T) -> T:
    """A diagnostic whose site names matplotlib draws as they are."""
    found: Any = value
    if isinstance(value, str):
        found = plain(shorten(value, LABEL))
    elif isinstance(value, tuple):
        names = all(isinstance(item, str) for item in value)
        found = tuple(labels(value)) if names else tuple(map(drawable, value))
    elif isinstance(value, Mapping):
        found = dict(zip(labels(value), map(drawable, value.values()), strict=True))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: drawable(getattr(value, f.name)) for f in dataclasses.fields(value)}
        found = dataclasses.replace(value, **fields)
    result: T = found
    return result


def picture(draw: Callable[[], Figure], *, title: str, caption: str) -> Plot | Text:
    """Draw a figure and put it into a data URI; one that cannot be drawn becomes a sentence.

    Args:
        draw: makes the figure, whose `alt` says what it shows.
        title: what to call it in that sentence.
        caption: how to read it.
    """
    try:
        # The font lacks most of the world's letters, of which matplotlib warns; the browser has them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure = draw()
            source, size = _encoded(figure)
    except (
        Exception
    ) as error:  # numbers from a file can be impossible in more ways than can be listed, and the page has other parts
        return Text(f"{title} cannot be drawn from what the record holds ({type(error).__name__}: {error}).")
    return Plot(source, unescaped(str(getattr(figure, "alt", title))), caption, size)


def _encoded(figure: Figure) -> tuple[str, tuple[int, int]]:
    """The figure as SVG whose text is text, on no ground of its own; and its size in CSS pixels, 96 an inch."""
    if figure.get_figwidth() == NARROW[0]:
        figure.set_size_inches(NARROW[1], figure.get_figheight() * 0.95)
    svg = _svg(figure)
    if len(svg) > HEAVIEST:
        for axes in figure.axes:
            for artist in (*axes.collections, *axes.images, *axes.lines):
                artist.set_rasterized(True)
        svg = _svg(figure, lift=False)  # the marks of the legend keep the colours of the image
    width, height = figure.get_size_inches()
    return uri("image/svg+xml", svg), (round(96 * width), round(96 * height))


def _svg(figure: Figure, *, lift: bool = True) -> bytes:
    from matplotlib import rc_context

    data = io.BytesIO()
    # The salt and no date: the same runs give the same bytes.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "layerwise"}):
        metadata = {"Date": None, "Creator": None}
        figure.savefig(data, format="svg", metadata=metadata, dpi=144, transparent=True)
    svg = re.sub(r"(?<=base64,)[A-Za-z0-9+/=\s]+", _indexed, data.getvalue().decode())
    at = svg.index(">", svg.index("<svg")) + 1
    return (svg[:at] + DARK % (_on_dark(svg) if lift else "") + svg[at:]).encode()


def _on_dark(svg: str) -> str:
    """Rules that make the colours of the data lighter on a dark ground: chosen for a white one, some are as dark as it."""
    rules = []
    for colour in (c.lower() for c in (*COLOURS, *CLASSES) if c != "#000000" and c.lower() in svg):
        parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        lighter = "#" + "".join(f"{round(part + 0.35 * (255 - part)):02x}" for part in parts)
        rules += [f'  [style*="{what}: {colour}"] {{ {what}: {lighter} !important }}' for what in ("fill", "stroke")]
    return "\n".join([*rules, ""])


def _indexed(found: re.Match[str]) -> str:
    """An embedded PNG with a palette of 256 colours, a third as heavy."""
    from PIL import Image

    data = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(found[0]))) as image:
        image.convert("RGBA").quantize(256, method=Image.Quantize.FASTOCTREE).save(data, format="png", optimize=True)
    return base64.b64encode(data.getvalue()).decode()


def thumbnail(pixels: NDArray[Any]) -> str:
    """An image (C, H, W) of bytes as PNG; of colours other than one or three the mean is shown."""
    from PIL import Image

    shown = pixels if len(pixels) in (1, 3) else pixels.mean(axis=0, keepdims=True).astype("uint8")
    image = Image.fromarray(shown[0] if len(shown) == 1 else shown.transpose(1, 2, 0))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, format="png")
    return uri("image/png", data.getvalue())
