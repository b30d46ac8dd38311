from __future__ import annotations

import heapq
import math

import numpy as np
import torch
from torch import Tensor

from layerwise.evaluation.corruptions import corrupt
from layerwise.evaluation.corruptions.draws import Draws
from layerwise.evaluation.corruptions.spatter import FAR, canny, chamfer, equalise, liquid_layer, shine


def drops() -> Tensor:
    return liquid_layer(torch.zeros(4, 1, 32, 32), 0.65, 0.3, 1.0, Draws(0, "spatter/3", torch.arange(4)))


def test_the_edge_of_a_step_is_one_line_thin_and_a_ramp_is_none() -> None:
    step, ramp = torch.zeros(1, 1, 10, 10), torch.arange(10.0).mul(10).expand(1, 1, 10, 10)
    step[..., 6:] = 100
    assert canny(step, 50, 150)[0, 0].any(dim=0).sum() == 1
    assert canny(step, 50, 150).sum() == 10
    assert torch.equal(canny(step.mT, 50, 150), canny(step, 50, 150).mT)
    # 8 x 10 is above 50 and below 150: no edge begins there.
    assert not canny(ramp, 50, 150).any()
    assert not canny(step * 0.3, 50, 150).any()


def test_a_weak_edge_continues_a_strong_one() -> None:
    x = torch.zeros(2, 1, 12, 10)
    # Sobel's norm is 4 x the step: 120 is weak, 200 strong.
    x[:, :, :, 5:] = 30
    x[0, :, :6, 5:] = 50
    edges = canny(x, 50, 150)
    assert edges[0].any(dim=2).all()
    assert not edges[1].any()


def test_distances_are_those_of_the_shortest_path() -> None:
    edges = torch.zeros(1, 1, 15, 26, dtype=torch.bool)
    edges[0, 0, 3, 2] = edges[0, 0, 11, 4] = True
    steps = [(a, b, 1.0) for a, b in ((0, 1), (0, -1), (1, 0), (-1, 0))]
    steps += [(a, b, 1.4) for a in (1, -1) for b in (1, -1)]
    steps += [(a, b, 2.1969) for x, y in ((1, 2), (2, 1)) for a in (x, -x) for b in (y, -y)]
    queue, expected = [(0.0, 3, 2), (0.0, 11, 4)], np.full((15, 26), math.inf)
    while queue:
        length, row, column = heapq.heappop(queue)
        if not (0 <= row < 15 and 0 <= column < 26) or expected[row, column] <= length:
            continue
        expected[row, column] = length
        for a, b, step in steps:
            heapq.heappush(queue, (length + step, row + a, column + b))
    found = chamfer(edges)[0, 0].double().numpy()
    np.testing.assert_allclose(np.minimum(found, FAR), np.minimum(expected, FAR), atol=1e-4)


def test_a_histogram_is_equalised_image_by_image() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 40, (3, 1, 9, 9), generator=generator).float() ** 1.3
    x = torch.cat([x.floor(), torch.full((1, 1, 9, 9), 20.0)])
    for image, found in zip(x, equalise(x), strict=True):
        flat = image.flatten().long().numpy()
        counts = np.bincount(flat, minlength=256)
        below = np.cumsum(counts)
        lowest = int(flat.min())
        expected = [
            20 if counts.max() == 81 else round((below[v] - counts[lowest]) * 255 / (81 - counts[lowest])) for v in flat
        ]
        assert found.flatten().tolist() == expected


def test_water_shines_only_where_there_is_liquid() -> None:
    liquid = drops()
    light = shine(liquid, 0.69)
    assert torch.equal(light.amax(dim=(1, 2, 3)), torch.ones(4))
    assert not light[liquid < 0.69].any()
    assert not shine(torch.zeros(1, 1, 32, 32), 0.69).any()


def test_mud_covers_and_water_brightens() -> None:
    grey = torch.full((8, 3, 32, 32), 0.5)
    mud, water = corrupt(grey, "spatter", 5), corrupt(grey, "spatter", 3)
    covered = (mud * 255).round().flatten(2).amin(dim=2).amin(dim=0)
    # 63, 42, 20 where nothing of the image is left.
    torch.testing.assert_close(covered, torch.tensor([63.0, 42.0, 20.0]), atol=1.01, rtol=0)
    assert (mud < 0.49).double().mean() > 0.02
    assert (water >= 127 / 255).all()
    assert (water > 0.6).double().mean() > 0.02
