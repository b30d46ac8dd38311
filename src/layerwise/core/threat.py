"""Threat models: against what a network is trained and evaluated, and the fields that are its where nothing else is said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from layerwise.core import norms
from layerwise.core.arguments import Named
from layerwise.core.checks import Radius, check_radius, format_radius
from layerwise.errors import ConfigError


@final
@dataclass(frozen=True)
class ThreatModel(Named):
    """What an adversary may do: x' in [0, 1] with ||x' - x||_p <= eps, for each image.

    Args:
        norm: `"linf"` or `"l2"`.
        eps: radius in pixel units, pixels in [0, 1]; linf: at most 1, which is everything.

    Raises:
        ConfigError: unknown norm, or a radius that cannot be meant.

    >>> print(ThreatModel("linf", 8 / 255))
    linf, eps 8/255
    >>> ThreatModel("linf", 8)
    Traceback (most recent call last):
    layerwise.errors.ConfigError: eps=8 is in units of 0 to 255 pixels, ours are 0 to 1; type eps=8/255
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: Radius = 8 / 255

    pixels: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        """Check norm and radius."""
        if self.norm not in ("linf", "l2"):
            raise ConfigError(f"norm={self.norm!r} is not a threat model; type 'linf' or 'l2'")
        if self.eps is None:
            raise ConfigError("eps=None is no radius; leave it out for 8/255, or give one, such as eps=4/255")
        if self.norm == "linf":
            check_radius("eps", self.eps)
        elif not 0 <= self.eps < math.inf:
            raise ConfigError(f"eps={self.eps} is not a radius; type a number that is not negative, such as 0.5")

    def __str__(self) -> str:
        """Write norm and radius the way that people read them."""
        return f"{self.norm}, eps {format_radius(self.eps)}"

    def eps_in(self, norm: str, *, of: str) -> float:
        """The radius for what perturbs in a norm, which has to be this one's.

        Args:
            norm: in which `of` perturbs.
            of: what asks, for the message.

        Raises:
            ConfigError: another norm.
        """
        if norm != self.norm:
            raise ConfigError(
                f"{of} perturbs in {norm}, and the threat model is {self}: set its eps, a radius in {norm}"
            )
        return self.eps

    def check_reach(self, shape: Sequence[int]) -> None:
        """Complain about an l2 radius that contains every image of `shape` (C, H, W) and more, the sign of another unit.

        Raises:
            ConfigError: eps is above sqrt(C H W).
        """
        diameter = math.sqrt(math.prod(shape))
        if self.norm == "l2" and self.eps > diameter:
            raise ConfigError(
                f"eps={self.eps:g} is above {diameter:g}, the l2 distance of a black from a white image of shape {tuple(shape)}; "
                f"pixels are 0 to 1: type eps={self.eps:g}/255"
            )

    def check(self, x: Tensor, x_adv: Tensor, *, attack: str) -> None:
        """Complain about an attack that cheats: every image has to be in the ball and the pixel range, up to 1e-6.

        Args:
            x: the images, shape (B, ...).
            x_adv: what the attack made of them.
            attack: its name, for the message.

        Raises:
            ConfigError: naming what was left, and by how much.
        """
        if x_adv.shape != x.shape:
            raise ConfigError(
                f"attack {attack} made images of shape {tuple(x_adv.shape)} out of {tuple(x.shape)}; the shape must stay"
            )
        # In float64: the float32 sum over 150,000 pixels alone is off by more than the tolerance.
        distance = norms.norm((x_adv.double() - x.double()), self.norm).amax()
        low, high = x_adv.aminmax()
        farthest, low_value, high_value = torch.stack([distance, low.double(), high.double()]).tolist()
        if not (low_value >= -1e-6 and high_value <= 1 + 1e-6):
            raise ConfigError(
                f"attack {attack} left the pixel range: its pixels lie in [{low_value:g}, {high_value:g}], not in [0, 1]"
            )
        if not farthest <= self.eps + 1e-6 * max(1.0, self.eps):
            raise ConfigError(
                f"attack {attack} left the threat model ({self}): an image lies at {self.norm} distance {farthest:.6g}; "
                "project its perturbation with layerwise.core.norms.project"
            )


USUAL = ThreatModel()
"""The threat model of whoever names none: linf, eps 8/255."""

THREAT = "threat"
"""Key of a field's metadata that says which part of the threat model it is."""


EPS, NORM = {THREAT: "eps"}, {THREAT: "norm"}
"""Metadata of a field that is the threat model's where it is None, see `Method.under`."""


def radius(eps: float | None, norm: str = "linf") -> float:
    """The radius of a field that may be None, which stands for the usual threat model's.

    >>> radius(0.1), radius(None) == 8 / 255
    (0.1, True)

    Raises:
        ConfigError: None in another norm, in which no radius is usual.
    """
    return USUAL.eps_in(norm, of="the method") if eps is None else eps
