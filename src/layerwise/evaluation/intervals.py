"""Shares, means and estimates with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Self, final

from layerwise.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class Count:
    """So many correct out of so many.

    Args:
        correct: images classified as labelled.
        total: images.

    >>> count = Count(45, 50)
    >>> count.accuracy, [round(v, 4) for v in count.interval]
    (0.9, [0.7864, 0.9565])
    """

    correct: int
    total: int

    def __post_init__(self) -> None:
        """Check that the numbers can be."""
        if not 0 <= self.correct <= self.total or not self.total:
            raise ConfigError(
                f"{self.correct} correct out of {self.total} cannot be; give 0 <= correct <= total, total > 0"
            )

    @property
    def right(self) -> int:
        """`correct`, by the name that it had first: programs of then go on."""
        return self.correct

    @property
    def accuracy(self) -> float:
        """The share that is correct, in [0, 1]."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy, see `wilson`."""
        return wilson(self.correct, self.total)


def wilson(successes: int, total: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share, (p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n), p = successes / n.

    Args:
        successes: how many.
        total: trials, n.
        level: coverage, in (0, 1).

    Returns:
        Lower and upper bound, in [0, 1].

    Reference: Wilson 1927.

    >>> [round(v, 4) for v in wilson(0, 10)]
    [0.0, 0.2775]
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    p, shrink = successes / total, 1 + z**2 / total
    centre = (p + z**2 / (2 * total)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == total else centre + half)


@final
@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Args:
        value: the number.
        low: lower bound; over few seeds it may lie below what can be.
        high: upper bound; it may lie above.
    """

    value: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Self:
        """A number without an interval."""
        return cls(value, value, value)

    @property
    def arm(self) -> float:
        """The longer side of the interval: Wilson's is not symmetric."""
        return max(self.high - self.value, self.value - self.low)


@final
@dataclass(frozen=True)
class Mean:
    """The mean of several runs.

    Args:
        value: the mean.
        half_width: half the interval around it; None of a single run, which has no interval.
        runs: how many.
    """

    value: float
    half_width: float | None
    runs: int

    def __str__(self) -> str:
        """Write `45.6 +- 0.3 (3 runs)`."""
        if self.half_width is None:
            return f"{self.value:.4g} ({self.runs} run)"
        return f"{self.value:.4g} +- {self.half_width:.2g} ({self.runs} runs)"


def mean_of(values: Sequence[float], *, level: float = 0.95) -> Mean:
    """Mean and interval over seeds, m +- t s / sqrt(n), t Student's quantile of n - 1 degrees of freedom.

    Args:
        values: a figure of each run.
        level: coverage, in (0, 1).

    >>> print(mean_of([44.0, 46.0, 45.0]))
    45 +- 2.5 (3 runs)

    Raises:
        ConfigError: there is none.
    """
    if not values:
        raise ConfigError("there is no run to take the mean of; give at least one value")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Mean(mean, None, 1)
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # a dependency of scikit-learn

    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return Mean(mean, float(stdtrit(n - 1, (1 + level) / 2)) * deviation / math.sqrt(n), n)


def estimate(values: Tensor, *, share: bool = False) -> Estimate:
    """The mean of examples' values with its 95 % interval: Student's, or Wilson's where they are right or wrong.

    Args:
        values: one an example, shape (N,).
        share: whether they lie in [0, 1], which the interval then does not leave.

    >>> import torch
    >>> estimate(torch.tensor([1.0, 0.0]), share=True).value
    0.5
    """
    if share and bool(((values == 0) | (values == 1)).all()):
        count = Count(int(values.sum()), len(values))
        return Estimate(count.accuracy, *count.interval)
    mean = mean_of(values.tolist())
    arm = math.inf if mean.half_width is None else mean.half_width
    low, high = (0.0, 1.0) if share else (-math.inf, math.inf)
    return Estimate(mean.value, max(low, mean.value - arm), min(high, mean.value + arm))
