"""Two recipes on the same images: how far apart they are, and whether that is more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from layerwise.evaluation import Estimate, Evaluation
from layerwise.evaluation.intervals import mean_of

LEVEL = 0.05
"""A difference whose p-value is not below it is undecided."""

Outcome = tuple[bool, ...]


@dataclass(frozen=True)
class Difference:
    """Accuracy of a recipe minus that of the baseline.

    Args:
        points: the difference, in [-1, 1], with its 95 % interval.
        p: probability of a difference at least as large between equals.
        over: what it was tested on, in words.
    """

    points: Estimate
    p: float
    over: str

    @property
    def verdict(self) -> Literal["better", "worse", "undecided"]:
        """Decided only where the test and the interval agree."""
        if self.p >= LEVEL or self.points.low <= 0 <= self.points.high:
            return "undecided"
        return "better" if self.points.value > 0 else "worse"

    def __str__(self) -> str:
        """Write `+2.9 points [-1.0, +7.0], undecided`."""
        return f"{signed(self.points, ' points')}, {self.verdict}"


def signed(difference: Estimate, unit: str = "") -> str:
    """A difference of shares in points, with its interval.

    >>> signed(Estimate(0.029, -0.01, 0.07), " points")
    '+2.9 points [-1.0, +7.0]'
    """
    value, low, high = (f"{100 * v:+.1f}" for v in (difference.value, difference.low, difference.high))
    return f"{value}{unit} [{low}, {high}]".replace("-0.0", "0.0").replace("+0.0", "0.0")


def kept(evaluation: Evaluation, attack: str | None = None) -> Outcome:
    """Which images stay correct under an attack; without one, in the worst case. Empty if the record does not say."""
    if attack is not None:
        return next((r.outcomes for r in evaluation.results if r.attack == attack), ())
    counted = [r for r in evaluation.results if r.in_threat_model] or list(evaluation.results)
    return tuple(all(column) for column in zip(*(r.outcomes for r in counted), strict=False))


def difference(own: Sequence[Outcome], base: Sequence[Outcome]) -> Difference | None:
    """Compare two recipes, an outcome a seed each; None where a record does not say which images stay correct.

    Where both have several seeds, seeds are what varies: Welch's t. Else it is the images, the same for both: a paired test.
    """
    if not all(own) or not all(base) or len({len(outcome) for outcome in (*own, *base)}) != 1:
        return None
    if min(len(own), len(base)) > 1:
        return over_seeds([sum(o) / len(o) for o in own], [sum(o) / len(o) for o in base])
    return over_images(own[0], base[0])


def over_images(own: Outcome, base: Outcome) -> Difference:
    """McNemar's mid-p test, and the interval of Agresti and Min: Wald's after adding 1/2 to each of the four cells.

    Reference: Fagerland, Lydersen and Laake 2013; Agresti and Min 2005.

    >>> str(over_images((True,) * 30 + (False,) * 10, (True,) * 20 + (False,) * 20))
    '+25.0 points [+10.1, +37.5], better'
    """
    won = sum(a and not b for a, b in zip(own, base, strict=True))
    lost = sum(b and not a for a, b in zip(own, base, strict=True))
    n, moved = len(own) + 2, won + lost + 1
    centre = (won - lost) / n
    arm = 1.959963984540054 * math.sqrt(max(0.0, moved - (won - lost) ** 2 / n)) / n
    few = min(won, lost)
    # Mid-p: the exact test counts the outcome itself in full, and would speak against the interval near its end.
    tail = (sum(math.comb(won + lost, k) for k in range(few)) + math.comb(won + lost, few) / 2) / 2 ** (won + lost)
    points = Estimate((won - lost) / len(own), max(-1.0, centre - arm), min(1.0, centre + arm))
    return Difference(points, 2 * tail, f"the same {len(own):,} images, McNemar's test")


def over_seeds(own: Sequence[float], base: Sequence[float]) -> Difference:
    """Welch's t-test of two means of at least two seeds each."""
    from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]  # a dependency of scikit-learn

    means, parts = [], []
    for values in (own, base):
        mean = mean_of(values).value
        means.append(mean)
        parts.append(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    value, spread = means[0] - means[1], math.sqrt(sum(parts))
    over = f"{len(own)} and {len(base)} seeds, Welch's test"
    if not spread:
        return Difference(Estimate.exactly(value), float(value == 0), over)
    freedom = sum(parts) ** 2 / sum(p**2 / (len(values) - 1) for p, values in zip(parts, (own, base), strict=True))
    arm = float(stdtrit(freedom, 0.975)) * spread
    return Difference(Estimate(value, value - arm, value + arm), 2 * float(stdtr(freedom, -abs(value) / spread)), over)
