"""mFR: how often predictions flip within the frames of a sequence, against a base model of the reader's choice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeAlias, final

from torch import Tensor, nn

from layerwise.errors import ConfigError
from layerwise.evaluation.conditions import Data
from layerwise.evaluation.corruptions.percent import Percent, Sums, Tally, Weights, means_against
from layerwise.evaluation.corruptions.predictions import predict
from layerwise.evaluation.corruptions.sequences import EXTRA_SEQUENCES, STANDARD_SEQUENCES, is_noise
from layerwise.evaluation.corruptions.views import Maker
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.record import DataRecord, ModelRecord

Rule: TypeAlias = Literal["benchmark", "adjacent"]
"""Noise frames against the first frame (the benchmark), or every frame against the one before (ANP's formula)."""


@final
@dataclass(frozen=True)
class Flips:
    """How often the prediction flipped.

    Args:
        flips: over all sequences.
        comparisons: over all sequences.

    >>> Flips(3, 60).probability
    0.05
    """

    flips: int
    comparisons: int

    def __post_init__(self) -> None:
        """Check that the numbers can be."""
        if not 0 <= self.flips <= self.comparisons or not self.comparisons:
            raise ConfigError(f"{self.flips} flips in {self.comparisons} comparisons cannot be; measure again")

    @property
    def probability(self) -> float:
        """FP, in [0, 1]."""
        return self.flips / self.comparisons


@final
@dataclass(frozen=True)
class FlipProbabilities(Tally):
    """How stable a network's predictions are within sequences.

    Args:
        model: the network.
        data: the images that sequences begin with, and the seed.
        images: how many sequences of each kind were looked at.
        rule: what was compared.
        flips: {sequence: flips}.
        sums: flips of each image's sequences: columns as `flips`.
        sources: {sequence: where its images are from}.
    """

    title: ClassVar[str] = "Flips within sequences"

    model: ModelRecord
    data: DataRecord
    images: int
    rule: Rule
    flips: dict[str, Flips]
    sums: Sums
    sources: dict[str, str]

    def __post_init__(self) -> None:
        """Check that the numbers belong together."""
        self.sums.check(self.images, self.counted)

    @property
    def counted(self) -> dict[str, int]:
        """{sequence: how often the prediction flipped}."""
        return {name: flips.flips for name, flips in self.flips.items()}

    @property
    def conditions(self) -> dict[str, Any]:
        """The sequences, and what was compared."""
        return {"sequences": sorted(self.flips), "rule": self.rule}

    def sentence(self) -> str:
        """The mean, and the worst."""
        found = {name: 100 * flips.probability for name, flips in self.flips.items()}
        worst = max(found, key=found.__getitem__)
        mean = math.fsum(found.values()) / len(found)
        return (
            f"the prediction flips in {mean:.1f} % of the comparisons on average within {len(found)} kinds of sequences, most in "
            f"{worst} ({found[worst]:.1f} %), by the {self.rule} rule, over {self.images} sequences of each."
        )

    def cells(self) -> Mapping[str, str]:
        """Flips in each sequence, in percent."""
        return {name: str(self.probability(name)) for name in self.flips}

    def against(self, base: Self) -> FlipRates:
        """See `flip_rates`."""
        return flip_rates(self, base)

    def probability(self, name: str) -> Percent:
        """FP in percent, with its interval."""
        return self.percent({name: 100 / self.flips[name].comparisons})


def flip_probabilities(
    model: nn.Module,
    data: Data,
    *,
    names: Sequence[str] = tuple(STANDARD_SEQUENCES),
    rule: Rule = "benchmark",
    seed: int = 0,
    **options: Any,
) -> FlipProbabilities:
    """Count the flips, FP_p = mean over sequences and j = 2..n of 1[f(x_j) != f(x_{j-1})], in evaluation mode and exact arithmetic.

    By the benchmark's rule the frames of noise sequences, which do not follow from each other, are compared with the first:
    1[f(x_j) != f(x_1)]. By the formula printed in ANP ("adjacent") they are not.

    Args:
        model: any classifier that takes pixels in [0, 1] and gives logits (B, C).
        data: a data set (its test split), a split, or images and labels.
        names: of sequences; mFR needs the ten of `STANDARD_SEQUENCES`.
        rule: what is compared.
        seed: of generated sequences, and of the choice of images.
        options: of `predict` in `predictions.py`: folder, num_examples, batch_size, device ...

    Raises:
        ConfigError: an unknown sequence or rule, no logits.
        DataError: images outside [0, 1] or too small, files that are broken or belong to other data.

    >>> import torch
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))
    >>> data = torch.rand(20, 1, 8, 8), torch.arange(20) % 2
    >>> found = flip_probabilities(net, data, names=["brightness", "rotate"])
    >>> found.flips["rotate"].comparisons
    600
    """
    if rule not in ("benchmark", "adjacent"):
        raise ConfigError(f"rule={rule!r} is unknown; type 'benchmark' or 'adjacent'")
    seen = predict(model, data, names, Maker(True, seed), **{"progress_name": "sequences", **options})
    flipped = {
        name: _flips(views, with_first=rule == "benchmark" and is_noise(name))
        for name, views in seen.predictions.items()
    }
    return FlipProbabilities(
        model=seen.model,
        data=seen.data,
        images=len(seen.labels),
        rule=rule,
        flips={name: Flips(int(f.sum()), f.numel()) for name, f in flipped.items()},
        sums=Sums.of([f.sum(dim=1) for f in flipped.values()]),
        sources=seen.sources,
    )


def _flips(seen: Tensor, *, with_first: bool) -> Tensor:
    """Which of the predictions (N, frames) differ from the one before, or from the first; shape (N, frames - 1)."""
    return seen[:, 1:] != (seen[:, :1] if with_first else seen[:, :-1])


@final
@dataclass(frozen=True)
class FlipRates(Measurement):
    """Flip rates against a base model, in percent.

    Args:
        base: the base model.
        rule: what was compared.
        fr: {sequence: FR}.
        mfr: mean FR of the ten standard sequences; None unless all were measured.
        extra_mfr: mean FR of the four extra ones.
    """

    title: ClassVar[str] = "mFR"
    section: ClassVar[str] = "Corruptions"
    rank: ClassVar[int] = 20
    drawn: ClassVar[bool] = False

    base: ModelRecord
    rule: Rule
    fr: dict[str, Percent]
    mfr: Percent | None
    extra_mfr: Percent | None

    def sentence(self) -> str:
        """The means that there are."""
        return means_against(self.base, {"mFR": self.mfr, "mFR of the extra ones": self.extra_mfr})


def flip_rates(flips: FlipProbabilities, base: FlipProbabilities) -> FlipRates:
    """FR_p = FP_p / FP_p(base) and mFR, its mean over the ten standard sequences, in percent.

    Args:
        flips: of the network.
        base: of the network whose flips are 100 %.

    Raises:
        ConfigError: the two were measured on other images or sequences or by other rules, or the base model never flips.

    Reference: Hendrycks and Dietterich 2019, section 3.2; Liu et al. 2021 (ANP), section 5.1.3.
    """
    flips.check_alike(base)
    weights: dict[str, Weights] = {}
    for name, found in base.flips.items():
        if not found.flips:
            raise ConfigError(f"the base model never flips under {name}, FR has no meaning; choose another base model")
        weights[name] = {name: 100 / found.flips}
    return FlipRates(
        base=base.model,
        rule=flips.rule,
        fr={name: flips.percent(weights[name]) for name in flips.flips},
        mfr=flips.mean(weights, STANDARD_SEQUENCES),
        extra_mfr=flips.mean(weights, EXTRA_SEQUENCES),
    )
