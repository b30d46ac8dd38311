"""What a measure gives: a frozen dataclass that goes into the record, with its figure, its sentence and its place in a report."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias, final

import torch
from torch import Tensor

from layerwise.errors import CheckpointError, did_you_mean
from layerwise.evaluation.style import canvas, describe, finish_sites, legend_below, line, styled
from layerwise.reading import read_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _number(value: Any) -> float:
    """A number; null is NaN."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("number")
    return float(value)


def _numbers(value: Any) -> Tensor:
    """A tensor in float64, which holds what JSON holds."""
    try:
        return torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError("array of numbers") from None


READERS = ((float, _number), (Tensor, _numbers))
"""How the fields of a measurement are read from JSON."""


Panels: TypeAlias = "Sequence[Axes]"
"""What a figure is drawn on; text, so that matplotlib is imported where something is drawn."""
Look: TypeAlias = Mapping[str, Any]
"""Label, colour, marker and dashes of one network's curves."""


class Measurement(ABC):
    """What a measure found; a subclass is a frozen dataclass whose fields are JSON's types, tensors, or dataclasses of them.

    Its docstring and class variables say all that the record, the report and the documentation need.
    """

    title: ClassVar[str]
    """What it shows, in a few words."""
    section: ClassVar[str] = ""
    """The part of a report that it belongs to; by default one with its own title."""
    rank: ClassVar[int] = 50
    """Where that part stands among the others."""
    caption: ClassVar[str] = ""
    """How to read it, in a sentence."""
    drawn: ClassVar[bool] = True
    """Whether it has a figure; else its `cells` are a row of a table."""
    shared: ClassVar[bool] = False
    """Whether one figure holds several networks, `figure(name=..., others=...)`."""
    alike: ClassVar[tuple[str, ...]] = ()
    """Fields that say how it was measured: figures are shared only where they agree."""

    @property
    def total(self) -> int:
        """How many images it is over, 0 where that means nothing."""
        images = getattr(self, "images", 0)
        return images if isinstance(images, int) else len(images)

    @abstractmethod
    def sentence(self) -> str:
        """What it shows, with numbers; it ends with a full stop."""

    def figure(self) -> Figure:
        """Draw it; `alt` of the figure says in a sentence what can be seen."""
        raise TypeError(f"{type(self).__name__} has no figure")

    def cells(self) -> Mapping[str, str]:
        """{column: text} of its row, where numbers say all."""
        return {}

    def against(self, base: Self) -> Measurement | None:
        """The same in terms of what was found for the network to compare with; None where that means nothing.

        Raises:
            ConfigError: the two were not measured alike.
        """
        del base
        return None

    def to_dict(self) -> dict[str, Any]:
        """Every field in JSON's types, and which kind of measurement it is."""
        found: dict[str, Any] = plain(self)
        return {"kind": kind_of(type(self)), **found}

    @classmethod
    def from_dict(cls, found: Any, *, source: str = "the record") -> Measurement:
        """Read what any measurement's `to_dict` gave, perhaps through JSON; what was not finite is NaN, tensors are in float64.

        Args:
            found: the dictionary.
            source: where it came from, for messages.

        Raises:
            CheckpointError: no measurement, or a field is missing, unknown or of another type.
        """
        name = found.get("kind") if isinstance(found, dict) else None
        known = {kind_of(kind): kind for kind in _kinds(Measurement)}
        if not isinstance(name, str) or name not in known:
            raise CheckpointError(
                f"{source} is corrupt: {name!r:.60} is no measurement of this layerwise; {did_you_mean(str(name), known)}"
            )
        body = {key: value for key, value in found.items() if key != "kind"}
        measurement: Measurement = read_record(known[name], body, source=source, where=name, own=READERS)
        return measurement


def kind_of(cls: type[Any]) -> str:
    """What a record calls a class of measurements: its name, and for a user's own where it is from.

    >>> kind_of(Unknown)
    'Unknown'
    """
    return cls.__name__ if cls.__module__.startswith("layerwise.") else f"{cls.__module__}:{cls.__qualname__}"


