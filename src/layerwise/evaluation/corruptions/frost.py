"""Pictures of frost: the benchmark's, where the user has them, or generated ones."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from layerwise.data.files import data_root
from layerwise.data.splits import pil_tensor
from layerwise.errors import DataError
from layerwise.evaluation.corruptions import filters
from layerwise.evaluation.corruptions.draws import Draws

FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""The pictures that the benchmark draws from; its sixth is never drawn, by an index that is one short."""

LARGEST = 1 << 24
"""Pixels that a picture may have."""

_SIDE = 512
_MARGIN = 32
# Mean colour and deviation of the five pictures, levels.
_TINTS = (
    ((78, 149, 166), 19),
    ((201, 205, 214), 22),
    ((201, 205, 214), 22),
    ((138, 153, 165), 29),
    ((112, 123, 135), 43),
)


@final
@dataclass(frozen=True, eq=False)
class Frost:
    """Pictures to cut frost from.

    Args:
        pictures: uint8, each of shape (3, h, w).
        source: where they are from, for the record.
    """

    pictures: tuple[Tensor, ...]
    source: str

    def crops(self, draws: Draws, height: int, width: int, *, zoom: float) -> Tensor:
        """A random part of a random picture for each image, in [0, 1], shape (B, 3, height, width).

        Args:
            draws: the images' random numbers.
            height: rows.
            width: columns.
            zoom: factor on the pictures' size, raised where one would not cover the image.
        """
        device = draws.rows.device
        stack, sizes = _fitted(self, height, width, zoom, device)
        which = draws.integers("picture", len(stack))
        corner = draws.integers("corner", sizes[which] - torch.tensor([height, width], device=device), 2)
        rows = corner[:, :1] + torch.arange(height, device=device)
        columns = corner[:, 1:] + torch.arange(width, device=device)
        return stack[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2) / 255


@lru_cache(maxsize=4)
def _fitted(frost: Frost, height: int, width: int, zoom: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pictures larger than (height, width), as levels in a common frame (P, 3, h, w), and their own sizes (P, 2)."""
    resized = [_resized(picture, height, width, zoom) for picture in frost.pictures]
    sizes = torch.tensor([picture.shape[1:] for picture in resized])
    tallest, widest = sizes.amax(dim=0).tolist()
    padded = [F.pad(p, (0, widest - p.shape[2], 0, tallest - p.shape[1])) for p in resized]
    return torch.stack(padded).to(device), sizes.to(device)


def _resized(picture: Tensor, height: int, width: int, zoom: float) -> Tensor:
    """Linear interpolation without smoothing, as OpenCV's; at the benchmark's 0.2 it picks every fifth pixel."""
    zoom = max(zoom, (height + 1) / picture.shape[1], (width + 1) / picture.shape[2])
    if zoom == 1:
        return picture.float()
    size = (max(round(n * zoom), wanted + 1) for n, wanted in zip(picture.shape[1:], (height, width), strict=True))
    rows, columns = ((torch.arange(n, dtype=torch.float64) + 0.5) / zoom - 0.5 for n in size)
    rows, columns = torch.meshgrid(rows, columns, indexing="ij")
    return filters.sample(picture[None].double(), rows[None], columns[None], "edge")[0].round().float()


def load_frost(root: str | os.PathLike[str] | None = None) -> Frost:
    """The benchmark's pictures from ROOT/frost, or generated ones where that folder is not.

    Args:
        root: the folder of the data; else LAYERWISE_DATA, else ~/.cache/layerwise.

    Raises:
        DataError: the folder lacks a picture, or one is no picture.

    >>> import tempfile
    >>> load_frost(tempfile.mkdtemp()).source
    'generated texture, not the published pictures'
    """
    folder = data_root(root) / "frost"
    return read_frost(folder) if folder.is_dir() else generate_frost()


@cache
def read_frost(folder: Path) -> Frost:
    """The pictures `FILES` in a folder; kept in memory.

    Raises:
        DataError: one is missing, too large or no picture.
    """
    return Frost(tuple(_read(folder / name) for name in FILES), "the pictures in the folder frost")


def _read(path: Path) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if min(image.size) < 64 or math.prod(image.size) > LARGEST:
                raise DataError(
                    f"{path} has {image.width} x {image.height} pixels; a picture of frost has at least 64 a side and at most "
                    f"{LARGEST:,}: put the benchmark's there, or remove the folder to use generated frost"
                )
            # Not pasted on a ground: the benchmark drops the opacity.
            return pil_tensor(image.convert("RGB"), str(path))
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing; put the benchmark's pictures there (PyPI's imagecorruptions has them), or remove the folder to "
            "use generated frost"
        ) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no readable picture ({error}); put the benchmark's there") from None


@cache
def generate_frost() -> Frost:
    """Five textures of needles with the colours and contrasts of the five pictures; always the same, kept in memory."""
    draws, side = Draws(0, "frost", torch.arange(len(_TINTS))), _SIDE // 2 + 2 * _MARGIN
    noise = draws.normal("needles", 12, side, side)
    grown = [_needles(noise[:, i : i + 1], 15.0 * i) for i in range(noise.shape[1])]
    # Where needles of several directions meet, the strongest is seen.
    needles = torch.cat(grown, dim=1).amax(dim=1, keepdim=True)
    cloud = filters.gaussian_blur(draws.normal("cloud", 1, side, side), 12)
    relief = (_standard(needles) + 0.7 * _standard(cloud))[..., _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    relief = _standard(F.interpolate(relief, scale_factor=2, mode="bilinear"))
    pictures = [
        (relief[i] * deviation + relief.new_tensor(colour).view(3, 1, 1)).round().clamp(0, 255).to(torch.uint8)
        for i, (colour, deviation) in enumerate(_TINTS)
    ]
    return Frost(tuple(pictures), "generated texture, not the published pictures")


def _needles(noise: Tensor, angle: float) -> Tensor:
    return filters.motion_blur(noise, 12, 8.0, torch.full((len(noise),), angle))


def _standard(x: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True)
    return (x - mean) / deviation
