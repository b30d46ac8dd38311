"""Spatter: drops of water or mud on the lens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layerwise.evaluation.corruptions import filters
from layerwise.evaluation.corruptions.draws import Draws
from layerwise.evaluation.corruptions.scene import Scene
from layerwise.evaluation.corruptions.severities import Constants

WATER = (175 / 255, 238 / 255, 238 / 255)
MUD = (63 / 255, 42 / 255, 20 / 255)
FAR = 20
"""Distances to the edge of a drop count up to here, in pixels; the benchmark does not scale it with the image."""

_CHAMFER = ((0, 1, 1.0), (1, 1, 1.4), (1, 2, 2.1969))
"""Steps of the 5 x 5 chamfer distance: rows, columns, length (Borgefors 1986)."""


def spatter(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """Blurred Gaussian noise above c3 is liquid: water is added (c5 = 0), mud covers (c5 = 1)."""
    liquid = liquid_layer(x, c[0], c[1], c[2] * scene.scale, scene.draws)
    if c[5]:
        cover = filters.gaussian_blur((liquid > c[3]).to(x.dtype), c[4] * scene.scale)
        cover = cover.where(cover >= 0.8, 0.0)
        return x * (1 - cover) + cover * colour_of(x, MUD)
    return x + c[4] * shine(liquid, c[3]) * colour_of(x, WATER)


def liquid_layer(x: Tensor, mean: float, deviation: float, sigma: float, draws: Draws) -> Tensor:
    """Blurred Gaussian noise, shape (B, 1, H, W)."""
    return filters.gaussian_blur(mean + deviation * draws.normal("liquid", 1, *x.shape[2:]), sigma)


def shine(liquid: Tensor, threshold: float) -> Tensor:
    """How much light drops reflect, in [0, 1]: strong along the lower right of their edges, 0 where there is no liquid.

    The benchmark's chain of OpenCV's filters on uint8 images, each on the whole batch: edges, distance to them, equalised
    histogram, relief. An image without liquid stays 0, where the benchmark divides 0 by 0.
    """
    level = filters.levels(liquid.where(liquid >= threshold, 0.0))
    distance = chamfer(canny(level, 50, 150))
    # The summand: nine ninths of a whole number may be a little less in float32.
    distance = equalise((_box3(distance.clamp(max=FAR)) + 1e-4).floor())
    relief = distance.new_tensor([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    relief = filters.correlate(distance, relief).clamp(0, 255)
    product = level * (_box3(relief) + 0.5).floor()
    return product / product.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1)


def colour_of(x: Tensor, colour: tuple[float, float, float]) -> Tensor:
    """A colour as images like x have it, shape (1, C, 1, 1)."""
    whole = x.new_tensor(colour).view(1, 3, 1, 1)
    return filters.luminance(whole) if x.shape[1] == 1 else whole


def _box3(x: Tensor) -> Tensor:
    return filters.correlate(x, torch.full((3, 3), 1 / 9))


def _shifted(x: Tensor, down: int, right: int, outside: float) -> Tensor:
    """The values at (row + down, column + right)."""
    h, w = x.shape[-2:]
    reach = max(abs(down), abs(right))
    padded = F.pad(x, (reach,) * 4, value=outside)
    return padded[..., reach + down : reach + down + h, reach + right : reach + right + w]


def canny(level: Tensor, low: int, high: int) -> Tensor:
    """Edges: ridges of the Sobel gradient's l1 norm above `low` that hang together with one above `high`.

    Args:
        level: whole numbers 0..255, shape (B, 1, H, W).
        low: above this a ridge may continue an edge.
        high: above this it begins one.

    Returns:
        Bool, shape (B, 1, H, W).

    Reference: Canny 1986, in OpenCV's arithmetic (the image's edge continued, directions in four sectors).
    """
    padded = filters.pad(level, 1, "edge")
    smooth = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    right = smooth[..., 2:] - smooth[..., :-2]
    smooth = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    down = smooth[..., 2:, :] - smooth[..., :-2, :]
    norm = right.abs() + down.abs()

    def above(rows: int, columns: int) -> Tensor:
        return _shifted(norm, rows, columns, 0.0)

    # 13573 / 2^15 is tan 22.5 degrees; tan 67.5 is that plus 2. float32 holds these whole numbers only after the division.
    tangent = 13573 / (1 << 15)
    flat = down.abs().double() < right.abs().double() * tangent
    steep = down.abs().double() > right.abs().double() * (tangent + 2)
    falling = (right * down) < 0
    ridge = torch.where(
        flat,
        (norm > above(0, -1)) & (norm >= above(0, 1)),
        torch.where(
            steep,
            (norm > above(-1, 0)) & (norm >= above(1, 0)),
            torch.where(
                falling,
                (norm > above(-1, 1)) & (norm > above(1, -1)),
                (norm > above(-1, -1)) & (norm > above(1, 1)),
            ),
        ),
    )
    weak, edges = ridge & (norm > low), ridge & (norm > high)
    while True:
        grown = (F.max_pool2d(edges.float(), 3, stride=1, padding=1) > 0) & weak
        if torch.equal(grown, edges):
            return edges
        edges = grown


def chamfer(edges: Tensor) -> Tensor:
    """Distance to the nearest edge in steps of a chess king and knight, exact up to `FAR`, float32, shape of `edges`."""
    steps = set()
    for down, right, length in _CHAMFER:
        for a, b in ((down, right), (right, down)):
            steps |= {(i * a, j * b, length) for i in (1, -1) for j in (1, -1)}
    distance = torch.where(edges, 0.0, 2.0 * FAR)
    for _ in range(FAR):
        before = distance
        for down, right, length in sorted(steps):
            distance = torch.minimum(distance, _shifted(before, down, right, 2.0 * FAR) + length)
        if torch.equal(before, distance):
            break
    return distance


def equalise(level: Tensor) -> Tensor:
    """Whole numbers 0..255 spread so that their histogram is as flat as can be; a single level stays as it is.

    >>> equalise(torch.tensor([3.0, 3.0, 5.0, 9.0]).view(1, 1, 2, 2)).flatten().tolist()
    [0.0, 0.0, 128.0, 255.0]
    """
    flat = level.flatten(1).long()
    counts = torch.zeros(len(flat), 256, device=level.device).scatter_add_(1, flat, torch.ones_like(level.flatten(1)))
    first = flat.amin(dim=1, keepdim=True)
    lowest, total = counts.gather(1, first), flat.shape[1]
    spread = (counts.cumsum(1) - lowest) * 255 / (total - lowest).clamp(min=1)
    return spread.round().where(lowest < total, first).gather(1, flat).to(level.dtype).view_as(level)
