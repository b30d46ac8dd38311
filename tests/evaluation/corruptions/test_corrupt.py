from __future__ import annotations

import colorsys
import io
import math
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from layerwise.errors import ConfigError, DataError
from layerwise.evaluation.corruptions import CORRUPTIONS, EXTRA, STANDARD, corrupt, generate_frost
from layerwise.evaluation.corruptions.blur import copies
from layerwise.evaluation.corruptions.draws import Draws
from layerwise.evaluation.corruptions.noise import poisson
from layerwise.evaluation.corruptions.scene import Scene
from layerwise.evaluation.corruptions.weather import plasma
from tests.evaluation.corruptions.pictures import small, unit

DETERMINISTIC = (
    "brightness",
    "contrast",
    "defocus_blur",
    "gaussian_blur",
    "jpeg_compression",
    "pixelate",
    "saturate",
    "zoom_blur",
)
RANDOM = sorted({*STANDARD, *EXTRA} - {*DETERMINISTIC})
# Where the benchmark's own constants make each severity worse than the one before.
GROWING = (
    "brightness",
    "contrast",
    "defocus_blur",
    "fog",
    "gaussian_blur",
    "gaussian_noise",
    "impulse_noise",
    "jpeg_compression",
    "pixelate",
    "shot_noise",
    "snow",
    "speckle_noise",
    "zoom_blur",
)


def run(x: Tensor, name: str, severity: int = 3, **options: object) -> Tensor:
    return corrupt(x, name, severity, frost=generate_frost(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 40, 33), (1, 8, 8)])
def test_images_come_back_as_whole_levels_of_their_own_shape(name: str, shape: tuple[int, int, int]) -> None:
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    for severity in (1, 5):
        changed = run(x, name, severity)
        assert changed.shape == x.shape
        assert changed.dtype == x.dtype
        levels = changed * 255
        torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
        assert float(changed.min()) >= 0
        assert float(changed.max()) <= 1
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_in_any_batch(name: str) -> None:
    x = unit(small())[:6]
    together = run(x, name)
    torch.testing.assert_close(run(x, name), together, rtol=0, atol=0)
    apart = torch.cat([run(x[i : i + 1], name, rows=torch.tensor([i])) for i in (4, 1)])
    # Sums of other lengths may round across a level.
    assert (apart - together[[4, 1]]).abs().max() <= 1.01 / 255
    assert ((apart - together[[4, 1]]).abs() > 1e-4).double().mean() < 1e-3
    halves = torch.cat([run(x[:2], name, rows=torch.arange(2)), run(x[2:], name, rows=torch.arange(2, 6))])
    assert ((halves - together).abs() > 1e-4).double().mean() < 1e-3


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_how_many_are_changed_at_once_decides_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = unit(small())[:5]
    rows = torch.tensor([9, 2, 4, 0, 7])
    together = run(x, name, rows=rows)
    monkeypatch.setattr(import_module(corrupt.__module__), "AT_ONCE", 2 * x[0].numel())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert ((run(x, name, rows=rows) - together).abs() > 1e-4).double().mean() < 1e-3


@pytest.mark.parametrize("photons", [3.0, 60.0, 500.0])
def test_counts_are_the_quantiles(photons: float) -> None:
    """Of levels at both ends and between, at numbers that lie beside the limits, where a search can go wrong."""
    level = torch.tensor([0, 1, 100, 255]).repeat_interleave(4000)
    counts = torch.arange(2000, dtype=torch.float64)
    rate = level[::4000, None] / 255 * photons
    below = (counts.xlogy(rate.double()) - rate - (counts + 1).lgamma()).exp().cumsum(1)
    limits = (below.unsqueeze(2) * (1 << 24)).ceil() + torch.tensor([-2, 1])
    # Not at 0, the quantile of which is 0 and lies outside the tables of large rates.
    u = limits.flatten(1).clamp(1, (1 << 24) - 1).flatten() / (1 << 24)
    expected = torch.cat(
        [torch.searchsorted(row, part, right=True) for row, part in zip(below, torch.split(u, 4000), strict=True)]
    )
    assert torch.equal(poisson(level / 255, photons, u.float()), expected.float())


@pytest.mark.parametrize("name", RANDOM)
def test_seeds_rows_and_only_they_change_the_noise(name: str) -> None:
    x = unit(small())[:1].expand(2, -1, -1, -1)
    changed = run(x, name, 4)
    assert not torch.equal(changed[0], changed[1])
    assert not torch.equal(changed, run(x, name, 4, seed=1))
    state = torch.get_rng_state()
    torch.manual_seed(7)
    assert torch.equal(changed, run(x, name, 4))
    torch.set_rng_state(state)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_what_has_no_chance_in_it_needs_no_seed(name: str) -> None:
    x = unit(small())[:2]
    assert torch.equal(run(x, name), run(x, name, seed=3))


