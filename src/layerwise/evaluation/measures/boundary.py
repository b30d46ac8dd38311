"""How far away the decision boundary is, and where it lies in the plane."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from layerwise.core import norms
from layerwise.core.random import Stream, normal
from layerwise.core.registry import register
from layerwise.errors import ConfigError, DataError
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import Curves, Look, Measurement, Panels
from layerwise.evaluation.measures.base import batches, examining, place
from layerwise.evaluation.style import COLOURS, canvas, describe, scatter, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOUBLINGS = 10


@final
@dataclass(frozen=True)
class BoundaryDistance(Curves):
    """Distances at which the prediction changes along random orthogonal directions.

    Args:
        distance: W_f, the mean over the images of the smallest l2 distance over all directions, pixel units.
        rms: the same divided by the square root of the number of dimensions: the root mean square over the pixels.
        minima: each image's smallest distance, l2, in the order of the images.
        per_direction: mean over the images of the distance along each direction (the nearer of its two signs), l2.
        unreached: share of (image, direction) pairs whose prediction does not change up to `reach`; they count as `reach`.
        reach: farthest distance tried, l2.
        misclassified: images whose prediction is not their label (0 if no labels were given).
        treatment: what was done with those.
        dimensions: entries of an image.
    """

    title: ClassVar[str] = "Boundary distance"
    rank: ClassVar[int] = 32
    caption: ClassVar[str] = "Higher is good: the prediction changes farther away from the image."
    alike: ClassVar[tuple[str, ...]] = ("treatment",)
    panels: ClassVar[int] = 2

    distance: float
    rms: float
    minima: tuple[float, ...]
    per_direction: tuple[float, ...]
    unreached: float
    reach: float
    misclassified: int
    treatment: str
    dimensions: int

    @property
    def total(self) -> int:
        """The images."""
        return len(self.minima)

    def draw(self, panels: Panels, look: Look) -> None:
        """Distances sorted, over directions and over images."""
        for axes, values in zip(panels, (self.per_direction, self.minima), strict=True):
            axes.plot(range(1, len(values) + 1), sorted(values), **{**look, "marker": None})

    def finish(self, panels: Panels) -> None:
        """Label the axes."""
        panels[0].set(xlabel="direction, sorted by its mean over the images", ylabel="mean distance (l2, pixel units)")
        panels[1].set(
            xlabel="image, sorted by its smallest over the directions",
            ylabel="smallest distance (l2, pixel units)",
            title="Worst case",
        )
        for axes in panels:
            axes.set_ylim(bottom=0)

    def sentence(self) -> str:
        """W_f and where it is from."""
        return (
            f"worst-case distance {self.distance:.3g} (l2; {self.rms:.3g} RMS), mean of {len(self.minima)} images over "
            f"{len(self.per_direction)} directions of {self.dimensions} dimensions, {100 * self.unreached:.1f} % not reached."
        )


@register("measure", "boundary-distance", passes=lambda size: 52 * size.images * size.directions)
def _distance(target: Target, *, images: int = 10, directions: int = 20) -> BoundaryDistance:
    """Distance at which the prediction changes, over random orthogonal directions (ANP, eq. 3)."""
    return boundary_distance(*target.first(images), directions=directions, seed=target.seed)


def boundary_distance(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    directions: int = 1000,
    misclassified: Literal["prediction", "zero", "drop"] = "prediction",
    reach: float | None = None,
    steps: int = 15,
    seed: int = 0,
    batch_size: int = 1000,
) -> BoundaryDistance:
    """W_f = (1 / N) sum_i min over v, +-  of the distance t at which the prediction changes from x_i to x_i +- t v.

    The directions are the same for all images, random and orthonormal. Along each, t is doubled from reach / 1024 until the
    prediction differs, then the bracket is halved `steps` times: the precision is 2^-steps of the distance (of reach / 1024 below
    that), and a class that is entered and left again between two doublings is missed. Pixels are not clipped: most random
    directions leave [0, 1] at once on black and white images.

    Args:
        model: any classifier.
        x: images, shape (N, ...), pixels in [0, 1].
        y: labels, shape (N,); only for the count and the treatment of misclassified images.
        directions: at most as many as an image has entries are used.
        misclassified: `"prediction"` measures them like the others, from their prediction (the paper's text, and its curves of 100
            images that do not begin at 0); `"zero"` counts 0 for them (its printed condition f(x) != y); `"drop"` leaves them out.
        reach: farthest distance tried, l2; None is the square root of the number of dimensions, which is RMS 1.
        steps: of the bisection.
        seed: of the directions.
        batch_size: rows at a time, one a direction and sign of an image; about 26 forward passes each.

    Raises:
        ConfigError: a setting is out of range, or no image is left.
        DataError: `misclassified` needs labels.

    Reference: Liu et al. 2021 (ANP), eq. 3, table 11 and figure 7.

    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> round(boundary_distance(net, torch.tensor([[0.5, 0.0]]), reach=100.0).per_direction[0], 2) >= 0.5
    True
    """
    if misclassified not in ("prediction", "zero", "drop"):
        raise ConfigError(f"misclassified={misclassified!r} is unknown; type 'prediction', 'zero' or 'drop'")
    if y is None and misclassified != "prediction":
        raise DataError(f"misclassified={misclassified!r} needs labels; give y, or misclassified='prediction'")
    dimensions = x.shape[1:].numel()
    far = math.sqrt(dimensions) if reach is None else reach
    if not (directions >= 1 and steps >= 1 and 0 < far < math.inf):
        raise ConfigError(f"directions={directions}, steps={steps}, reach={far} cannot be; each has to be above 0")
    v = orthonormal(x, min(directions, dimensions), seed)
    with examining(model, x, *([] if y is None else [y])) as network:
        predicted = torch.cat([_classes(network, part) for part, _, _ in batches(network, x, x, batch_size=batch_size)])
        wrong = torch.zeros_like(predicted, dtype=torch.bool) if y is None else predicted != y.to(predicted.device)
        kept = (~wrong if misclassified == "drop" else torch.ones_like(wrong)).nonzero().squeeze(1)
        if not len(kept):
            raise ConfigError("every image is misclassified and dropped; type misclassified='prediction'")
        found = _along(network, place(network, x)[kept], place(network, v), predicted[kept], far, steps, batch_size)
    if misclassified == "zero":
        found[wrong[kept].cpu()] = 0.0
    unreached, found = found.isinf().double().mean().item(), found.clamp(max=far)
    minima = found.amin(dim=1)
    return BoundaryDistance(
        distance=minima.mean().item(),
        rms=minima.mean().item() / math.sqrt(dimensions),
        minima=tuple(minima.tolist()),
        per_direction=tuple(found.mean(dim=0).tolist()),
        unreached=unreached,
        reach=far,
        misclassified=int(wrong.sum()),
        treatment=misclassified,
        dimensions=dimensions,
    )


def orthonormal(x: Tensor, count: int, seed: int) -> Tensor:
    """Random orthonormal directions, shape (count, *one image): the first columns of a Gaussian matrix's Q."""
    gaussian = normal(torch.empty(x.shape[1:].numel(), count, dtype=torch.float64), Stream(seed), key="directions")
    q: Tensor = torch.linalg.qr(gaussian).Q
    return q.T.reshape(count, *x.shape[1:])


