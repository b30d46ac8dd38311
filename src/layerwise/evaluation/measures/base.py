"""What the diagnostics share: the conditions under which a network is looked at, batches, noise, and results with figures."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain as concatenate
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from layerwise.attacks.base import loss_gradient
from layerwise.core.ascent import chain, scale, sign
from layerwise.core.criteria import Criterion
from layerwise.core.modes import evaluation_mode, exact_arithmetic, frozen
from layerwise.core.random import Source, Stream, uniform
from layerwise.core.selection import Selection
from layerwise.core.sites import Sites, unwrap
from layerwise.core.tracing import Site
from layerwise.errors import CheckpointError, ConfigError, DataError, did_you_mean
from layerwise.evaluation.measures.style import canvas, describe, finish_sites, legend_below, line, styled
from layerwise.reading import read_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAYERS: Selection = ("input", "affine outputs")
"""The sites that every classifier has: its input, and the outputs of its convolutions and linear layers."""


class Pollute(Protocol):
    """Makes noisy or adversarial images; an attack of `layerwise.evaluation` is one inside a lambda:

    `lambda model, x, y, eps, source: PGD()(model, x, y, ThreatModel(eps=eps), generator=source)`.
    """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, source: Source, /) -> Tensor:
        """Give images of the shape of x.

        Args:
            model: the network, in evaluation mode.
            x: images, shape (B, ...).
            y: labels, shape (B,).
            eps: radius or intensity, pixel units.
            source: of random numbers, the same for the same images whatever the batch size.
        """
        ...


def uniform_noise(model: nn.Module, x: Tensor, y: Tensor, eps: float, source: Source, /) -> Tensor:
    """Add U(-eps, eps) to every pixel, clip to [0, 1]."""
    del model, y
    return (x + eps * uniform(x, source, key="noise")).clamp(0, 1)


def fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float, source: Source, /) -> Tensor:
    """Add eps sign(dL/dx), clip to [0, 1]."""
    del source
    return (x + chain(sign(), scale(eps))(loss_gradient(model, x, y))).clamp(0, 1)


@contextmanager
def examining(model: nn.Module, x: Tensor, *rows: Tensor) -> Iterator[nn.Module]:
    """The unwrapped network in evaluation mode, parameters frozen, float32 without TF32 and autocast.

    Modes, flags, arithmetic and PyTorch's random state come back, also after an error.

    Args:
        model: any classifier, wrapped or not.
        x: images, shape (N, ...).
        rows: what has to have as many rows.

    Raises:
        DataError: no images, different numbers of rows, or images that are not floating-point numbers.
    """
    if not len(x) or any(len(x) != len(other) for other in rows):
        beside = ", ".join(str(len(other)) for other in rows)
        raise DataError(f"found {len(x)} images and {beside or 'no'} rows beside them; give equally many, at least one")
    if not x.is_floating_point():
        raise DataError(f"images are {x.dtype}; give floating-point pixels in [0, 1], for example images.float() / 255")
    network = unwrap(model)
    device = _home(network, torch.empty(0)).device
    cuda = [device] if device.type == "cuda" else []
    with exact_arithmetic(device), evaluation_mode(network), frozen(network), torch.random.fork_rng(cuda):
        yield network


def _home(network: nn.Module, like: Tensor) -> Tensor:
    """A tensor on the network's device, of its type; `like` where the network has none."""
    found = (t for t in concatenate(network.parameters(), network.buffers()) if t.is_floating_point())
    return next(found, like)


def place(network: nn.Module, x: Tensor) -> Tensor:
    """`x` on the network's device; floating-point numbers in its type."""
    home = _home(network, x)
    return x.to(home.device, home.dtype if x.is_floating_point() else x.dtype)


def batches(
    network: nn.Module, x: Tensor, y: Tensor, *, batch_size: int, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor, Stream]]:
    """Rows of x and y on the network's device, and the source of these rows' random numbers.

    Args:
        network: where the rows go.
        x: images, shape (N, ...).
        y: labels (N,), or anything else with N rows.
        batch_size: rows at a time; results do not depend on it.
        seed: of the random numbers.

    Raises:
        ConfigError: batch_size below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} is too small; type 1 or more")
    for start in range(0, len(x), batch_size):
        rows = slice(start, start + batch_size)
        yield place(network, x[rows]), place(network, y[rows]), Stream(seed, start=start, total=len(x))


def attached(network: nn.Module, selection: Selection, x: Tensor) -> Sites:
    """Sites on the network for the duration of a `with`."""
    return Sites(network, selection, example=place(network, x[:2]))


def activations(network: nn.Module, sites: Sites, x: Tensor) -> tuple[Tensor, dict[Site, Tensor]]:
    """Logits and the activation at every site, from one forward pass that is not changed."""
    found: list[Tensor] = []

    def keep(r: Tensor, z: Tensor) -> Tensor:
        found.append(z)
        return r

    # Zero noise without memory, whose constraint sees each activation where it passes, in the order of the sites.
    nothing = {site: x.new_zeros(()).expand(len(x), *sites.shape(site)) for site in sites}
    with sites.perturb(nothing, constraint=keep):
        logits = network(x)
    return logits, dict(zip(sites, found, strict=True))


def losses(network: nn.Module, x: Tensor, y: Tensor, criterion: Criterion) -> Tensor:
    """Each image's loss, in float64 from the logits on: small differences of it matter here."""
    with torch.no_grad():
        return criterion(network(x).double(), y)


