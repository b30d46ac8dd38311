"""Accuracy as a function of the attack's radius."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from layerwise.attacks.base import is_correct
from layerwise.attacks.gradient import PGDAttack
from layerwise.core.random import Source
from layerwise.core.registry import register
from layerwise.core.threat import ThreatModel
from layerwise.errors import ConfigError
from layerwise.evaluation.intervals import Count
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import Curves, Look, Panels
from layerwise.evaluation.measures.base import Pollute, batches, examining


@final
@dataclass(frozen=True)
class RadiusCurve(Curves):
    """Accuracy over radius.

    Args:
        radii: in rising order, the attack's unit.
        counts: correct out of total at each; `counts[k].accuracy`, `.interval`.
        unit: of the radii.
    """

    title: ClassVar[str] = "Accuracy over radius"
    rank: ClassVar[int] = 10
    caption: ClassVar[str] = "A curve that does not fall to 0 at large radii is a sign of gradient masking."
    alike: ClassVar[tuple[str, ...]] = ("unit",)

    radii: tuple[float, ...]
    counts: tuple[Count, ...]
    unit: str

    @property
    def total(self) -> int:
        """The images."""
        return self.counts[0].total if self.counts else 0

    def draw(self, panels: Panels, look: Look) -> None:
        """The curve and its 95 % band."""
        low, high = ([100 * count.interval[side] for count in self.counts] for side in (0, 1))
        panels[0].plot(self.radii, [100 * count.accuracy for count in self.counts], **look)
        panels[0].fill_between(self.radii, low, high, color=look["color"], alpha=0.15, linewidth=0)

    def finish(self, panels: Panels) -> None:
        """Label the axes."""
        panels[0].set(xlabel=f"radius ({self.unit})", ylabel="accuracy (%), band: 95 % interval")
        panels[0].set_ylim(0, 102)
        panels[0].set_xlim(left=0)

    def sentence(self) -> str:
        """From the smallest to the largest radius."""
        first, last = self.counts[0], self.counts[-1]
        return (
            f"accuracy goes from {100 * first.accuracy:.1f} % at radius {self.radii[0]:.3g} to {100 * last.accuracy:.1f} % at "
            f"{self.radii[-1]:.3g} ({last.total} images)."
        )


@register("measure", "radius-curve", passes=lambda size: 12 * size.images * size.steps)
def _measure(target: Target, *, images: int = 100, steps: int = 10) -> RadiusCurve:
    """Accuracy under PGD over the radius (SLAT, figure 3)."""
    norm, eps = target.threat.norm, target.threat.eps

    def attack(model: nn.Module, x: Tensor, y: Tensor, radius: float, source: Source, /) -> Tensor:
        return PGDAttack(steps)(model, x, y, ThreatModel(norm, radius), generator=source)

    top = math.inf if norm == "l2" else 1.0
    radii = [eps * share for share in (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0) if eps * share <= top]
    unit = f"{'l2' if norm == 'l2' else 'l-infinity'}, pixels in [0, 1]"
    return accuracy_over_radius(*target.first(images), attack, radii=radii, unit=unit, seed=target.seed)


def accuracy_over_radius(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Pollute,
    *,
    radii: Sequence[float],
    unit: str = "l-infinity, pixels in [0, 1]",
    seed: int = 0,
    batch_size: int = 250,
) -> RadiusCurve:
    """Accuracy on attack(x, eps) for every eps; at 0 the images are looked at as they are.

    Args:
        model: any classifier.
        x: images, shape (N, ...), pixels in [0, 1].
        y: labels, shape (N,).
        attack: for example `lambda m, x, y, eps, source: PGDAttack()(m, x, y, ThreatModel(eps=eps), generator=source)`.
        radii: in any order, not negative.
        unit: of the radii, for the axis.
        seed: of the attack's random numbers, the same at every radius.
        batch_size: images at a time.

    Raises:
        ConfigError: no radius, or a negative one.

    Reference: SLAT, figure 3.

    >>> from layerwise.evaluation.measures import fgsm
    >>> found = accuracy_over_radius(nn.Linear(4, 2), torch.rand(8, 4), torch.zeros(8, dtype=torch.int64), fgsm, radii=[0.1, 0])
    >>> found.radii, found.counts[0].total
    ((0.0, 0.1), 8)
    """
    if not radii or min(radii) < 0:
        raise ConfigError(
            f"radii={list(radii)} cannot be drawn; type numbers that are not negative, such as [0, 4/255, 8/255]"
        )
    steps = sorted(map(float, radii))
    correct = [0] * len(steps)
    with examining(model, x, y) as network:
        for images, labels, source in batches(network, x, y, batch_size=batch_size, seed=seed):
            for k, eps in enumerate(steps):
                made = attack(network, images, labels, eps, source) if eps else images
                with torch.no_grad():
                    correct[k] += int(is_correct(network(made), labels).sum())
    return RadiusCurve(tuple(steps), tuple(Count(c, len(x)) for c in correct), unit)