@pytest.mark.parametrize("name", GROWING)
def test_severities_grow(name: str) -> None:
    x = unit(small())
    distances = [float((run(x, name, severity) - x).abs().mean()) for severity in range(1, 6)]
    assert distances == sorted(distances)
    assert distances[0] > 0
    assert distances[4] > 1.3 * distances[0]


@pytest.mark.parametrize("name", ["gaussian_noise", "speckle_noise", "impulse_noise"])
@pytest.mark.parametrize("level", [64, 128])
def test_noises_have_their_distribution(name: str, level: int) -> None:
    x = torch.full((200, 3, 32, 32), level / 255)
    n, p = x.numel(), level / 255
    changed = run(x, name, 2).double()
    if name == "impulse_noise":
        black, white = ((changed == value).double().mean().item() for value in (0, 1))
        assert black == pytest.approx(0.01, abs=4.5 * math.sqrt(0.01 / n))
        assert white == pytest.approx(0.01, abs=4.5 * math.sqrt(0.01 / n))
        return
    deviation = {"gaussian_noise": 0.06, "speckle_noise": 0.1 * p}[name]
    # Cutting off to levels takes half a level, and adds the variance of a uniform remainder.
    assert changed.mean().item() == pytest.approx(p - 0.5 / 255, abs=4.5 * deviation / math.sqrt(n))
    expected = math.sqrt(deviation**2 + 1 / (12 * 255**2))
    assert changed.std().item() == pytest.approx(expected, rel=4.5 / math.sqrt(2 * n))


