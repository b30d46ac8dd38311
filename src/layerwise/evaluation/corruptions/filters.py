"""Blurs, zooms and resampling of batches of images (B, C, H, W), with the borders of the libraries that the benchmark used."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

Border: TypeAlias = Literal["edge", "mirror", "reflect"]
"""What lies outside: `a a|a b c|c c` (edge), `c b|a b c|b a` (mirror) or `b a|a b c|c b` (reflect)."""

LUMINANCE = (0.299, 0.587, 0.114)


def fold(index: Tensor, size: int, border: Border) -> Tensor:
    """The positions in range(size) that the border rule puts at `index` (any whole numbers).

    >>> [fold(torch.arange(-3, 6), 3, border).tolist() for border in ("edge", "mirror", "reflect")]
    [[0, 0, 0, 0, 1, 2, 2, 2, 2], [1, 2, 1, 0, 1, 2, 1, 0, 1], [2, 1, 0, 0, 1, 2, 2, 1, 0]]
    """
    if border == "edge" or size == 1:
        return index.clamp(0, size - 1)
    period, last = (2 * size - 2, 2 * size - 2) if border == "mirror" else (2 * size, 2 * size - 1)
    index = index.remainder(period)
    return torch.minimum(index, last - index)


def pad(x: Tensor, reach: int, border: Border) -> Tensor:
    """`reach` more pixels on each side, any number of them."""
    rows, columns = (
        fold(torch.arange(-reach, n + reach, device=x.device), n, border) for n in (x.shape[-2], x.shape[-1])
    )
    return x.index_select(-2, rows).index_select(-1, columns)


def gaussian_blur(
    x: Tensor, sigma: float, *, truncate: float = 4.0, reach: int | None = None, border: Border = "edge"
) -> Tensor:
    """Gaussian filter as two matrix products, whose price does not grow with sigma.

    Args:
        x: shape (..., H, W).
        sigma: pixels; 0 leaves x as it is.
        truncate: the kernel ends after so many sigmas.
        reach: pixels after which the kernel ends instead.
        border: what lies outside.
    """
    reach = int(truncate * sigma + 0.5) if reach is None else reach
    if reach == 0:
        return x
    offsets = torch.arange(-reach, reach + 1, device=x.device)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    weights /= weights.sum()
    down, right = (_filter_matrix(n, offsets, weights, border).to(x.dtype) for n in x.shape[-2:])
    return down @ x @ right.mT


def _filter_matrix(size: int, offsets: Tensor, weights: Tensor, border: Border) -> Tensor:
    index = fold(torch.arange(size, device=offsets.device)[:, None] + offsets, size, border)
    matrix = torch.zeros(size, size, dtype=weights.dtype, device=weights.device)
    return matrix.scatter_add_(1, index, weights.expand_as(index))


def correlate(x: Tensor, kernel: Tensor) -> Tensor:
    """The sum of neighbours weighted by a small odd square kernel, each channel on its own, mirrored at the border."""
    channels = pad(x, kernel.shape[0] // 2, "mirror").flatten(0, 1)[:, None]
    return F.conv2d(channels, kernel.to(x)[None, None]).view_as(x)


def disk(radius: float, alias: float) -> Tensor:
    """A disk of `radius` pixels, smoothed by a Gaussian of `alias` over 3 x 3 pixels (5 x 5 above radius 8), float64.

    It sums to 1, or to 1.01 where the smoothing meets the border of the benchmark's array, which mirrors (radius 8 and above).
    """
    reach, smoothing = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    inside = (offsets[:, None] ** 2 + offsets**2 <= radius**2).double()
    kernel = gaussian_blur(inside / inside.sum(), alias, reach=smoothing, border="mirror")
    margin = max(0, reach - math.floor(radius) - smoothing)
    return kernel[margin : 2 * reach + 1 - margin, margin : 2 * reach + 1 - margin]


def motion_blur(x: Tensor, reach: int, sigma: float, angle: Tensor) -> Tensor:
    """Blur along a ray: x(p + k (sin a, cos a)), k = 0..2 reach, rounded to pixels, weighted by exp(-k^2 / 2 sigma^2).

    Args:
        x: shape (B, C, H, W).
        reach: half the length of the ray.
        sigma: pixels.
        angle: each image's, degrees, shape (B,).

    Reference: what ImageMagick's MotionBlurImage does; beyond the border lies the edge.
    """
    h, w = x.shape[-2:]
    steps = torch.arange(2 * reach + 1, device=x.device)
    weights = torch.exp(-0.5 * (steps.double() / sigma) ** 2)
    radians = torch.deg2rad(angle.double())[:, None]
    down, right = ((steps * v - 0.5).ceil().long() for v in (radians.sin(), radians.cos()))
    rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    flat, blurred = x.flatten(2), torch.zeros_like(x)
    for k, weight in enumerate((weights / weights.sum()).tolist()):
        at_rows = fold(rows + down[:, k, None], h, "edge")
        at_columns = fold(columns + right[:, k, None], w, "edge")
        blurred.add_(_gather(flat, at_rows[:, :, None] * w + at_columns[:, None, :]), alpha=weight)
    return blurred


def _gather(flat: Tensor, index: Tensor) -> Tensor:
    """The pixels of `flat` (B, C, H W) at `index` (B, h, w)."""
    where = index.flatten(1)[:, None].expand(-1, flat.shape[1], -1)
    return flat.gather(2, where).view(*flat.shape[:2], *index.shape[1:])


def sample(x: Tensor, rows: Tensor, columns: Tensor, border: Border | Literal["zero"]) -> Tensor:
    """Linear interpolation at positions between pixels.

    Args:
        x: shape (B, C, H, W).
        rows: positions, pixel centres at whole numbers, shape (B, h, w).
        columns: likewise.
        border: what lies outside.

    Returns:
        Shape (B, C, h, w).
    """
    h, w = x.shape[-2:]
    flat, total = x.flatten(2), torch.zeros(*x.shape[:2], *rows.shape[1:], dtype=x.dtype, device=x.device)
    top, left = rows.floor(), columns.floor()
    for down in (0, 1):
        for right in (0, 1):
            at_row, at_column = top.long() + down, left.long() + right
            weight = (1 - (rows - at_row).abs()) * (1 - (columns - at_column).abs())
            if border == "zero":
                weight = weight * ((at_row >= 0) & (at_row < h) & (at_column >= 0) & (at_column < w))
            rule: Border = "edge" if border == "zero" else border
            index = fold(at_row, h, rule) * w + fold(at_column, w, rule)
            total += _gather(flat, index) * weight[:, None]
    return total


def clipped_zoom(x: Tensor, factor: float) -> Tensor:
    """The middle of the images, enlarged by `factor` (1 or more) to their size."""
    h, w = x.shape[-2:]
    inner = math.ceil(h / factor), math.ceil(w / factor)
    top, left = (h - inner[0]) // 2, (w - inner[1]) // 2
    # Corners stay on corners, as in scipy.ndimage.zoom.
    size = [round(n * factor) for n in inner]
    crop = x[..., top : top + inner[0], left : left + inner[1]]
    zoomed = F.interpolate(crop, size=size, mode="bilinear", align_corners=True)
    top, left = (size[0] - h) // 2, (size[1] - w) // 2
    return zoomed[..., top : top + h, left : left + w]


def levels(x: Tensor) -> Tensor:
    """The whole numbers 0..255 that the benchmark stores for pixels x in [0, 1]: cut off, not rounded, as its uint8 casts are.

    >>> levels(torch.tensor([0.0, 0.999 / 255, 1 / 255, 1.0])).tolist()
    [0.0, 0.0, 1.0, 255.0]
    """
    # The summand keeps whole numbers whole, which float32 may have moved by some 1e-5.
    return (x * 255 + 1e-4).floor_().clamp_(0, 255)


def luminance(x: Tensor) -> Tensor:
    """The brightness of colour images, shape (B, 1, H, W); grey ones are their own."""
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor(LUMINANCE).view(-1, 1, 1)).sum(dim=1, keepdim=True)
