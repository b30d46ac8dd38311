"""The perturbation sequences of CIFAR-10-P: one image in many frames, each a little different from the last."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from layerwise.core.modes import exact_arithmetic
from layerwise.evaluation.corruptions import filters, noise, weather
from layerwise.evaluation.corruptions.corrupt import check_pixels, find
from layerwise.evaluation.corruptions.draws import Draws
from layerwise.evaluation.corruptions.frost import Frost
from layerwise.evaluation.corruptions.scene import Scene
from layerwise.evaluation.corruptions.severities import CIFAR
from layerwise.evaluation.corruptions.spatter import WATER, colour_of, liquid_layer, shine

Frames: TypeAlias = Callable[[Tensor, Scene], Iterable[Tensor]]
"""Images (B, C, H, W) and their scene give the frames one after the other, each of that shape, not yet cut to whole levels."""


def gaussian_noise(x: Tensor, scene: Scene) -> Iterable[Tensor]:
    """The image, then 30 times x + 0.02 n."""
    yield x
    yield from (x + 0.02 * scene.draws.normal(f"frame {i}", *x.shape[1:]) for i in range(1, 31))


def speckle_noise(x: Tensor, scene: Scene) -> Iterable[Tensor]:
    """The image, then 30 times x + 0.05 x n."""
    yield x
    yield from (x + x * 0.05 * scene.draws.normal(f"frame {i}", *x.shape[1:]) for i in range(1, 31))


def shot_noise(x: Tensor, scene: Scene) -> Iterable[Tensor]:
    """The image, then 30 times Poisson(700 x) / 700."""
    yield x
    for i in range(1, 31):
        yield noise.poisson(x, 700, scene.draws.uniform(f"frame {i}", *x.shape[1:])) / 700


def motion_blur(x: Tensor, scene: Scene) -> Iterable[Tensor]:
    """A ray of 2 * 6 + 1 pixels and deviation 1.8 that turns from -180 to 0 degrees."""
    for i in range(21):
        angle = torch.full((len(x),), (i - 20) * 9.0, device=x.device)
        yield (filters.motion_blur(x, scene.pixels(6), 1.8 * scene.scale, angle) * 255).round() / 255


def gaussian_blur(x: Tensor, scene: Scene) -> Iterable[Tensor]:
    """Deviations of 0.3 to 0.75 pixels."""
    for i in range(31):
        yield filters.gaussian_blur(x, (0.3 + 0.015 * i) * scene.scale, truncate=7)


def zoom_blur(x: Tensor, scene: Scene) -> Iterable[Tensor]:
    """The mean of enlargements by 1, 1.004, ..., up to 1.12."""
    del scene
    total = x
    yield x
    for i in range(1, 31):
        total = total + _affine(x, scale=1 + 0.004 * i)
        yield total / (i + 1)


def snow(x: Tensor, scene: Scene) -> Iterable[Tensor]:
    """Flakes whose fall turns from -150 to -30 degrees."""
    flakes = weather.snow_flakes(x, 0.05, 0.3, max(1.0, 2 * scene.scale), 0.5, scene.draws)
    white = weather.whiten(x, 0.85)
    for i in range(31):
        angle = torch.full((len(x),), i * 4.0 - 150, device=x.device)
        yield white + weather.fallen(flakes, scene.pixels(10), 2 * scene.scale, angle)


def spatter(x: Tensor, scene: Scene) -> Iterable[Tensor]:
    """Water that runs down by 0.8 pixels a frame."""
    liquid = liquid_layer(x, 0.6, 0.265, 1.75 * scene.scale, scene.draws)
    liquid = liquid.where(liquid >= 0.7, 0.0)
    colour = colour_of(x, WATER)
    for _ in range(31):
        yield x + 0.6 * shine(liquid, 0.0) * colour
        above = torch.cat([torch.zeros_like(liquid[..., :1, :]), liquid[..., :-1, :]], dim=-2)
        liquid = 0.2 * liquid + 0.8 * above


def brightness(x: Tensor, scene: Scene) -> Iterable[Tensor]:
    """V + -0.225 to 0.225."""
    return (weather.brightness(x, ((i - 15) * 1.5 / 100,), scene) for i in range(31))


def translate(x: Tensor, scene: Scene) -> Iterable[Tensor]:
    """Seven pixels to the left to eight to the right, black behind."""
    columns = torch.arange(x.shape[-1], device=x.device)
    for i in range(16):
        at = columns - round((i - 7) * scene.scale)
        inside = (at >= 0) & (at < x.shape[-1])
        yield x.index_select(-1, at.clamp(0, x.shape[-1] - 1)) * inside


def rotate(x: Tensor, scene: Scene) -> Iterable[Tensor]:
    """-15 to 15 degrees."""
    del scene
    return (_affine(x, angle=i - 15.0) for i in range(31))


def shear(x: Tensor, scene: Scene) -> Iterable[Tensor]:
    """-15 to 15 degrees."""
    del scene
    return (_affine(x, shear=i - 15.0) for i in range(31))


def scale(x: Tensor, scene: Scene) -> Iterable[Tensor]:
    """Sizes of 0.7 to 1.3."""
    del scene
    return (_affine(x, scale=(i * 2 + 70) / 100) for i in range(31))


def tilt(x: Tensor, scene: Scene) -> Iterable[Tensor]:
    """Turned out of the plane by -11.25 to 11.25 degrees around both axes, seen from the length of its diagonal."""
    del scene
    h, w = x.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    place = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1).double()
    for i in range(31):
        u, v, depth = (place @ torch.linalg.inv(_perspective(h, w, math.radians(0.75 * (i - 15)))).mT).unbind(-1)
        yield (_sample(x, v / depth, u / depth, "zero") * 255).round() / 255


def _perspective(h: int, w: int, angle: float) -> Tensor:
    """The (3, 3) map of pixels (x, y, 1) that turns by `angle` around the x and the y axis."""
    f, cos, sin = math.hypot(w, h), math.cos(angle), math.sin(angle)
    to_space = [[1, 0, -w / 2], [0, 1, -h / 2], [0, 0, 1], [0, 0, 1]]
    around_x = [[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1]]
    around_y = [[cos, 0, -sin, 0], [0, 1, 0, 0], [sin, 0, cos, 0], [0, 0, 0, 1]]
    away = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, f], [0, 0, 0, 1]]
    to_plane = [[f, 0, w / 2, 0], [0, f, h / 2, 0], [0, 0, 1, 0]]
    steps = [torch.tensor(step, dtype=torch.float64) for step in (to_plane, away, around_x, around_y, to_space)]
    whole: Tensor = torch.linalg.multi_dot(steps)
    return whole


def _affine(x: Tensor, *, angle: float = 0.0, scale: float = 1.0, shear: float = 0.0) -> Tensor:
    """Rotated, sheared (degrees) and enlarged around pixel (H / 2, W / 2), black outside, levels cut off as Pillow does.

    The centre is the one of the torchvision of 2018, half a pixel beyond the image's own.
    """
    h, w = x.shape[-2:]
    turn, lean = math.radians(angle), math.radians(angle + shear)
    factor = 1 / (scale * math.cos(math.radians(shear)))
    down = torch.arange(h, dtype=torch.float64)[:, None] - h / 2
    right = torch.arange(w, dtype=torch.float64) - w / 2
    rows = factor * (math.cos(turn) * down - math.sin(turn) * right) + h / 2
    columns = factor * (math.cos(lean) * right + math.sin(lean) * down) + w / 2
    inside = (rows >= -0.5) & (rows < h - 0.5) & (columns >= -0.5) & (columns < w - 0.5)
    return filters.levels(_sample(x, rows, columns, "edge") * inside.to(x)) / 255


def _sample(x: Tensor, rows: Tensor, columns: Tensor, border: Literal["edge", "zero"]) -> Tensor:
    """All images at the same positions (h, w)."""
    rows, columns = (v.to(x).expand(len(x), -1, -1) for v in (rows, columns))
    return filters.sample(x, rows, columns, border)


STANDARD_SEQUENCES: dict[str, tuple[Frames, int]] = {
    "gaussian_noise": (gaussian_noise, 31),
    "shot_noise": (shot_noise, 31),
    "motion_blur": (motion_blur, 21),
    "zoom_blur": (zoom_blur, 31),
    "snow": (snow, 31),
    "brightness": (brightness, 31),
    "translate": (translate, 16),
    "rotate": (rotate, 31),
    "tilt": (tilt, 31),
    "scale": (scale, 31),
}
"""The ten that mFR is the mean over, and how many frames each has."""

EXTRA_SEQUENCES: dict[str, tuple[Frames, int]] = {
    "speckle_noise": (speckle_noise, 31),
    "gaussian_blur": (gaussian_blur, 31),
    "spatter": (spatter, 31),
    "shear": (shear, 31),
}
"""The four of the benchmark's validation set."""

