"""The constants of the common-corruptions benchmark, as numbers, and the rule that scales them to other sizes.

Reference: Hendrycks and Dietterich 2019; the numbers are those of `make_cifar_c.py` and `make_imagenet_c.py` in
https://github.com/hendrycks/robustness (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, final

from layerwise.errors import ConfigError, did_you_mean

STANDARD = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The fifteen corruptions that mCE is the mean over."""

EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The four of the benchmark's validation set, reported on their own."""

SEVERITIES = (1, 2, 3, 4, 5)

Constants: TypeAlias = tuple[float, ...]


@final
@dataclass(frozen=True)
class SeverityTable:
    """The constants for images of one size.

    Args:
        name: "cifar" or "imagenet".
        side: pixels of a side for which lengths are meant.
        constants: {corruption: its constants at severity 1 to 5}.
    """

    name: str
    side: int
    constants: Mapping[str, tuple[Constants, ...]]

    def scale(self, height: int, width: int) -> float:
        """What lengths are multiplied by for images of another size: the shorter side over `side`.

        >>> CIFAR.scale(28, 28)
        0.875
        """
        return min(height, width) / self.side


# What each number is, in order; px marks lengths, which are scaled (an area, px^2, by the square). All else is left as it is.
#   gaussian_noise, speckle_noise  standard deviation      shot_noise  photons of a white pixel    impulse_noise  share of pixels
#   defocus_blur  radius px, antialiasing                  glass_blur  sigma px, reach px, rounds  motion_blur  reach px, sigma px
#   zoom_blur  step between zooms, their number            brightness  added to V                  contrast  factor
#   snow  mean and deviation of the flakes' noise, zoom px, threshold, reach px and sigma px of their fall, weight of the image
#   frost  weight of the image, weight of the picture, zoom of the picture px                      fog  weight, decay of an octave
#   elastic_transform  factor of the field px^2, sigma of the field px, shift of the three corners px
#   pixelate  share of the side                            jpeg_compression  quality               gaussian_blur  sigma px
#   spatter  mean and deviation of the liquid's noise, sigma px, threshold, strength (water) or sigma px (mud), 1 for mud
#   saturate  factor and summand of S
CIFAR = SeverityTable(
    "cifar",
    32,
    {
        "gaussian_noise": ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
        "shot_noise": ((500,), (250,), (100,), (75,), (50,)),
        "impulse_noise": ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
        "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        "zoom_blur": ((0.01, 7), (0.01, 12), (0.01, 16), (0.01, 21), (0.01, 26)),
        "snow": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        "frost": ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
        "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        "brightness": ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
        "contrast": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
        "elastic_transform": (
            (0, 0, 32 * 0.08),
            (32 * 0.05, 32 * 0.2, 32 * 0.07),
            (32 * 0.08, 32 * 0.06, 32 * 0.06),
            (32 * 0.1, 32 * 0.04, 32 * 0.05),
            (32 * 0.1, 32 * 0.03, 32 * 0.03),
        ),
        "pixelate": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
        "jpeg_compression": ((80,), (65,), (58,), (50,), (40,)),
        "speckle_noise": ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,)),
        "gaussian_blur": ((0.4,), (0.6,), (0.7,), (0.8,), (1,)),
        "spatter": (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    },
)

IMAGENET = SeverityTable(
    "imagenet",
    224,
    {
        "gaussian_noise": ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
        "shot_noise": ((60,), (25,), (12,), (5,), (3,)),
        "impulse_noise": ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
        "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "zoom_blur": ((0.01, 12), (0.01, 16), (0.02, 11), (0.02, 13), (0.03, 11)),
        "snow": (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        "frost": ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
        "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        "brightness": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
        "contrast": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
        # 244 where one expects 224: so it is in the published set.
        "elastic_transform": (
            (244 * 2, 244 * 0.7, 244 * 0.1),
            (244 * 2, 244 * 0.08, 244 * 0.2),
            (244 * 0.05, 244 * 0.01, 244 * 0.02),
            (244 * 0.07, 244 * 0.01, 244 * 0.02),
            (244 * 0.12, 244 * 0.01, 244 * 0.02),
        ),
        "pixelate": ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
        "jpeg_compression": ((25,), (18,), (15,), (10,), (7,)),
        "speckle_noise": ((0.15,), (0.2,), (0.35,), (0.45,), (0.6,)),
        "gaussian_blur": ((1,), (2,), (3,), (4,), (6,)),
        "spatter": (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
        "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    },
)

TABLES = {table.name: table for table in (CIFAR, IMAGENET)}


def table_for(height: int, width: int, choice: str = "auto") -> SeverityTable:
    """The constants for images of a size.

    Args:
        height: pixels.
        width: pixels.
        choice: "cifar", "imagenet", or "auto": CIFAR-10-C's up to a shorter side of 32 pixels, ImageNet-C's above.

    Raises:
        ConfigError: there is no such table.

    >>> table_for(28, 28).name, table_for(64, 64).name
    ('cifar', 'imagenet')
    """
    if choice == "auto":
        return CIFAR if min(height, width) <= CIFAR.side else IMAGENET
    if choice not in TABLES:
        raise ConfigError(f"no table of severities is called {choice!r}; {did_you_mean(choice, ['auto', *TABLES])}")
    return TABLES[choice]
