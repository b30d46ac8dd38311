"""What cameras and codecs do: contrast, elastic transform, pixelate, JPEG, saturate."""

from __future__ import annotations

import io
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

from layerwise.evaluation.corruptions import filters
from layerwise.evaluation.corruptions.scene import Scene
from layerwise.evaluation.corruptions.severities import Constants


def contrast(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """(x - m) c + m, m each channel's mean over the image."""
    del scene
    means = x.mean(dim=(2, 3), keepdim=True)
    return (x - means) * c[0] + means


def saturate(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """c0 S + c1 in hue, saturation and value, S in [0, 1]; images of one channel have no saturation and stay as they are.

    Grey pixels have the hue of red, as in the benchmark: a summand c1 tinges them.
    """
    del scene
    if x.shape[1] == 1:
        return x
    value = x.amax(dim=1, keepdim=True)
    lack = value - x
    most = lack.amax(dim=1, keepdim=True)
    saturation = most / value.where(value > 0, 1.0)
    red = x.new_tensor([0.0, 1.0, 1.0]).view(3, 1, 1)
    shape = torch.where(most > 0, lack / most.where(most > 0, 1.0), red)
    return value * (1 - (saturation * c[0] + c[1]).clamp(0, 1) * shape)


def elastic_transform(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """An affine map that moves three points by up to c2, then displacements: c0 times uniform noise blurred by c1.

    The field's amplitude falls with its deviation in pixels; so c0 is scaled by the square, displacements by the scale.
    """
    h, w = x.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    place = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1).to(x)
    origin = place @ _backward(scene, h, w, c[2] * scene.scale).mT[:, None]
    moved = filters.sample(x, origin[..., 1], origin[..., 0], "mirror")
    noise = scene.draws.uniform("field", 2, h, w) * 2 - 1
    field = filters.gaussian_blur(noise, c[1] * scene.scale, truncate=3, border="reflect")
    field = field * (c[0] * scene.scale**2)
    return filters.sample(moved, place[..., 1] + field[:, 1], place[..., 0] + field[:, 0], "reflect")


def _backward(scene: Scene, h: int, w: int, shift: float) -> Tensor:
    """For each image the (2, 3) affine map from its new to its old points (x, y)."""
    middle = torch.tensor([h // 2, w // 2], dtype=torch.float64, device=scene.draws.rows.device)
    arm = min(h, w) // 3
    before = middle + arm * middle.new_tensor([[1, 1], [1, -1], [-1, -1]])
    after = before + (scene.draws.uniform("corners", 3, 2).double() * 2 - 1) * shift
    ones = torch.ones_like(after[..., :1])
    forward = torch.cat([after, ones], dim=-1)
    solution: Tensor = torch.linalg.solve(forward, before)
    return solution.mT.float()


def pixelate(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """The image made smaller by c and large again, both with a box filter."""
    del scene
    (down, rows), (right, columns) = (_boxes(n, max(1, int(n * c[0])), x.device) for n in x.shape[-2:])
    # As Pillow does it: first along rows, whole levels after each direction, halves upwards.
    along = (x @ right.mT).mul_(255).add_(0.5001).floor_()
    small = (down @ along).add_(0.5001).floor_().to(torch.uint8)
    return small.index_select(-1, columns).index_select(-2, rows)


@lru_cache(maxsize=64)
def _boxes(size: int, wanted: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What makes `size` pixels smaller, the matrix of `_box`, and which of the small ones each large one shows then.

    The box around the centre of a large pixel holds that of a single small one.
    """
    return _box(size, wanted, device), _box(wanted, size, device).argmax(dim=1)


def _box(size: int, wanted: int, device: torch.device) -> Tensor:
    """(wanted, size) matrix of means over the pixels whose centre lies within half a new pixel of the new centre."""
    ratio = size / wanted
    centres = (torch.arange(wanted, dtype=torch.float64, device=device)[:, None] + 0.5) * ratio
    away = (torch.arange(size, device=device) + 0.5 - centres) / max(ratio, 1.0)
    inside = ((away > -0.5) & (away <= 0.5)).float()
    return inside / inside.sum(dim=1, keepdim=True)


def jpeg_compression(x: Tensor, c: Constants, scene: Scene) -> Tensor:
    """The image through Pillow's JPEG encoder at quality c and back: one by one on the CPU, since a codec is a program.

    Codecs let other threads run, so that as many are at work as torch has threads.
    """
    from PIL import Image

    del scene
    pixels = torch.mul(x, 255).round_().to("cpu", torch.uint8)

    def code(bands: Tensor) -> None:
        grey = [Image.fromarray(band) for band in bands.numpy()]
        file = io.BytesIO()
        (grey[0] if len(grey) == 1 else Image.merge("RGB", grey)).save(file, "JPEG", quality=int(c[0]))
        for band, decoded in zip(bands.numpy(), Image.open(file).split(), strict=True):
            band[:] = decoded

    threads = min(torch.get_num_threads(), len(pixels))
    if threads < 2:
        deque(map(code, pixels), maxlen=0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            deque(pool.map(code, pixels), maxlen=0)
    return pixels.to(x.device)
