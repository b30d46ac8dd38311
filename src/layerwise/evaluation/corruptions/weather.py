"""The weather: snow, frost, fog, brightness."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.evaluation.corruptions import filters
from layerwise.evaluation.corruptions.draws import Draws
from layerwise.evaluation.corruptions.scene import Scene
from layerwise.evaluation.corruptions.severities import Constants


def snow(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """Whitened images, plus flakes that fall in a direction of 45 degrees around the vertical, plus the same turned by 180 degrees."""
    flakes = snow_flakes(x, c[0], c[1], max(1.0, c[2] * scene.scale), c[3], scene.draws)
    angle = scene.draws.uniform("angle") * 90 - 135
    return whiten(x, c[6]) + fallen(flakes, scene.pixels(c[4]), c[5] * scene.scale, angle)


def snow_flakes(x: Tensor, mean: float, deviation: float, zoom: float, threshold: float, draws: Draws) -> Tensor:
    """Enlarged Gaussian noise, 0 below the threshold, whole multiples of 1/255, shape (B, 1, H, W)."""
    noise = filters.clipped_zoom(mean + deviation * draws.normal("flakes", 1, *x.shape[2:]), zoom)
    return filters.levels(noise.where(noise >= threshold, 0.0)) / 255


def fallen(flakes: Tensor, reach: int, sigma: float, angle: Tensor) -> Tensor:
    """The flakes drawn out along `angle`, plus the same turned by 180 degrees."""
    drawn = (filters.motion_blur(flakes, reach, sigma, angle) * 255).round() / 255
    return drawn + drawn.rot90(2, (-2, -1))


def whiten(x: Tensor, weight: float) -> Tensor:
    """W x + (1 - w) max(x, 1.5 luminance + 0.5)."""
    return weight * x + (1 - weight) * torch.maximum(x, filters.luminance(x) * 1.5 + 0.5)


def frost(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """c0 x + c1 times a random part of a random picture of frost, enlarged by c2."""
    parts = scene.frost.crops(scene.draws, *x.shape[-2:], zoom=c[2] * scene.scale)
    return c[0] * x + c[1] * (filters.luminance(parts) if x.shape[1] == 1 else parts)


def fog(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """(x + c0 p) m / (m + c0), p a plasma fractal and m the image's brightest value."""
    h, w = x.shape[-2:]
    # The next power of two: 32 and 256 for the benchmark's 32 and 224.
    mist = plasma(scene.draws, 1 << (max(h, w) - 1).bit_length(), c[1])[:, None, :h, :w]
    brightest = x.amax(dim=(1, 2, 3), keepdim=True)
    return (x + c[0] * mist) * brightest / (brightest + c[0])


def plasma(draws: Draws, size: int, decay: float) -> Tensor:
    """A height map on a torus by the diamond-square algorithm, scaled to [0, 1].

    Each octave puts new points amid old ones: their mean plus U(-1, 1) decay^(-2 octave) (the benchmark's noise has both its
    deviation and its range divided by `decay`).

    Args:
        draws: the images' random numbers.
        size: a power of two.
        decay: above 1.

    Returns:
        Shape (B, size, size).
    """
    height = torch.zeros(len(draws.rows), size, size, device=draws.rows.device)
    octaves = range(size.bit_length() - 1)
    new = ("square", "above", "left")
    noise = iter(draws.uniforms({f"{what} {octave}": (1 << octave,) * 2 for octave in octaves for what in new}))
    for octave in octaves:
        step, half = size >> octave, size >> octave + 1
        square, above, left = ((next(noise) * 2 - 1) * decay ** (-2.0 * octave) for _ in new)
        corners = height[:, ::step, ::step]
        rows = corners + corners.roll(-1, 1)
        columns = corners + corners.roll(-1, 2)
        centres = (rows + rows.roll(-1, 2)) / 4 + square
        height[:, half::step, half::step] = centres
        height[:, ::step, half::step] = (centres + centres.roll(1, 1) + columns) / 4 + above
        height[:, half::step, ::step] = (centres + centres.roll(1, 2) + rows) / 4 + left
    height -= height.amin(dim=(1, 2), keepdim=True)
    return height / height.amax(dim=(1, 2), keepdim=True).clamp_(min=torch.finfo(height.dtype).tiny)


def brightness(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """V + c in hue, saturation and value, V at most 1."""
    del scene
    value = x.amax(dim=1, keepdim=True)
    brighter = (value + c[0]).clamp(0, 1)
    # At fixed hue and saturation colours grow in proportion to V; black becomes grey.
    return torch.where(value > 0, x * brighter / value.where(value > 0, 1.0), brighter)
