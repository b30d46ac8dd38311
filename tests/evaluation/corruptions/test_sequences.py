from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from layerwise.errors import ConfigError, DataError
from layerwise.evaluation.corruptions import EXTRA_SEQUENCES, SEQUENCES, STANDARD_SEQUENCES, filters, perturb
from layerwise.evaluation.corruptions.sequences import is_noise
from tests.evaluation.corruptions.pictures import small, unit


def frames(x: Tensor, name: str, **options: object) -> Tensor:
    """Shape (B, frames, C, H, W)."""
    return torch.stack(list(perturb(x, name, **options)), dim=1)  # type: ignore[arg-type]


def pillow(image: Tensor, *, angle: float = 0, scale: float = 1, shear: float = 0) -> Tensor:
    """Levels of a (3, 32, 32) image turned, enlarged and sheared as by the torchvision of 2018."""
    a, b = math.radians(angle), math.radians(angle + shear)
    size = scale * (math.cos(b) * math.cos(a) + math.sin(b) * math.sin(a))
    matrix = [math.cos(b) / size, math.sin(b) / size, 0.0, -math.sin(a) / size, math.cos(a) / size, 0.0]
    matrix[2] = 16.5 - (matrix[0] + matrix[1]) * 16.5
    matrix[5] = 16.5 - (matrix[3] + matrix[4]) * 16.5
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    moved = picture.transform((32, 32), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(moved)).permute(2, 0, 1).float()


def test_the_sequences_are_the_benchmark_s_with_its_lengths() -> None:
    assert list(STANDARD_SEQUENCES) == [
        "gaussian_noise",
        "shot_noise",
        "motion_blur",
        "zoom_blur",
        "snow",
        "brightness",
        "translate",
        "rotate",
        "tilt",
        "scale",
    ]
    assert set(EXTRA_SEQUENCES) == {"speckle_noise", "gaussian_blur", "spatter", "shear"}
    lengths = {name: length for name, (_, length) in SEQUENCES.items()}
    assert {name: n for name, n in lengths.items() if n != 31} == {"motion_blur": 21, "translate": 16}
    assert [name for name in SEQUENCES if is_noise(name)] == ["gaussian_noise", "shot_noise", "speckle_noise"]


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 20)])
def test_frames_are_whole_levels_and_belong_to_their_image(name: str, shape: tuple[int, int, int]) -> None:
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    found = frames(x, name)
    assert found.shape == (3, SEQUENCES[name][1], *shape)
    torch.testing.assert_close(found * 255, (found * 255).round(), atol=1e-4, rtol=0)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    alone = frames(x[2:], name, rows=torch.tensor([2]))[0]
    assert ((alone - found[2]).abs() > 1e-4).double().mean() < 1e-3
    chance = name in ("gaussian_noise", "shot_noise", "speckle_noise", "snow", "spatter")
    assert torch.equal(frames(x, name, seed=1), found) != chance


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "speckle_noise", "zoom_blur"])
def test_a_sequence_that_begins_clean_begins_clean(name: str) -> None:
    x = unit(small())[:4]
    assert torch.equal(frames(x, name)[:, 0], x)


def test_noise_frames_have_their_deviations() -> None:
    x = torch.full((10, 3, 32, 32), 128 / 255)
    for name, deviation in (
        ("gaussian_noise", 0.02),
        ("speckle_noise", 0.05 * 128 / 255),
        ("shot_noise", math.sqrt(128 / 255 / 700)),
    ):
        noise = frames(x, name)[:, 1:].double()
        expected = math.sqrt(deviation**2 + 1 / (12 * 255**2))
        assert noise.std().item() == pytest.approx(expected, rel=4.5 / math.sqrt(2 * noise.numel()) + 2e-3)
        assert not torch.equal(noise[:, 0], noise[:, 1])


@pytest.mark.parametrize(
    ("name", "index", "angle", "scale", "shear"),
    [
        ("rotate", 3, -12, 1, 0),
        ("rotate", 28, 13, 1, 0),
        ("scale", 0, 0, 0.7, 0),
        ("scale", 29, 0, 1.28, 0),
        ("shear", 4, 0, 1, -11),
    ],
)
def test_affine_frames_are_pillow_s(name: str, index: int, angle: float, scale: float, shear: float) -> None:
    images = small()[:3]
    found = (frames(unit(images), name)[:, index] * 255).round()
    expected = torch.stack([pillow(image, angle=angle, scale=scale, shear=shear) for image in images])
    # Pillow cuts off or rounds, from version to version; at the rim a last bit decides what is black.
    assert ((found - expected).abs() > 1.01).double().mean() < 0.005