def plain(value: Any) -> Any:
    """A value in JSON's types; a number that is not finite is null.

    >>> plain({"a": (1, float("nan")), "b": torch.tensor([0.5])})
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
"""How the fields of a diagnostic are read from JSON."""


class Diagnostic(ABC):
    """What a diagnostic found; a subclass is a frozen dataclass."""

    title: ClassVar[str]
    """What the figure shows, in a few words."""

    @abstractmethod
    def figure(self) -> Figure:
        """Draw it; `alt` of the figure says in a sentence what can be seen."""

    def to_dict(self) -> dict[str, Any]:
        """Every field in JSON's types, and which diagnostic it is."""
        found: dict[str, Any] = plain(self)
        return {"diagnostic": type(self).__name__, **found}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Where the type of a record's field is any diagnostic, the record says which."""
        from pydantic_core import core_schema

        if cls is not Diagnostic:
            return handler(source)
        return core_schema.no_info_plain_validator_function(Diagnostic.from_dict)

    @classmethod
    def from_dict(cls, found: Any, *, source: str = "the record") -> Diagnostic:
        """Read what any diagnostic's `to_dict` gave, perhaps through JSON; what was not finite is NaN, tensors are in float64.

        Args:
            found: the dictionary.
            source: where it came from, for messages.

        Raises:
            CheckpointError: no diagnostic, or a field is missing, unknown or of another type.
        """
        name = found.get("diagnostic") if isinstance(found, dict) else None
        known = {kind.__name__: kind for kind in _kinds(Diagnostic)}
        if not isinstance(name, str) or name not in known:
            raise CheckpointError(
                f"{source} is corrupt: {name!r:.60} is no diagnostic of this layerwise; {did_you_mean(str(name), known)}"
            )
        body = {key: value for key, value in found.items() if key != "diagnostic"}
        diagnostic: Diagnostic = read_record(known[name], body, source=source, where=name, own=READERS)
        return diagnostic


def _kinds(kind: type[Any]) -> Iterator[type[Any]]:
    """Every diagnostic that can be found: the dataclasses below a class."""
    for below in kind.__subclasses__():
        if dataclasses.is_dataclass(below):
            yield below
        yield from _kinds(below)


class Curves(Diagnostic):
    """A diagnostic whose figure can hold several networks."""

    panels: ClassVar[int] = 1
    legend: ClassVar[bool] = True

    @abstractmethod
    def draw(self, panels: Sequence[Axes], look: Mapping[str, Any]) -> None:
        """Draw one network's curves; `look` has its label, colour, marker and dashes."""

    @abstractmethod
    def finish(self, panels: Sequence[Axes]) -> None:
        """Label the axes, with units."""

    @abstractmethod
    def sentence(self) -> str:
        """What the curves show, with numbers."""

    def figure(self, *, name: str = "network", others: Mapping[str, Self] | None = None) -> Figure:
        """Draw it, alone or beside the same diagnostic of other networks.

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

    def draw(self, panels: Sequence[Axes], look: Mapping[str, Any]) -> None:
        """See `Curves.draw`."""
        panels[0].plot(self.values, self.sites, **look)

    def finish(self, panels: Sequence[Axes]) -> None:
        """See `Curves.finish`."""
        panels[0].set(xlabel=self.quantity, ylabel="site")
        finish_sites(panels[0], logarithmic=self.logarithmic)

    def sentence(self) -> str:
        """The largest and the smallest."""
        pairs = list(zip(self.values, self.sites, strict=True))
        (high, top), (low, bottom) = max(pairs), min(pairs)
        quantity = self.quantity.replace("\n", " ")
        return f"{quantity} over {self.images} images is largest at {top} ({high:.3g}) and smallest at {bottom} ({low:.3g})."
