"""Learning-rate schedules: multipliers of the peak rate as functions of progress, the fraction of the run's batches that are done."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import dataclass, replace

from layerwise.core.arguments import Named
from layerwise.core.registry import register
from layerwise.errors import ConfigError


class Schedule(Named, ABC):
    """A multiplier of the peak learning rate; a subclass is a frozen dataclass.

    Times are fractions of the run where they are below 1 and epochs from 1 on; `over` turns the latter into the former.
    """

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Give the multiplier, in [0, 1], at `progress`, in [0, 1]."""

    def over(self, epochs: int) -> Schedule:
        """The same schedule for a run of so many epochs, all its times fractions.

        Raises:
            ConfigError: a time lies after the last epoch.
        """
        del epochs
        return self


def _fraction(name: str, time: float, epochs: int) -> float:
    if time > epochs:
        raise ConfigError(f"schedule: {name} {time:g} lies after the last of {epochs} epochs; type a smaller one")
    return time if time < 1 else time / epochs


def _checked(name: str, value: float, *, high: float = 1.0) -> None:
    if not 0 <= value <= high:
        raise ConfigError(f"schedule: {name}={value!r} is out of range; type a number from 0 to {high:g}")


def _resolved(name: str, time: float) -> float:
    if time > 1:
        raise ConfigError(f"schedule: {name} {time:g} is in epochs; call over(epochs) before the schedule")
    return time


@register("schedule")
@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The peak rate throughout.

    >>> Constant()(0.3)
    1.0
    """

    def __call__(self, progress: float) -> float:
        """See `Schedule`."""
        del progress
        return 1.0


@register("schedule")
@dataclass(frozen=True, kw_only=True)
class Cyclic(Schedule):
    """Linear from 0 to the peak at `peak_at`, and linear back to 0; the first batch therefore changes nothing, as in the papers' code.

    Args:
        peak_at: fraction of the run; 2/5 is SLAT's, 1/2 FGSM-RS's.

    >>> [Cyclic(peak_at=0.5)(p) for p in (0, 0.25, 0.5, 1)]
    [0.0, 0.5, 1.0, 0.0]
    """

    peak_at: float = 0.4

    def __post_init__(self) -> None:
        """Check the peak."""
        _checked("peak_at", self.peak_at)

    def __call__(self, progress: float) -> float:
        """See `Schedule`."""
        if progress < self.peak_at:
            return progress / self.peak_at
        return 1.0 if self.peak_at == 1 else (1 - progress) / (1 - self.peak_at)


@register("schedule")
@dataclass(frozen=True, kw_only=True)
class MultiStep(Schedule):
    """The peak rate times `factor` for every milestone passed.

    Args:
        milestones: rising times, fractions below 1, epochs from 1 on.
        factor: in [0, 1].

    >>> [MultiStep(milestones=(60, 120), factor=0.5).over(200)(p) for p in (0, 0.3, 0.9)]
    [1.0, 0.5, 0.25]
    """

    milestones: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1

    def __post_init__(self) -> None:
        """Check the milestones."""
        _checked("factor", self.factor)
        for milestone in self.milestones:
            _checked("milestone", milestone, high=math.inf)

    def over(self, epochs: int) -> MultiStep:
        """See `Schedule.over`.

        Raises:
            ConfigError: a milestone lies after the last epoch, or they do not rise.
        """
        fractions = tuple(_fraction("milestone", m, epochs) for m in self.milestones)
        if list(fractions) != sorted(fractions):
            raise ConfigError(f"schedule: milestones={self.milestones} do not rise over {epochs} epochs; sort them")
        return replace(self, milestones=fractions)

    def __call__(self, progress: float) -> float:
        """See `Schedule`."""
        return float(self.factor ** bisect_right([_resolved("milestone", m) for m in self.milestones], progress))


@register("schedule")
@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Linear warm-up from 0, then half a cosine down to `final`.

    Args:
        warmup: how long: a fraction below 1, epochs from 1 on.
        final: last multiplier, in [0, 1].

    >>> [round(Cosine(warmup=0.2)(p), 3) for p in (0, 0.1, 0.2, 0.6, 1)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    warmup: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        """Check both."""
        _checked("warmup", self.warmup, high=math.inf)
        _checked("final", self.final)

    def over(self, epochs: int) -> Cosine:
        """See `Schedule.over`."""
        return replace(self, warmup=_fraction("warmup", self.warmup, epochs))

    def __call__(self, progress: float) -> float:
        """See `Schedule`."""
        warmup = _resolved("warmup", self.warmup)
        if progress < warmup:
            return progress / warmup
        return _cosine(1.0, self.final, progress, warmup, 1.0)


@register("schedule")
@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    """Half a cosine up from `start` to the peak at `peak_at`, and half a cosine down to `final`.

    Args:
        peak_at: fraction of the run.
        start: first multiplier, in [0, 1].
        final: last multiplier, in [0, 1].

    Reference: Smith and Topin 2018; the defaults are those of `torch.optim.lr_scheduler.OneCycleLR`.

    >>> [round(OneCycle()(p), 3) for p in (0, 0.15, 0.3, 1)]
    [0.04, 0.52, 1.0, 0.0]
    """

    peak_at: float = 0.3
    start: float = 1 / 25
    final: float = 1 / 25 / 1e4

    def __post_init__(self) -> None:
        """Check the fractions."""
        for name in ("peak_at", "start", "final"):
            _checked(name, getattr(self, name))

    def __call__(self, progress: float) -> float:
        """See `Schedule`."""
        if progress < self.peak_at:
            return _cosine(self.start, 1.0, progress, 0.0, self.peak_at)
        return _cosine(1.0, self.final, progress, self.peak_at, 1.0)


def _cosine(high: float, low: float, progress: float, begin: float, end: float) -> float:
    """Half a cosine from `high` at `begin` to `low` at `end`."""
    share = (progress - begin) / (end - begin) if end > begin else 0.0
    return low + (high - low) * (1 + math.cos(math.pi * share)) / 2