def test_shot_noise_is_poisson_s() -> None:
    # At severity 5 a photon is 5.1 levels, so that counts can be read off.
    x = torch.full((100, 3, 32, 32), 128 / 255)
    counts = (run(x, "shot_noise", 5) * 50).round().double()
    rate = 128 / 255 * 50
    assert counts.mean().item() == pytest.approx(rate, abs=4.5 * math.sqrt(rate / x.numel()))
    assert counts.var().item() == pytest.approx(rate, rel=4.5 * math.sqrt((2 + 1 / rate) / x.numel()))
    for k in (15, 25, 35):
        expected = math.exp(k * math.log(rate) - rate - math.lgamma(k + 1))
        assert (counts == k).double().mean().item() == pytest.approx(
            expected, abs=4.5 * math.sqrt(expected / x.numel())
        )
    assert torch.equal(run(torch.zeros(1, 1, 8, 8), "shot_noise"), torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("severity", [1, 5])
def test_contrast_shrinks_around_the_mean_of_a_channel(severity: int) -> None:
    images = small()[:3]
    c = [0.75, 0.5, 0.4, 0.3, 0.15][severity - 1]
    for image, found in zip(images.double().numpy() / 255, run(unit(images), "contrast", severity), strict=True):
        means = image.mean(axis=(1, 2), keepdims=True)
        expected = np.clip((image - means) * c + means, 0, 1) * 255
        assert np.abs(found.numpy() * 255 - np.floor(expected + 1e-3)).max() < 1.01
        assert np.abs(found.numpy() * 255 + 0.5 - expected).max() < 0.51


@pytest.mark.parametrize(("name", "severity"), [("brightness", 2), ("saturate", 1), ("saturate", 3), ("saturate", 5)])
def test_colours_change_as_in_hue_saturation_value(name: str, severity: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (1, 3, 8, 8), generator=generator) / 255
    x[0, :, 0, 0], x[0, :, 0, 1], x[0, :, 0, 2] = 0.0, 0.6, torch.tensor([1.0, 0.0, 0.0])
    factor, summand = [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)][severity - 1]
    found = run(x, name, severity)[0]
    for row in range(8):
        for column in range(8):
            h, s, v = colorsys.rgb_to_hsv(*((x[0, :, row, column] * 255).round().double() / 255).tolist())
            if name == "brightness":
                expected = colorsys.hsv_to_rgb(h, s, min(v + 0.1, 1))
            else:
                expected = colorsys.hsv_to_rgb(h, min(s * factor + summand, 1), v)
            # Cut off: the level lies at most one below.
            lack = np.array(expected) * 255 - found[:, row, column].double().numpy() * 255
            assert np.all((lack > -2e-3) & (lack < 1 + 2e-3))


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("table", ["cifar", "imagenet"])
@pytest.mark.parametrize("grey", [True, False])
def test_pixelate_is_pillow_s_box_filter_twice(severity: int, table: str, grey: bool) -> None:
    share = {"cifar": [0.95, 0.9, 0.85, 0.75, 0.65], "imagenet": [0.6, 0.5, 0.4, 0.3, 0.25]}[table][severity - 1]
    images = small()[:4, :1] if grey else small()[:4]
    found = (run(unit(images), "pixelate", severity, table=table) * 255).round()
    for image, changed in zip(images, found, strict=True):
        picture = Image.fromarray(image.squeeze(0).numpy() if grey else image.permute(1, 2, 0).numpy())
        picture = picture.resize((int(32 * share),) * 2, Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
        expected = torch.from_numpy(np.array(picture)).float()
        assert torch.equal(changed, expected[None] if grey else expected.permute(2, 0, 1))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("grey", [True, False])
def test_jpeg_is_the_codec_s(grey: bool, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    images = small()[:3, :1] if grey else small()[:3]
    found = (run(unit(images), "jpeg_compression", 5) * 255).round()
    for image, changed in zip(images, found, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.squeeze(0).numpy() if grey else image.permute(1, 2, 0).numpy()).save(
            file, "JPEG", quality=40
        )
        expected = torch.from_numpy(np.array(Image.open(file))).float()
        assert torch.equal(changed, expected[None] if grey else expected.permute(2, 0, 1))


def test_a_blurred_point_shows_the_kernel() -> None:
    x = torch.zeros(1, 1, 33, 33)
    x[0, 0, 16, 16] = 1
    # Sigma 6 x 33 / 224 = 0.884; one pixel's share is the square of the kernel's middle.
    sigma = 6 * 33 / 224
    weights = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    expected = np.floor(255 * np.outer(weights, weights) / weights.sum() ** 2)
    found = run(x, "gaussian_blur", 5)[0, 0, 12:21, 12:21] * 255
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)
    # Radius 10 x 33 / 224 = 1.47: nine pixels, hardly smoothed at severity 1 (0.1), where the radius is 0.44: one pixel.
    assert (run(x, "defocus_blur", 1) > 0).sum() == 1
    assert (run(x, "defocus_blur", 5) * 255).sum() == pytest.approx(255, abs=25)


def test_zoom_blur_of_a_constant_is_that_constant() -> None:
    x = torch.full((1, 3, 32, 32), 100 / 255)
    assert torch.equal(run(x, "zoom_blur", 5), x)


@pytest.mark.parametrize(("h", "w", "reach"), [(32, 32, 1), (20, 13, 2), (31, 14, 4)])
def test_glass_blur_s_copies_are_those_of_the_loop(h: int, w: int, reach: int) -> None:
    draws = Draws(3, "glass_blur/1", torch.arange(4))
    found = copies(draws, "round 0", h, w, reach)
    down, right = (draws.integers(f"round 0/{way}", 2 * reach, h, w) - reach for way in ("down", "right"))
    for image in range(4):
        content = np.arange(h * w).reshape(h, w)
        for row in range(h - reach, reach, -1):
            for column in range(w - reach, reach, -1):
                dy, dx = int(down[image, row, column]), int(right[image, row, column])
                content[row, column] = content[row + dy, column + dx]
        assert torch.equal(found[image], torch.from_numpy(content.flatten()))
    assert (found != torch.arange(h * w)).double().mean() > 0.2


def test_plasma_is_the_diamond_square_algorithm() -> None:
    size, decay, draws = 8, 2.5, Draws(0, "fog/1", torch.arange(2))
    found = plasma(draws, size, decay)
    height, step, octave = np.zeros((size, size)), size, 0
    while step > 1:
        half, n = step // 2, size // step
        noise = {
            what: (draws.uniform(f"{what} {octave}", n, n)[1].numpy() * 2 - 1) / decay ** (2 * octave)
            for what in ("square", "above", "left")
        }
        before = height.copy()
        for i in range(n):
            for j in range(n):
                r, c = i * step, j * step
                corners = [before[y % size, x % size] for y in (r, r + step) for x in (c, c + step)]
                height[r + half, c + half] = np.mean(corners) + noise["square"][i, j]
        for i in range(n):
            for j in range(n):
                r, c = i * step, j * step
                for y, x, what in ((r, c + half, "above"), (r + half, c, "left")):
                    around = ((y - half, x), (y + half, x), (y, x - half), (y, x + half))
                    height[y, x] = np.mean([height[a % size, b % size] for a, b in around]) + noise[what][i, j]
        step, octave = half, octave + 1
    expected = (height - height.min()) / (height.max() - height.min())
    np.testing.assert_allclose(found[1].numpy(), expected, atol=1e-6)


def test_fog_keeps_black_images_black_and_frost_covers_them() -> None:
    black = torch.zeros(4, 3, 32, 32)
    assert torch.equal(run(black, "fog", 5), black)
    assert run(black, "frost", 5).mean() > 0.1


def test_elastic_transform_without_displacement_is_the_identity() -> None:
    x = unit(small())[:3]
    scene = Scene(Draws(0, "elastic_transform/1", torch.arange(3)), 1.0, generate_frost())
    torch.testing.assert_close(CORRUPTIONS["elastic_transform"](x, (0, 2, 0), scene), x, atol=1e-5, rtol=0)
    moved = CORRUPTIONS["elastic_transform"](x, (0, 2, 3), scene)
    assert (moved - x).abs().mean() > 0.02


def test_displacements_grow_with_the_image() -> None:
    """A picture of twice the size is bent as much in proportion."""
    bends = []
    for size in (32, 64):
        ramp = torch.linspace(0, 1, size).expand(60, 1, size, size)
        scene = Scene(Draws(0, "elastic_transform/5", torch.arange(60)), size / 32, generate_frost())
        change = CORRUPTIONS["elastic_transform"](ramp, (3.2, 1.6, 0), scene) - ramp
        margin = size // 4
        bends.append(float(change[..., margin:-margin, margin:-margin].std()))
    assert bends[1] == pytest.approx(bends[0], rel=0.1)


@pytest.mark.parametrize(("name", "steeper"), [("snow", False), ("motion_blur", True)])
def test_snow_falls_and_cameras_move_sideways(name: str, steeper: bool) -> None:
    x = torch.rand(40, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * (0.0 if name == "snow" else 1.0)
    changed = run(x, name, 4)
    down, right = changed.diff(dim=-2).abs().mean(), changed.diff(dim=-1).abs().mean()
    assert (down > 1.3 * right) if steeper else (right > 1.3 * down)


def test_severities_draw_their_own_noise() -> None:
    x = torch.full((4, 3, 32, 32), 0.5)
    noises = torch.stack([(run(x, "gaussian_noise", severity) - x).flatten() for severity in (1, 2)])
    assert abs(float(torch.corrcoef(noises)[0, 1])) < 4.5 / math.sqrt(x.numel())


def test_grey_images_have_no_saturation() -> None:
    x = unit(small())[:, :1]
    assert torch.equal(run(x, "saturate", 5), x)


def test_pixels_between_levels_are_rounded_first() -> None:
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rounded = (x * 255).round() / 255
    for name in ("gaussian_noise", "jpeg_compression", "elastic_transform"):
        assert torch.equal(run(x, name), run(rounded, name))


def test_double_precision_comes_back_with_the_same_levels() -> None:
    x = unit(small())[:2]
    double = run(x.double(), "snow")
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), run(x, "snow"))