SEQUENCES = STANDARD_SEQUENCES | EXTRA_SEQUENCES


def is_noise(name: str) -> bool:
    """Whether the frames of a sequence are independent, so that the benchmark compares each with the first."""
    return "noise" in name


def perturb(x: Tensor, name: str, *, seed: int = 0, rows: Tensor | None = None) -> Iterator[Tensor]:
    """A sequence of frames for each image, as CIFAR-10-P makes them, one frame of all images after the other.

    The numbers are those of `make_cifar_p.py` at difficulty 1; lengths in pixels are scaled by the shorter side over 32. As in
    `corrupt`, x is rounded to multiples of 1/255 and so are the frames; random numbers depend on the seed, the sequence and the
    image's number alone.

    Args:
        x: shape (B, C, H, W) with C 1 or 3 and sides of 8 pixels or more, in [0, 1].
        name: one of `SEQUENCES`.
        seed: of the random numbers.
        rows: the images' numbers in their data set, int64, shape (B,); by default 0..B-1.

    Returns:
        An iterator of frames, each of the shape, type and device of x.

    Raises:
        ConfigError: an unknown name.
        DataError: images of another shape, or outside [0, 1].

    Reference: Hendrycks and Dietterich 2019, section 3.2; https://github.com/hendrycks/robustness, ImageNet-P/create_p.

    >>> frames = list(perturb(torch.rand(2, 3, 32, 32), "translate"))
    >>> len(frames), torch.equal(frames[7][..., 2:], frames[5][..., :-2])
    (16, True)
    """
    frames, _ = find(name, SEQUENCES, "sequence")
    x = x.detach()
    check_pixels(x)
    rows = torch.arange(len(x), device=x.device) if rows is None else rows.to(x.device)
    scene = Scene(Draws(seed, f"{name}/sequence", rows), CIFAR.scale(x.shape[2], x.shape[3]), Frost((), "none"))
    clean = (x.to(torch.float32) * 255).round() / 255
    return _whole(iter(frames(clean, scene)), x)


def _whole(frames: Iterator[Tensor], like: Tensor) -> Iterator[Tensor]:
    while True:
        with exact_arithmetic(like.device), torch.no_grad():
            frame = next(frames, None)
            if frame is None:
                return
            frame = filters.levels(frame).to(like.dtype) / 255
        yield frame
