"""The blurs: defocus, glass, motion, zoom, Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.evaluation.corruptions import filters
from layerwise.evaluation.corruptions.draws import Draws
from layerwise.evaluation.corruptions.scene import Scene
from layerwise.evaluation.corruptions.severities import Constants

JUMPS = 6
"""Doublings of a chain of copies; 2^6 links of probability below 1/2 each leave 1e-19 of the chains unfinished."""


def gaussian_blur(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """A Gaussian of c pixels, cut off at four deviations, edges continued."""
    return filters.gaussian_blur(x, c[0] * scene.scale)


def defocus_blur(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """A disk of radius c0, smoothed by a Gaussian of c1 over its nearest neighbours, mirrored at the border."""
    return filters.correlate(x, filters.disk(c[0] * scene.scale, c[1]))


def motion_blur(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """A ray of 2 c0 + 1 pixels and deviation c1, in a direction drawn from 45 degrees around the horizontal."""
    angle = scene.draws.uniform("angle") * 90 - 45
    return (filters.motion_blur(x, scene.pixels(c[0]), c[1] * scene.scale, angle) * 255).round() / 255


def zoom_blur(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """The mean of x and its enlargements by 1, 1 + c0, ..., 1 + (c1 - 1) c0."""
    del scene
    count = int(c[1])
    zooms = (filters.clipped_zoom(x, 1 + c[0] * k) for k in range(count))
    return (x + torch.stack(list(zooms)).sum(dim=0)) / (count + 1)


def glass_blur(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """Blur by c0, c2 times copy to each pixel a neighbour up to c1 away, blur again."""
    sigma, reach = c[0] * scene.scale, scene.pixels(c[1])
    h, w = x.shape[-2:]
    flat = filters.levels(filters.gaussian_blur(x, sigma)).flatten(2)
    for i in range(int(c[2])):
        source = copies(scene.draws, f"round {i}", h, w, reach)
        flat = flat.gather(2, source[:, None].expand_as(flat))
    return filters.gaussian_blur(flat.view_as(x) / 255, sigma)


def copies(draws: Draws, what: str, h: int, w: int, reach: int) -> Tensor:
    """Which pixel each pixel shows after one round of glass blur.

    The benchmark goes from the last pixel to the first and lets each (but for a frame) change places with one that lies -reach to
    reach - 1 rows and columns away. Since NumPy's rows are views, its exchange in fact only copies that neighbour to the pixel. Then
    a pixel shows its neighbour's new content where the neighbour came earlier, its old content where not: chains of links,
    which are followed here for all pixels at once by doubling, with the same result.

    Args:
        draws: the images' random numbers.
        what: which round.
        h: rows.
        w: columns.
        reach: pixels.

    Returns:
        Index of the source, int64, shape (B, h * w).
    """
    down, right = (draws.integers(f"{what}/{way}", 2 * reach, h, w) - reach for way in ("down", "right"))
    row = torch.arange(h, device=down.device)[:, None]
    column = torch.arange(w, device=down.device)
    moved = ((row > reach) & (row <= h - reach) & (column > reach) & (column <= w - reach)).flatten()
    own = torch.arange(h * w, device=down.device)
    neighbour = torch.where(moved, ((row + down) * w + column + right).flatten(1), own)
    # Nodes below h w are contents after the round, those above before it; a link to the latter ends a chain.
    renewed = (neighbour > own) & moved[neighbour]
    old = torch.arange(h * w, 2 * h * w, device=down.device).expand_as(neighbour)
    link = torch.cat([torch.where(renewed, neighbour, neighbour + h * w), old], dim=1)
    for _ in range(JUMPS):
        link = link.gather(1, link)
    return link[:, : h * w] - h * w