def _kinds(kind: type[Any]) -> Iterator[type[Any]]:
    """Every kind of measurement that can be found: the dataclasses below a class."""
    for below in kind.__subclasses__():
        if dataclasses.is_dataclass(below):
            yield below
        yield from _kinds(below)


@final
@dataclasses.dataclass(frozen=True)
class Unknown(Measurement):
    """A measurement of somebody's own, of which only what it says is known here.

    Args:
        name: its kind.
        said: its sentence.
        values: its fields.
    """

    drawn: ClassVar[bool] = False
    title: ClassVar[str] = "Measures of somebody's own"
    rank: ClassVar[int] = 99
    caption: ClassVar[str] = "Their code was not loaded, so they are not drawn; --trust allows it."

    name: str
    said: str
    values: dict[str, Any]

    def sentence(self) -> str:
        """As it was recorded."""
        return self.said

    def cells(self) -> Mapping[str, str]:
        """Its kind, and what it says."""
        return {"measure": self.name, "what it says": self.said}

    def to_dict(self) -> dict[str, Any]:
        """As it was."""
        return {"kind": self.name, **self.values}


class Curves(Measurement):
    """A measurement whose figure can hold several networks."""

    shared: ClassVar[bool] = True
    panels: ClassVar[int] = 1
    legend: ClassVar[bool] = True

    @abstractmethod
    def draw(self, panels: Panels, look: Look) -> None:
        """Draw one network's curves; `look` has its label, colour, marker and dashes."""

    @abstractmethod
    def finish(self, panels: Panels) -> None:
        """Label the axes, with units."""

    def figure(self, *, name: str = "network", others: Mapping[str, Self] | None = None) -> Figure:
        """Draw it, alone or beside the same measurement of other networks.

        Args:
            name: what to call this network.
            others: {name: what was found for it}.
        """
        shown = {name: self, **(others or {})}
        with styled():
            figure, panels = canvas(1, self.panels)
            for index, (label, result) in enumerate(shown.items()):
                result.draw(panels, {"label": label, **line(index)})
            self.finish(panels)
            panels[0].set_title(self.title)
            if len(shown) > 1 and self.legend:
                legend_below(figure, panels[0])
        return describe(figure, f"{self.title}. " + " ".join(f"{k}: {v.sentence()}" for k, v in shown.items()))


class PerSite(Curves):
    """A number for every site; sites run from top to bottom, so that names of any length stay readable."""

    sites: tuple[str, ...]
    images: int
    logarithmic: ClassVar[bool] = True

    @property
    @abstractmethod
    def values(self) -> tuple[float, ...]:
        """What is drawn, a number a site."""

    @property
    @abstractmethod
    def quantity(self) -> str:
        """What the numbers are, with their unit; may be two lines."""

    def draw(self, panels: Panels, look: Look) -> None:
        """A marker a site."""
        panels[0].plot(self.values, self.sites, **look)

    def finish(self, panels: Panels) -> None:
        """Sites from top to bottom."""
        panels[0].set(xlabel=self.quantity, ylabel="site")
        finish_sites(panels[0], logarithmic=self.logarithmic)

    def sentence(self) -> str:
        """The largest and the smallest."""
        pairs = list(zip(self.values, self.sites, strict=True))
        (high, top), (low, bottom) = max(pairs), min(pairs)
        quantity = self.quantity.replace("\n", " ")
        return f"{quantity} over {self.images} images is largest at {top} ({high:.3g}) and smallest at {bottom} ({low:.3g})."


def plain(value: Any) -> Any:
    """A value in JSON's types; a number that is not finite is null.

    >>> from torch import tensor
    >>> plain({"a": (1, float("nan")), "b": tensor([0.5])})
    {'a': [1, None], 'b': [0.5]}
    """
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return None if isinstance(value, float) and not math.isfinite(value) else value
