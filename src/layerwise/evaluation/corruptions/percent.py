"""Figures in percent of a base model's, with intervals that know that all corruptions share their images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Self, TypeAlias, final

import torch
from torch import Tensor

from layerwise.errors import ConfigError
from layerwise.evaluation.intervals import Count
from layerwise.evaluation.record import ModelRecord

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


def mean_weights(weights: Mapping[str, Weights | None], names: Sequence[str]) -> Weights | None:
    """The mean of the weighted sums `names`; None unless each is there."""
    total: dict[str, float] = {}
    for name in names:
        own = weights.get(name)
        if own is None:
            return None
        for column, weight in own.items():
            total[column] = total.get(column, 0.0) + weight / len(names)
    return total


def means_against(base: ModelRecord, named: Mapping[str, Percent | None]) -> str:
    """The means that there are, in a sentence."""
    told = ", ".join(f"{name} {value} %" for name, value in named.items() if value is not None)
    return f"{told or 'no mean, which needs every corruption of its kind,'} against {base.name}."


def require_same(models: tuple[ModelRecord, ModelRecord], pairs: Mapping[str, tuple[Any, Any]]) -> None:
    """Accept a network and a base model that were measured alike.

    Args:
        models: the two.
        pairs: what must be equal, by name.

    Raises:
        ConfigError: the first thing that is not.
    """
    for what, (own, base) in pairs.items():
        if own != base:
            raise ConfigError(
                f"{models[0].name} and its base {models[1].name} were not measured with the same {what}: {str(own)[:80]} and "
                f"{str(base)[:80]}; measure both alike"
            )


def count(correct: Tensor) -> Count:
    """Correct out of all."""
    return Count(int(correct.sum()), len(correct))
