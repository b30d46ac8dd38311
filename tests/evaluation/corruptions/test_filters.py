from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from layerwise.evaluation.corruptions import filters

Array = npt.NDArray[np.float64]
_NUMPY = {"edge": "edge", "mirror": "reflect", "reflect": "symmetric"}


def image(h: int = 9, w: int = 7, seed: int = 0) -> Tensor:
    return torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(seed))


def padded(channel: Tensor, reach: int, border: str) -> Array:
    return np.pad(channel.double().numpy(), reach, mode=_NUMPY[border])  # type: ignore[call-overload, no-any-return]


def correlated(channel: Tensor, kernel: Array, border: str) -> Array:
    reach = len(kernel) // 2
    wide, out = padded(channel, reach, border), np.zeros(tuple(channel.shape))
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            out[row, column] = (wide[row : row + len(kernel), column : column + len(kernel)] * kernel).sum()
    return out


@pytest.mark.parametrize("border", ["edge", "mirror", "reflect"])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0, 30.0])
def test_gaussian_blur_is_the_sum_over_a_padded_image(border: filters.Border, sigma: float) -> None:
    x, truncate = image(), 3.0
    reach = int(truncate * sigma + 0.5)
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = np.outer(line, line) / line.sum() ** 2
    blurred = filters.gaussian_blur(x, sigma, truncate=truncate, border=border)
    np.testing.assert_allclose(blurred[1, 2].numpy(), correlated(x[1, 2], kernel, border), atol=1e-6)


def test_correlate_neither_turns_nor_mixes_channels() -> None:
    x, kernel = image(), torch.arange(9.0).view(3, 3)
    found = filters.correlate(x, kernel)
    for row in range(2):
        for channel in range(3):
            expected = correlated(x[row, channel], kernel.double().numpy(), "mirror")
            np.testing.assert_allclose(found[row, channel].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(("h", "w", "size"), [(12, 8, 1), (9, 7, 5), (8, 11, 21)])
def test_correlate_takes_images_and_kernels_of_any_size(h: int, w: int, size: int) -> None:
    x = image(h, w)
    kernel = torch.rand(size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = correlated(x[1, 2], kernel.numpy(), "mirror")
    np.testing.assert_allclose(filters.correlate(x, kernel)[1, 2].numpy(), expected, rtol=1e-5)


def test_a_pad_may_be_larger_than_the_image() -> None:
    x = image(3, 2)
    found = filters.pad(x, (11, 11), (11, 11), "mirror")
    np.testing.assert_array_equal(found[0, 0].double().numpy(), padded(x[0, 0], 11, "mirror"))
    assert torch.equal(filters.pad(x, (2, 5), (0, 3), "mirror"), found[..., 9:19, 11:16])


@pytest.mark.parametrize(
    ("radius", "alias"), [(0.3, 0.4), (1.5, 0.1), (3, 0.1), (6, 0.5), (8, 0.5), (9.5, 0.5), (10, 0.5)]
)
def test_a_disk_is_a_smoothed_circle(radius: float, alias: float) -> None:
    kernel = filters.disk(radius, alias)
    size, middle = len(kernel), len(kernel) // 2
    assert size % 2 == 1
    if radius < 8:
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-12)
    else:
        assert 1 < float(kernel.sum()) < 1.014
    torch.testing.assert_close(kernel, kernel.mT.flip(0))
    offsets = np.hypot(*np.mgrid[-middle : middle + 1, -middle : middle + 1])
    deep = offsets <= radius - 3
    if deep.any():
        assert kernel.numpy()[deep] == pytest.approx(1 / (np.hypot(*np.mgrid[-20:21, -20:21]) <= radius).sum())
    assert np.all(kernel.numpy()[offsets > radius + 3] == 0)
    # Denormal numbers are many times as slow.
    assert not ((kernel > 0) & (kernel.float() < torch.finfo(torch.float32).tiny)).any()


@pytest.mark.parametrize("angle", [-170.0, -45.0, 0.0, 30.0, 90.0])
def test_motion_blur_is_a_weighted_sum_along_a_ray(angle: float) -> None:
    x, reach, sigma = image(), 4, 1.7
    weights = np.exp(-0.5 * (np.arange(2 * reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    expected = np.zeros((9, 7))
    for row in range(9):
        for column in range(7):
            for k, weight in enumerate(weights):
                r = row + math.ceil(k * math.sin(math.radians(angle)) - 0.5)
                c = column + math.ceil(k * math.cos(math.radians(angle)) - 0.5)
                expected[row, column] += weight * float(x[1, 0, min(max(r, 0), 8), min(max(c, 0), 6)])
    # The other image turns elsewhere, or along.
    for other in (12.0, angle):
        found = filters.motion_blur(x, reach, sigma, torch.tensor([other, angle]))
        np.testing.assert_allclose(found[1, 0].numpy(), expected, atol=1e-6)


def test_samples_at_pixels_are_the_pixels_and_between_them_linear() -> None:
    x = image()
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    at = rows.expand(2, -1, -1), columns.expand(2, -1, -1)
    for border in ("edge", "mirror", "reflect", "zero"):
        torch.testing.assert_close(filters.sample(x, *at, border), x)
    between = filters.sample(x, at[0] + 0.25, at[1], "edge")
    torch.testing.assert_close(between[..., :-1, :], 0.75 * x[..., :-1, :] + 0.25 * x[..., 1:, :])


@pytest.mark.parametrize(("border", "expected"), [("edge", 0), ("mirror", 1), ("reflect", 0), ("zero", None)])
def test_samples_outside_follow_the_border(border: filters.Border, expected: int | None) -> None:
    x = image()
    found = filters.sample(x, torch.full((2, 1, 1), 4.0), torch.full((2, 1, 1), -1.0), border)[..., 0, 0]
    torch.testing.assert_close(found, torch.zeros(2, 3) if expected is None else x[..., 4, expected])


def test_a_zoom_keeps_the_corners_of_the_middle_on_the_corners() -> None:
    x = image(8, 8)
    # 8 / 2 = 4 pixels of the middle on 8.
    zoomed = filters.clipped_zoom(x, 2.0)
    assert zoomed.shape == x.shape
    positions = torch.linspace(2, 5, 8)
    rows, columns = torch.meshgrid(positions, positions, indexing="ij")
    expected = filters.sample(x, rows.expand(2, -1, -1), columns.expand(2, -1, -1), "edge")
    torch.testing.assert_close(zoomed, expected)
    torch.testing.assert_close(filters.clipped_zoom(x, 1.0), x)


def test_whole_levels_survive_float32() -> None:
    whole = torch.arange(256.0)
    assert torch.equal(filters.levels(whole / 255), whole)
    assert torch.equal(filters.levels(whole / 255 - 0.001), (whole - 1).clamp(min=0))
    assert filters.levels(torch.tensor([-3.0, 7.0])).tolist() == [0, 255]


def test_grey_is_its_own_luminance() -> None:
    grey = image()[:, :1]
    assert filters.luminance(grey) is grey
    torch.testing.assert_close(filters.luminance(grey.expand(-1, 3, -1, -1)), grey)
