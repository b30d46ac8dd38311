"""The nineteen corruptions by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from layerwise.core.modes import exact_arithmetic
from layerwise.data.checks import check_images
from layerwise.errors import ConfigError, DataError, did_you_mean
from layerwise.evaluation.corruptions import blur, digital, filters, noise, weather
from layerwise.evaluation.corruptions.draws import Draws
from layerwise.evaluation.corruptions.frost import Frost, load_frost
from layerwise.evaluation.corruptions.scene import Corruption, Scene
from layerwise.evaluation.corruptions.severities import EXTRA, SEVERITIES, STANDARD, table_for
from layerwise.evaluation.corruptions.spatter import spatter

_T = TypeVar("_T")

VERSION = 2
"""Raised whenever equal seeds would give other images."""

SMALLEST = 8
"""Pixels that a side must have."""

AT_ONCE = 3 << 17
"""Values that a core of the CPU works on at a time: they and what is made of them then stay in its cache."""

_MODULES = (noise, blur, weather, digital)
CORRUPTIONS: dict[str, Corruption] = {
    name: spatter if name == "spatter" else next(getattr(m, name) for m in _MODULES if hasattr(m, name))
    for name in (*STANDARD, *EXTRA)
}
"""The functions behind `corrupt`, by the benchmark's names."""


def corrupt(
    x: Tensor,
    name: str,
    severity: int,
    *,
    seed: int = 0,
    rows: Tensor | None = None,
    table: str = "auto",
    frost: Frost | None = None,
) -> Tensor:
    """Images under a corruption of the common-corruptions benchmark.

    Like the benchmark's, results are what uint8 files hold: x is rounded to multiples of 1/255 first, the result cut off to such
    (published ImageNet-C went through JPEG of quality 85 on top, which this does not do). An image's random numbers depend on the
    seed, the corruption, the severity and its number alone. All arithmetic is on the device of x, but for JPEG.

    Departures: the blurs' reaches, deviations and all other lengths in pixels are scaled by the shorter side over 32 (or 224), where
    the benchmark has a new table for each size; a lens without any liquid stays clean.

    Args:
        x: shape (B, C, H, W) with C 1 or 3 and sides of 8 pixels or more, in [0, 1].
        name: one of `STANDARD` or `EXTRA`.
        severity: 1 to 5.
        seed: of the random numbers.
        rows: the images' numbers in their data set, int64, shape (B,); by default 0..B-1.
        table: "cifar", "imagenet" or "auto", see `table_for`.
        frost: the pictures; by default `load_frost()`.

    Returns:
        Shape, type and device of x.

    Raises:
        ConfigError: an unknown name, severity or table.
        DataError: images of another shape, or outside [0, 1]; broken pictures of frost.

    Reference: Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations".

    >>> x = torch.full((2, 3, 32, 32), 0.5)
    >>> corrupt(x, "contrast", 5).sub(x).abs().max().item() < 1 / 255
    True
    """
    chosen = find(name, CORRUPTIONS, "corruption")
    if severity not in SEVERITIES:
        raise ConfigError(f"severity is {severity}; type 1, 2, 3, 4 or 5")
    x = x.detach()
    check_pixels(x)
    constants = table_for(x.shape[2], x.shape[3], table)
    if frost is None:
        frost = load_frost() if name == "frost" else Frost((), "none")
    rows = torch.arange(len(x), device=x.device) if rows is None else rows.to(x.device)
    scale, key = constants.scale(x.shape[2], x.shape[3]), f"{name}/{severity}"
    with exact_arithmetic(x.device), torch.no_grad():
        result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        parts = (torch.split(whole, _at_once(x)) for whole in (x, rows, result))
        for some, numbers, out in zip(*parts, strict=True):
            clean = torch.mul(some.to(torch.float32), 255).contiguous().round_().div_(255)
            scene = Scene(Draws(seed, key, numbers), scale, frost)
            changed = chosen(clean, constants.constants[name][severity - 1], scene)
            whole = changed if changed.dtype == torch.uint8 else filters.levels(changed)
            out.copy_(whole).div_(255)
    return result


def _at_once(x: Tensor) -> int:
    """How many images are changed together: on the CPU few, elsewhere all."""
    if x.device.type != "cpu":
        return max(1, len(x))
    return max(1, AT_ONCE * torch.get_num_threads() // x[0].numel()) if len(x) else 1


def find(name: str, known: Mapping[str, _T], kind: str) -> _T:
    """The entry of a registry.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in known:
        raise ConfigError(f"no {kind} is called {name!r}; {did_you_mean(name, known)}")
    return known[name]


def check_pixels(x: Tensor) -> None:
    """Accept images that corruptions can be applied to.

    Raises:
        DataError: x is not (B, 1 or 3, H, W) with sides of at least 8, or not floats in [0, 1].
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3) or min(x.shape[2:]) < SMALLEST or not x.is_floating_point():
        raise DataError(
            f"the images are {x.dtype} of shape {tuple(x.shape)}; corruptions take floats in [0, 1] of shape (B, 1 or 3, H, W) with "
            f"sides of at least {SMALLEST}"
        )
    check_images("the images", x, (0.0, 1.0))
