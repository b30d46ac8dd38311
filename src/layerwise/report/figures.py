"""Figures as data URIs."""

from __future__ import annotations

import base64
import dataclasses
import io
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from layerwise.report.document import Plot, Text, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

T = TypeVar("T")

HEAVIEST = 120_000
"""Bytes of an SVG; above it a PNG is lighter and as sharp at its size."""
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
    """The figure as SVG whose text is text, or as PNG where that is too heavy; and its size in CSS pixels, 96 an inch."""
    from matplotlib import rc_context

    if figure.get_figwidth() == NARROW[0]:
        figure.set_size_inches(NARROW[1], figure.get_figheight() * 0.95)
    data = io.BytesIO()
    # The salt and no date: the same runs give the same bytes.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "layerwise"}):
        figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    width, height = figure.get_size_inches()
    size = round(96 * width), round(96 * height)
    if data.tell() <= HEAVIEST:
        return uri("image/svg+xml", data.getvalue()), size
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=192)
    return uri("image/png", _indexed(data.getvalue())), size


def _indexed(png: bytes) -> bytes:
    """The same picture with a palette of 256 colours, a third as heavy."""
    from PIL import Image

    data = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(data, format="png", optimize=True)
    return data.getvalue()


def thumbnail(pixels: NDArray[Any]) -> str:
    """An image (C, H, W) of bytes as PNG; of colours other than one or three the mean is shown."""
    from PIL import Image

    shown = pixels if len(pixels) in (1, 3) else pixels.mean(axis=0, keepdims=True).astype("uint8")
    image = Image.fromarray(shown[0] if len(shown) == 1 else shown.transpose(1, 2, 0))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, format="png")
    return uri("image/png", data.getvalue())
