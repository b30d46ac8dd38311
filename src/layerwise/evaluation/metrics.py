"""Measures of robustness, each with its definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.attacks.gradient import FGSMAttack, run_deepfool
from layerwise.core.threat import ThreatModel
from layerwise.errors import ConfigError
from layerwise.evaluation.session import Data, Session, judging


@dataclass(frozen=True)
class Count:
    """So many right out of so many.

    Args:
        right: images classified as labelled.
        total: images.

    >>> count = Count(45, 50)
    >>> count.accuracy, [round(v, 4) for v in count.interval]
    (0.9, [0.7864, 0.9565])
    """

    right: int
    total: int

    def __post_init__(self) -> None:
        """Check that the numbers can be."""
        if not 0 <= self.right <= self.total or not self.total:
            raise ConfigError(f"{self.right} right out of {self.total} cannot be; give 0 <= right <= total, total > 0")

    @property
    def accuracy(self) -> float:
        """The share that is right, in [0, 1]."""
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy, see `wilson`."""
        return wilson(self.right, self.total)


def wilson(right: int, total: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share, (p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n), p = right / n.

    Args:
        right: successes.
        total: trials, n.
        level: coverage, in (0, 1).

    Returns:
        Lower and upper bound, in [0, 1].

    Reference: Wilson 1927.

    >>> [round(v, 4) for v in wilson(0, 10)]
    [0.0, 0.2775]
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    p, shrink = right / total, 1 + z**2 / total
    centre = (p + z**2 / (2 * total)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    return (0.0 if right == 0 else centre - half), (1.0 if right == total else centre + half)


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


@dataclass(frozen=True)
class Rho:
    """The robustness measure rho_p.

    Args:
        value: mean of ||Delta||_p / ||x||_p.
        images: images in that mean.
        blank: images left out because ||x|| is 0.
        unfooled: share of `images` whose prediction DeepFool did not change within its steps; their ratio is too small.
        num_steps: DeepFool's steps.
        p: the norm.
    """

    value: float
    images: int
    blank: int
    unfooled: float
    num_steps: int
    p: float


def rho(
    model: nn.Module,
    data: Data,
    *,
    num_steps: int = 5,
    p: float = 2.0,
    num_classes: int | None = None,
    overshoot: float = 0.02,
    center: Tensor | None = None,
    **options: Any,
) -> Rho:
    """The mean of ||Delta_x||_p / ||x||_p, Delta_x the DeepFool perturbation with overshoot, away from the prediction.

    Over all images, misclassified ones included (their step leads away from the wrong prediction as well); pixels are not clipped.

    Args:
        model: the network.
        data: see `layerwise.evaluation.session.Data`.
        num_steps: 5 in the authors' code (to compare), 50 to converge; print both.
        p: above 1, or inf.
        num_classes: only the likeliest classes; None is all.
        overshoot: share added to the sum of the steps.
        center: what is taken from x before its norm is, shape (C, H, W): the mean image, for papers whose networks see x minus it. The
            perturbation is the same; images without that much light are shorter, so the ratio is larger.
        options: those of `layerwise.evaluation.session.judging`.

    Raises:
        ConfigError: every image is blank, or as `judging`.

    Reference: Yan et al. 2018 (Deep Defense), eq. 7; Moosavi-Dezfooli et al. 2016, eq. 2.
    """
    deepfool_options = {"num_steps": num_steps, "p": p, "num_classes": num_classes, "overshoot": overshoot}
    ratios, fooled, counted = [], [], []
    with judging(model, data, **options) as session:
        for x, _, _ in session.batches:
            found = run_deepfool(session.network, x, **deepfool_options)
            ratio, relative = found.rho(x if center is None else x - center.to(x), p)
            ratios.append(ratio.double())
            fooled.append(found.fooled)
            counted.append(relative)
    kept = torch.cat(counted)
    images = int(kept.sum())
    if not images:
        raise ConfigError(f"all {len(kept)} images are blank (every pixel 0); rho has no meaning on them")
    return Rho(
        value=torch.cat(ratios)[kept].mean().item(),
        images=images,
        blank=len(kept) - images,
        unfooled=1 - torch.cat(fooled)[kept].double().mean().item(),
        num_steps=num_steps,
        p=p,
    )


@dataclass(frozen=True)
class EpsRef:
    """The reference radius and what is right at its fractions.

    Args:
        eps: the radius.
        accuracies: {1.0, 0.5, 0.2: accuracy under FGSM at that fraction of it}.
    """

    eps: float
    accuracies: dict[float, Count]


FRACTIONS = (1.0, 0.5, 0.2)


def eps_ref(model: nn.Module, data: Data, *, tolerance: float = 1e-4, **options: Any) -> EpsRef:
    """The smallest radius at which FGSM leaves at most half of the images right, by bisection.

    The accuracy need not fall steadily: the search brackets the first crossing among 1/256, 1/128, ..., 1 and halves that bracket.

    Args:
        model: the network, Deep Defense's regularised one; its radius is then used on the others with `fgsm_accuracies`.
        data: see `layerwise.evaluation.session.Data`.
        tolerance: width of the bracket at the end; the upper bound is returned.
        options: those of `layerwise.evaluation.session.judging`.

    Raises:
        ConfigError: half of the images are wrong without attack, or more than half right at every radius up to 1.

    Reference: Yan et al. 2018 (Deep Defense), section 4.1.
    """
    with judging(model, data, **options) as session:
        if _halved(session, 0.0):
            raise ConfigError("half of the images are misclassified without any attack; eps_ref has no meaning")
        high = next((radius for k in range(8, -1, -1) if _halved(session, radius := 2.0**-k)), None)
        if high is None:
            raise ConfigError("more than half of the images stay right under FGSM at every radius up to 1")
        low = high / 2 if high > 2.0**-8 else 0.0
        while high - low > tolerance:
            middle = (low + high) / 2
            low, high = (low, middle) if _halved(session, middle) else (middle, high)
        return EpsRef(high, {fraction: _fgsm(session, fraction * high) for fraction in FRACTIONS})


def fgsm_accuracies(model: nn.Module, data: Data, radii: Sequence[float], **options: Any) -> dict[float, Count]:
    """What stays right under FGSM at each radius.

    Args:
        model: the network.
        data: see `layerwise.evaluation.session.Data`.
        radii: in pixel units, in [0, 1].
        options: those of `layerwise.evaluation.session.judging`.
    """
    with judging(model, data, **options) as session:
        return {radius: _fgsm(session, radius) for radius in radii}


def _fgsm(session: Session, radius: float) -> Count:
    outcomes = FGSMAttack().outcomes(session.network, session.batches, ThreatModel("linf", radius))
    right = torch.cat(list(outcomes))
    return Count(int(right.sum()), len(right))


def _halved(session: Session, radius: float) -> bool:
    count = _fgsm(session, radius)
    return 2 * count.right <= count.total