def test_gradients_do_not_flow_and_are_left_on() -> None:
    x = unit(small())[:1].requires_grad_()
    assert not run(x, "fog").requires_grad
    assert torch.is_grad_enabled()


def test_inference_mode_changes_nothing() -> None:
    x = unit(small())[:2]
    for name in CORRUPTIONS:
        with torch.inference_mode():
            changed = run(x, name, seed=11)
        assert torch.equal(changed, run(x, name, seed=11))


@pytest.mark.parametrize(
    ("x", "name", "severity", "error", "words"),
    [
        (torch.zeros(1, 3, 32, 32), "fogg", 1, ConfigError, "did you mean 'fog'"),
        (torch.zeros(1, 3, 32, 32), "fog", 0, ConfigError, "type 1, 2, 3, 4 or 5"),
        (torch.zeros(1, 3, 32, 32), "fog", 6, ConfigError, "severity is 6"),
        (torch.zeros(1, 2, 32, 32), "fog", 1, DataError, "1 or 3"),
        (torch.zeros(1, 3, 7, 32), "fog", 1, DataError, "at least 8"),
        (torch.zeros(3, 32, 32), "fog", 1, DataError, r"\(3, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "fog", 1, DataError, "uint8"),
        (torch.full((1, 3, 32, 32), 255.0), "fog", 1, DataError, "divide by 255"),
        (torch.full((1, 3, 32, 32), float("nan")), "fog", 1, DataError, "nan"),
    ],
)
def test_what_cannot_be_corrupted_is_named(
    x: Tensor, name: str, severity: int, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        run(x, name, severity)
    assert "\n" not in str(caught.value)


def test_no_images_are_no_images() -> None:
    for name in CORRUPTIONS:
        assert run(torch.zeros(0, 3, 32, 32), name).shape == (0, 3, 32, 32)
