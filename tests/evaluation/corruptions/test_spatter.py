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


def naive_canny(level: Tensor) -> set[tuple[int, int]]:
    """Pixels of the edges of one image (H, W), pixel by pixel."""
    wide = np.pad(level.double().numpy(), 1, mode="edge")
    h, w = level.shape
    window = {(r, c): wide[r : r + 3, c : c + 3] for r in range(h) for c in range(w)}
    smooth = np.array([1, 2, 1])
    slope = {at: (smooth @ (v[2] - v[0]), smooth @ (v[:, 2] - v[:, 0])) for at, v in window.items()}
    norm = {at: abs(down) + abs(right) for at, (down, right) in slope.items()}
    ridge = set()
    for (r, c), (down, right) in slope.items():
        sector = round(math.degrees(math.atan2(down, right)) / 45) % 4
        ahead, behind = (norm.get((r + sign * (sector > 0), c + sign * (1, 1, 0, -1)[sector]), 0.0) for sign in (1, -1))
        here = norm[r, c]
        # Of two equal neighbours along rows or columns the later one is kept.
        if here > behind and (here >= ahead if sector in (0, 2) else here > ahead):
            ridge.add((r, c))
    queue = [at for at in ridge if norm[at] > 150]
    edges = set(queue)
    while queue:
        r, c = queue.pop()
        for at in ((r + a, c + b) for a in (-1, 0, 1) for b in (-1, 0, 1)):
            if at in ridge - edges and norm[at] > 50:
                edges.add(at)
                queue.append(at)
    return edges


def test_edges_of_drops_are_those_found_pixel_by_pixel() -> None:
    level = (drops() * 255).floor().clamp(0, 255)
    level = level.where(level >= 176, 0.0)
    for image, edges in zip(level[:, 0], canny(level, 50, 150)[:, 0], strict=True):
        found = {(int(r), int(c)) for r, c in edges.nonzero()}
        assert found == naive_canny(image)
        assert len(found) > 100


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
