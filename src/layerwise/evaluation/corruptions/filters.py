"""Blurs, zooms and resampling of batches of images (B, C, H, W), with the borders of the libraries that the benchmark used."""

from __future__ import annotations

import math
from functools import lru_cache
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


def pad(x: Tensor, rows: tuple[int, int], columns: tuple[int, int], border: Border) -> Tensor:
    """So many more rows above and below and columns on the left and on the right, any number of them."""
    for dim, (before, after) in ((-2, rows), (-1, columns)):
        size = x.shape[dim]
        x = x.index_select(dim, fold(torch.arange(-before, size + after, device=x.device), size, border))
    return x


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
    down, right = (_gaussian_matrix(n, sigma, reach, border, x.dtype, x.device) for n in x.shape[-2:])
    return down @ x @ right.mT


@lru_cache(maxsize=64)
def _gaussian_matrix(
    size: int, sigma: float, reach: int, border: Border, dtype: torch.dtype, device: torch.device
) -> Tensor:
    offsets = torch.arange(-reach, reach + 1, device=device)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    weights /= weights.sum()
    index = fold(torch.arange(size, device=device)[:, None] + offsets, size, border)
    matrix = torch.zeros(size, size, dtype=weights.dtype, device=device)
    return matrix.scatter_add_(1, index, weights.expand_as(index)).to(dtype)


TILE = 4
"""Rows and columns of results that one window of `correlate` gives."""


def correlate(x: Tensor, kernel: Tensor) -> Tensor:
    """The sum of neighbours weighted by a small odd square kernel, each channel on its own, mirrored at the border.

    A convolution from one channel to one is what libraries do worst (18 ms for 224 x 224 x 3 and a kernel of 21 x 21): instead each
    window gives the results of a square of TILE x TILE pixels as so many channels (2.5 ms).
    """
    (h, w), size = x.shape[-2:], kernel.shape[0]
    rows, columns = ((size // 2, size // 2 + -n % TILE) for n in (h, w))
    channels = pad(x, rows, columns, "mirror").flatten(0, 1)[:, None]
    # Shifted copies of the kernel: the window of all of them at once, read backwards.
    wide = F.pad(kernel.to(x), (TILE - 1,) * 4).unfold(0, size + TILE - 1, 1).unfold(1, size + TILE - 1, 1)
    weight = wide.flip(0, 1).reshape(TILE**2, 1, size + TILE - 1, size + TILE - 1)
    result = F.pixel_shuffle(F.conv2d(channels, weight, stride=TILE), TILE)
    return result[..., :h, :w].reshape(x.shape)


@lru_cache(maxsize=16)
def disk(radius: float, alias: float) -> Tensor:
    """A disk of `radius` pixels, smoothed by a Gaussian of `alias` over 3 x 3 pixels (5 x 5 above radius 8), float64.

    It sums to 1, or to 1.01 where the smoothing meets the border of the benchmark's array, which mirrors (radius 8 and above).
    """
    reach, smoothing = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    inside = (offsets[:, None] ** 2 + offsets**2 <= radius**2).double()
    kernel = gaussian_blur(inside / inside.sum(), alias, reach=smoothing, border="mirror")
    margin = max(0, reach - math.floor(radius) - smoothing)
    kernel = kernel[margin : 2 * reach + 1 - margin, margin : 2 * reach + 1 - margin]
    # Some are e^-100: numbers that float32 holds denormal, with which processors are twenty times as slow.
    return kernel.where(kernel > 1e-30, 0.0)


def motion_blur(x: Tensor, reach: int, sigma: float, angle: Tensor) -> Tensor:
    """Blur along a ray: x(p + k (sin a, cos a)), k = 0..2 reach, rounded to pixels, weighted by exp(-k^2 / 2 sigma^2).

    Args:
        x: shape (B, C, H, W).
        reach: half the length of the ray.
        sigma: pixels.
        angle: each image's, degrees, shape (B,).

    Reference: what ImageMagick's MotionBlurImage does; beyond the border lies the edge.
    """
    (h, w), far = x.shape[-2:], 2 * reach
    steps = torch.arange(far + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    radians = torch.deg2rad(angle.cpu().double())[:, None]
    down, right = ((steps * v - 0.5).ceil().long().add_(far).tolist() for v in (radians.sin(), radians.cos()))
    padded, blurred = F.pad(x, (far,) * 4, mode="replicate"), torch.zeros_like(x)
    # A moved image is a view of the padded one: gathering its pixels took four times as long. Images that move alike move together.
    alike = bool((angle == angle[:1]).all())
    for i in range(min(1, len(x)) if alike else len(x)):
        some = slice(None) if alike else slice(i, i + 1)
        source, total = padded[some], blurred[some]
        for weight, row, column in zip((weights / weights.sum()).tolist(), down[i], right[i], strict=True):
            total.add_(source[..., row : row + h, column : column + w], alpha=weight)
    return blurred


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
    (h, w), corners = x.shape[-2:], border == "mirror"
    # In double precision: float32 holds torch's positions, from -1 to 1, to a hundred-thousandth of a pixel only.
    places = ((columns.double(), w), (rows.double(), h))
    grid = [2 * at / max(1, n - 1) - 1 if corners else (2 * at + 1) / n - 1 for at, n in places]
    mode = {"edge": "border", "zero": "zeros"}.get(border, "reflection")
    found = F.grid_sample(x.double(), torch.stack(grid, dim=-1), padding_mode=mode, align_corners=corners)
    return found.to(x.dtype)


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
    return torch.mul(x, 255).add_(1e-4).floor_().clamp_(0, 255)


def luminance(x: Tensor) -> Tensor:
    """The brightness of colour images, shape (B, 1, H, W); grey ones are their own."""
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor(LUMINANCE).view(-1, 1, 1)).sum(dim=1, keepdim=True)
