"""Figures in percent of a base model's, with intervals that know that all corruptions share their images."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar, Self, TypeAlias, final

import torch
from torch import Tensor

from layerwise.errors import ConfigError
from layerwise.evaluation.intervals import Count
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.record import DataRecord, ModelRecord

Weights: TypeAlias = Mapping[str, float]
"""What each column's sum counts for."""

_Z = NormalDist().inv_cdf(0.975)


@final
@dataclass(frozen=True)
class Percent:
    """A figure in percent.

    Args:
        value: the figure.
        half_width: half its 95 % interval over draws of as many images, the base model's figures taken as they are; None of a
            single image.
    """

    value: float
    half_width: float | None

    def __str__(self) -> str:
        """Write `84.5 +- 0.6`."""
        return f"{self.value:.1f}" + ("" if self.half_width is None else f" +- {self.half_width:.1f}")


@final
@dataclass(frozen=True)
class Sums:
    """Sums over images of whole numbers, several columns for each image, and of their products.

    Args:
        firsts: the sums.
        products: the sums of products of column i with column j; intervals of weighted sums follow from them.

    >>> sums = Sums.of([torch.tensor([0, 1, 1, 0]), torch.tensor([1, 2, 2, 1])])
    >>> str(sums.percent({"b": 10.0}, ["a", "b"], 4))
    '60.0 +- 22.6'
    """

    firsts: tuple[int, ...]
    products: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, columns: Sequence[Tensor]) -> Self:
        """The sums of columns of shape (N,)."""
        table = torch.stack([column.long() for column in columns], dim=1)
        return cls(tuple(table.sum(dim=0).tolist()), tuple(tuple(row) for row in (table.mT @ table).tolist()))

    def check(self, images: int, expected: Mapping[str, int]) -> None:
        """Accept sums that say what the counts say.

        Raises:
            ConfigError: they do not.
        """
        size = len(expected)
        fits = self.firsts == tuple(expected.values()) and len(self.products) == size
        if not fits or any(len(row) != size for row in self.products) or images < 1:
            raise ConfigError("the sums do not belong to the counts; measure again")

    def percent(self, weights: Weights, columns: Iterable[str], images: int) -> Percent:
        """The weighted sum of columns, and what it would scatter over other draws of `images` images.

        With k_i the weighted sum of image i, the half width is z sqrt(N / (N - 1) (sum k_i^2 - (sum k_i)^2 / N)).
        """
        at = {i: weights[name] for i, name in enumerate(columns) if name in weights}
        value = math.fsum(weight * self.firsts[i] for i, weight in at.items())
        if images < 2:
            return Percent(value, None)
        square = math.fsum(a * b * self.products[i][j] for i, a in at.items() for j, b in at.items())
        spread = max(0.0, square - value**2 / images) * images / (images - 1)
        return Percent(value, _Z * math.sqrt(spread))


class Tally(Measurement):
    """What was counted in every view of some images, which a base model's is compared with."""

    section: ClassVar[str] = "Corruptions"
    rank: ClassVar[int] = 20
    drawn: ClassVar[bool] = False

    model: ModelRecord
    data: DataRecord
    sums: Sums
    sources: dict[str, str]

    @property
    @abstractmethod
    def counted(self) -> dict[str, int]:
        """{column of the sums: its sum}."""

    @property
    @abstractmethod
    def conditions(self) -> dict[str, Any]:
        """What else has to be equal for a comparison, by name."""

    def percent(self, weights: Weights) -> Percent:
        """The weighted sum of columns."""
        return self.sums.percent(weights, self.counted, self.total)

    def mean(self, weights: Mapping[str, Weights | None], names: Collection[str]) -> Percent | None:
        """The mean of the weighted sums `names`; None unless each is there."""
        merged: dict[str, float] = {}
        for name in names:
            own = weights.get(name)
            if own is None:
                return None
            for column, weight in own.items():
                merged[column] = merged.get(column, 0.0) + weight / len(names)
        return self.percent(merged)

    def check_alike(self, base: Self) -> None:
        """Accept a base model that was measured alike.

        Raises:
            ConfigError: the first thing that is not.
        """
        own, other = (
            each.conditions
            | {
                "images": (each.total, each.data.fingerprint),
                "seed": each.data.seed,
                "sources of the images": each.sources,
            }
            for each in (self, base)
        )
        if differ := [what for what in own if own[what] != other[what]]:
            what = differ[0]
            raise ConfigError(
                f"{self.model.name} and its base {base.model.name} were not measured with the same {what}: "
                f"{str(own[what])[:80]} and {str(other[what])[:80]}; measure both alike"
            )


def means_against(base: ModelRecord, named: Mapping[str, Percent | None]) -> str:
    """The means that there are, in a sentence."""
    told = ", ".join(f"{name} {value} %" for name, value in named.items() if value is not None)
    return f"{told or 'no mean, which needs every corruption of its kind,'} against {base.name}."


def count(correct: Tensor) -> Count:
    """Correct out of all."""
    return Count(int(correct.sum()), len(correct))