def _classes(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(x)
    return logits.argmax(dim=1)


def _along(
    network: nn.Module, x: Tensor, v: Tensor, predicted: Tensor, reach: float, steps: int, batch_size: int
) -> Tensor:
    """Distance of every image along every direction, the nearer sign, shape (images, directions), float64; inf if not reached."""
    rays = torch.arange(len(x) * len(v) * 2, device=x.device)
    found = []
    for start in range(0, len(rays), batch_size):
        part = rays[start : start + batch_size]
        image, direction, sign = part // (2 * len(v)), part // 2 % len(v), 1 - 2 * (part % 2)
        found.append(_search(network, x[image], v[direction] * norms.rows(sign, v), predicted[image], reach, steps))
    return torch.cat(found).reshape(len(x), len(v), 2).amin(dim=2).double().cpu()


def _search(network: nn.Module, x: Tensor, v: Tensor, predicted: Tensor, reach: float, steps: int) -> Tensor:
    """Where the prediction changes from x to x + t v, shape (B,): doubling, then bisection."""
    low, high = x.new_zeros(len(x)), x.new_full((len(x),), math.inf)

    def try_at(t: Tensor, rows: Tensor) -> None:
        changed = _classes(network, x[rows] + norms.rows(t, x) * v[rows]) != predicted[rows]
        high[rows[changed]] = t[changed]
        low[rows[~changed]] = t[~changed]

    for k in range(DOUBLINGS, -1, -1):
        if len(open_rows := high.isinf().nonzero().squeeze(1)):
            try_at(x.new_full((len(open_rows),), reach / 2**k), open_rows)
    if len(rows := high.isfinite().nonzero().squeeze(1)):
        for _ in range(steps):
            try_at((low[rows] + high[rows]) / 2, rows)
    return high


@final
@dataclass(frozen=True)
class DecisionBoundary(Measurement):
    """Which class is predicted where in the plane.

    Args:
        first: values of the first feature, the columns of `predicted`.
        second: values of the second feature, the rows.
        predicted: the class at second[i], first[j].
        points: the examples, (first, second feature) each.
        labels: theirs.
        accuracy: share of the examples that are correct.
    """

    title: ClassVar[str] = "Decision boundary"
    caption: ClassVar[str] = "Which class is predicted where."

    first: tuple[float, ...]
    second: tuple[float, ...]
    predicted: tuple[tuple[int, ...], ...]
    points: tuple[tuple[float, ...], ...]
    labels: tuple[int, ...]
    accuracy: float

    def figure(self) -> Figure:
        """The regions, and the examples on top."""
        from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgba

        classes = self._classes
        pale = ListedColormap([to_rgba(COLOURS[k % len(COLOURS)], 0.18) for k in range(classes)])
        with styled():
            figure, (axes,) = canvas(height=3.8)
            axes.grid(False)
            limits = BoundaryNorm([k - 0.5 for k in range(classes + 1)], classes)
            axes.pcolormesh(
                self.first, self.second, self.predicted, cmap=pale, norm=limits, shading="nearest", rasterized=True
            )
            scatter(axes, self.points, self.labels, size=9, prefix="class ")
            axes.set(
                xlabel="first feature (data units)",
                ylabel="second feature (data units)",
                title=f"{self.title}, {100 * self.accuracy:.1f} % correct",
            )
            figure.legend(loc="outside lower center", ncols=min(classes, 5), markerscale=2)
        return describe(figure, f"{self.title}: {self.sentence()}")

    def sentence(self) -> str:
        """Whose the plane is."""
        count = Counter(k for row in self.predicted for k in row)
        whole = len(self.first) * len(self.second)
        areas = ", ".join(f"class {k} {100 * count[k] / whole:.0f} %" for k in range(self._classes))
        return f"of the plane around {len(self.points)} examples, {areas}; {100 * self.accuracy:.1f} % of them are correct."

    @property
    def leaning(self) -> float:
        """Share, in [0, 1], of the changes of class that lie along the first feature: 1 where the second one decides nothing."""
        rows, columns = self.predicted, tuple(zip(*self.predicted, strict=True))
        along, across = (sum(a != b for line in lines for a, b in pairwise(line)) for lines in (rows, columns))
        return float(along / max(along + across, 1))

    @property
    def _classes(self) -> int:
        return 1 + max(*self.labels, *(k for row in self.predicted for k in row))


@register("measure", "decision-boundary", passes=lambda size: 40_000 + size.images, special=True)
def _plane(target: Target, *, images: int = 500) -> DecisionBoundary:
    """Which class is predicted where in the plane (SLAT, figure 2); data of two numbers only."""
    return decision_boundary(*target.first(images))


def decision_boundary(
    model: nn.Module, x: Tensor, y: Tensor, *, points: int = 200, margin: float = 0.1, batch_size: int = 10_000
) -> DecisionBoundary:
    """The predicted class on a grid over the plane of a two-dimensional problem.

    Args:
        model: any classifier of two numbers.
        x: examples of two numbers, shape (N, 2) or (N, 2, 1, 1).
        y: labels, shape (N,).
        points: of the grid, along each feature.
        margin: around the examples, as a share of their extent.
        batch_size: points at a time.

    Raises:
        DataError: the examples are not of two numbers.

    Reference: SLAT, figure 2.

    >>> decision_boundary(nn.Linear(2, 2), torch.rand(8, 2), torch.zeros(8, dtype=torch.int64), points=3).labels
    (0, 0, 0, 0, 0, 0, 0, 0)
    """
    flat = x.flatten(1).double()
    if flat.shape[1] != 2:
        raise DataError(
            f"examples have shape {tuple(x.shape[1:])}; a decision boundary can be drawn for two numbers each"
        )
    low, high = flat.amin(dim=0), flat.amax(dim=0)
    room = margin * (high - low)
    first, second = (
        torch.linspace(a, b, points).tolist() for a, b in torch.stack([low - room, high + room], 1).tolist()
    )
    grid = torch.cartesian_prod(torch.tensor(second), torch.tensor(first)).flip(1).reshape(-1, *x.shape[1:])
    with examining(model, x, y) as network:
        predicted, own = (
            torch.cat([_classes(network, part) for part, _, _ in batches(network, z, z, batch_size=batch_size)]).cpu()
            for z in (grid, x)
        )
    rows = predicted.reshape(points, points).tolist()
    return DecisionBoundary(
        tuple(first),
        tuple(second),
        tuple(map(tuple, rows)),
        tuple(map(tuple, flat.tolist())),
        tuple(y.tolist()),
        (own == y.cpu()).double().mean().item(),
    )