@pytest.mark.parametrize("index", [0, 10, 30])
def test_tilted_frames_are_a_perspective_view(index: int) -> None:
    images = small()[:3]
    angle, f = math.radians(0.75 * (index - 15)), math.hypot(32, 32)

    def project(x: float, y: float) -> tuple[float, float]:
        """A point of the picture's plane turned in space around its middle and seen from the distance f."""
        x, y = x - 16, y - 16
        # The benchmark puts the plane at depth 1.
        x, y, z = x * math.cos(angle) - math.sin(angle), y, x * math.sin(angle) + math.cos(angle)
        y, z = y * math.cos(angle) - z * math.sin(angle), y * math.sin(angle) + z * math.cos(angle)
        return f * x / (z + f) + 16, f * y / (z + f) + 16

    corners = [(4.0, 4.0), (27.0, 5.0), (26.0, 25.0), (3.0, 26.0)]
    rows, right = [], []
    for (x, y), (u, v) in zip(corners, [project(*corner) for corner in corners], strict=True):
        rows += [[u, v, 1, 0, 0, 0, -x * u, -x * v], [0, 0, 0, u, v, 1, -y * u, -y * v]]
        right += [x, y]
    a = np.append(np.linalg.solve(np.array(rows), np.array(right)), 1).reshape(3, 3)
    found = (frames(unit(images), "tilt")[:, index] * 255).round()
    # Pillow's pixel centres lie at one half.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = half @ a @ np.linalg.inv(half)
    for image, changed in zip(images, found, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        data = (matrix / matrix[2, 2]).flatten()[:8].tolist()
        moved = picture.transform((32, 32), Image.Transform.PERSPECTIVE, data, Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.array(moved)).permute(2, 0, 1).float()
        inside = slice(6, 26)
        assert (changed - expected)[:, inside, inside].abs().max() <= 1.01


def test_translated_frames_leave_black_behind() -> None:
    x = unit(small())[:2]
    found = frames(x, "translate")
    assert torch.equal(found[:, 7], x)
    assert torch.equal(found[:, 0, :, :, :25], x[..., 7:])
    assert not found[:, 0, :, :, 25:].any()
    assert torch.equal(found[:, 15, :, :, 8:], x[..., :24])
    assert not found[:, 15, :, :, :8].any()


def test_the_middle_frame_is_the_image_where_nothing_has_changed_yet() -> None:
    x = unit(small())[:2]
    for name in ("rotate", "scale", "shear", "brightness"):
        torch.testing.assert_close(frames(x, name)[:, 15], x, atol=1.01 / 255, rtol=0)


def test_water_runs_down() -> None:
    grey = torch.full((8, 3, 32, 32), 0.3)
    light = frames(grey, "spatter").double().sub(0.3).clamp(min=0).sum(dim=2)

    def fall(frame: int) -> int:
        """Rows by which the first frame has to be moved to look most like another one, the rows that both have."""
        pairs = [(light[:, 0, : 32 - rows], light[:, frame, rows:]) for rows in range(16)]
        likeness = [float((a * b).sum() / (a.norm() * b.norm())) for a, b in pairs]
        return likeness.index(max(likeness))

    # 0.8 pixels a frame, in whole rows; the highlight lies up to one row beside the liquid.
    assert fall(5) in (4, 5)
    assert fall(10) in (8, 9)


def test_blurs_turn_and_widen_as_the_benchmark_s() -> None:
    x = unit(small())[:2]
    turned, widened = frames(x, "motion_blur") * 255, frames(x, "gaussian_blur") * 255
    for index, angle in ((0, -180.0), (10, -90.0), (17, -27.0), (20, 0.0)):
        expected = filters.motion_blur(x, 6, 1.8, torch.full((2,), angle)) * 255
        assert (turned[:, index] - expected).abs().max() < 0.51
    for index, sigma in ((0, 0.3), (12, 0.48), (30, 0.75)):
        lack = filters.gaussian_blur(x, sigma, truncate=7) * 255 - widened[:, index]
        assert lack.min() > -0.01
        assert lack.max() < 1.01


def test_snow_falls_ever_more_to_the_other_side() -> None:
    falling = frames(torch.zeros(20, 1, 32, 32), "snow")[:, :, 0]
    falling = falling - falling.amin(dim=(2, 3), keepdim=True)

    def along(index: int, right: int) -> float:
        """How much alike pixels are two rows down and so many columns to the right."""
        a, b = falling[:, index, :-2], falling[:, index, 2:].roll(-right, dims=-1)
        return float((a * b)[..., 3:-3].sum())

    # The rays point from -150 over -90 to -30 degrees, rows counted downwards.
    assert along(5, 1) > 1.2 * along(5, -1)
    assert along(15, 0) > 1.2 * max(along(15, 1), along(15, -1))
    assert along(25, -1) > 1.2 * along(25, 1)


def test_brightness_rises_steadily() -> None:
    means = frames(unit(small())[:4], "brightness").mean(dim=(0, 2, 3, 4))
    assert (means.diff() > 0).all()


def test_zoom_blur_averages_ever_larger_images() -> None:
    images = small()[:4]
    found = frames(unit(images), "zoom_blur")
    for image, sequence in zip(images, found * 255, strict=True):
        enlarged = [pillow(image, scale=1 + 0.004 * i) for i in range(31)]
        for last in (1, 6, 30):
            mean = torch.stack(enlarged[: last + 1]).mean(dim=0)
            assert ((sequence[last] - mean).abs() > 1.6).double().mean() < 0.005


def test_what_cannot_be_perturbed_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'rotate'"):
        perturb(torch.zeros(1, 3, 32, 32), "rotat")
    with pytest.raises(DataError, match="1 or 3"):
        perturb(torch.zeros(1, 4, 32, 32), "rotate")
