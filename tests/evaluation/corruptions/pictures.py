"""Real pictures that every machine has, cut with whole numbers only."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor


def _pictures() -> list[Tensor]:
    return [torch.from_numpy(np.array(load_sample_image(f"{name}.jpg"))) for name in ("china", "flower")]


def large() -> Tensor:
    """Two images, uint8, (2, 3, 224, 224): rows 101 to 324 and columns 208 to 431 of scikit-learn's pictures."""
    return torch.stack([picture[101:325, 208:432].permute(2, 0, 1) for picture in _pictures()])


def small() -> Tensor:
    """Thirty images, uint8, (30, 3, 32, 32): tiles of the same pictures made smaller by 4 with means over 4 x 4 pixels, cut off."""
    tiles = []
    for picture in _pictures():
        means = picture[:416].long().view(104, 4, 160, 4, 3).sum(dim=(1, 3)) // 16
        tiles.append(means[:96].view(3, 32, 5, 32, 3).permute(0, 2, 4, 1, 3).reshape(15, 3, 32, 32))
    return torch.cat(tiles).to(torch.uint8)


def unit(images: Tensor) -> Tensor:
    """Pixels in [0, 1]."""
    return images.float() / 255
