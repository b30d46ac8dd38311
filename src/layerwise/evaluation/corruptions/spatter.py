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

_CHAMFER = (
    *((0, 1, 1.0), (1, 0, 1.0)),
    *((1, 1, 1.4), (1, -1, 1.4)),
    *((1, 2, 2.1969), (2, 1, 2.1969), (1, -2, 2.1969), (2, -1, 2.1969)),
)
"""Steps of the 5 x 5 chamfer distance: rows, columns, length (Borgefors 1986); each may be made backwards too."""


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
    """The mean of 3 x 3 pixels."""
    wide = filters.pad(x, (1, 1), (1, 1), "mirror")
    rows = (wide[..., :-2, :] + wide[..., 1:-1, :]).add_(wide[..., 2:, :])
    return (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).div_(9)


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
    h, w = level.shape[-2:]
    padded = F.pad(level, (1,) * 4, mode="replicate")
    smooth = (padded[..., :-2, :] + padded[..., 2:, :]).add_(padded[..., 1:-1, :], alpha=2)
    right = smooth[..., 2:] - smooth[..., :-2]
    smooth = (padded[..., :-2] + padded[..., 2:]).add_(padded[..., 1:-1], alpha=2)
    down = smooth[..., 2:, :] - smooth[..., :-2, :]
    falling = (right * down) < 0
    right.abs_()
    down.abs_()
    norm = right + down
    framed = F.pad(norm, (1,) * 4)

    def at(rows: int, columns: int) -> Tensor:
        return framed[..., 1 + rows : 1 + rows + h, 1 + columns : 1 + columns + w]

    # 13573 / 2^15 is tan 22.5 degrees; tan 67.5 is that plus 2. These products are whole numbers that float32 holds.
    tangent = right * 13573
    flat, steep = down * (1 << 15) < tangent, (down - 2 * right).mul_(1 << 15) > tangent
    ridge = torch.where(
        flat,
        (norm > at(0, -1)) & (norm >= at(0, 1)),
        torch.where(
            steep,
            (norm > at(-1, 0)) & (norm >= at(1, 0)),
            torch.where(falling, (norm > at(-1, 1)) & (norm > at(1, -1)), (norm > at(-1, -1)) & (norm > at(1, 1))),
        ),
    )
    weak, edges = ridge & (norm > low), ridge & (norm > high)
    while True:
        framed = F.pad(edges, (1,) * 4)
        rows = framed[..., :-2, :] | framed[..., 1:-1, :] | framed[..., 2:, :]
        grown = (rows[..., :-2] | rows[..., 1:-1] | rows[..., 2:]).logical_and_(weak)
        if torch.equal(grown, edges):
            return edges
        edges = grown


def chamfer(edges: Tensor) -> Tensor:
    """Distance to the nearest edge in steps of a chess king and knight, exact up to `FAR`, float32, shape of `edges`.

    A shortest path may make its steps in any order, so that the distances grow in one direction after the other; in each one the
    steps are doubled until they reach `FAR`. All pixels lie in one line, where a step is a shift, and a frame as wide as `FAR` holds
    the paths that leave the image on their way.
    """
    h, w = edges.shape[-2:]
    framed = F.pad(torch.where(edges, 0.0, 2.0 * FAR), (0, FAR, FAR, FAR), value=2.0 * FAR)
    line = framed.view(-1)
    for down, right, length in _CHAMFER:
        reached, most = 0, int(FAR / length)
        while reached < most:
            steps = min(reached + 1, most - reached)
            shift, farther = steps * (down * framed.shape[-1] + right), line + steps * length
            torch.minimum(line[shift:], farther[:-shift], out=line[shift:])
            torch.minimum(line[:-shift], farther[shift:], out=line[:-shift])
            reached += steps
    return framed[..., FAR : FAR + h, :w]


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
