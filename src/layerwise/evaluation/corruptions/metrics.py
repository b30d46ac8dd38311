"""mCE and relative mCE of any classifier, against a base model of the reader's choice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeAlias, final

from torch import nn

from layerwise.errors import ConfigError
from layerwise.evaluation.conditions import Data
from layerwise.evaluation.corruptions.frost import Frost
from layerwise.evaluation.corruptions.percent import Percent, Sums, Tally, Weights, count, means_against
from layerwise.evaluation.corruptions.predictions import predict
from layerwise.evaluation.corruptions.severities import EXTRA, SEVERITIES, STANDARD
from layerwise.evaluation.corruptions.views import Maker
from layerwise.evaluation.intervals import Count
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.record import DataRecord, ModelRecord

Relative: TypeAlias = Literal["differences", "as-printed"]
"""The two definitions of relative CE, see `mce`."""


@final
@dataclass(frozen=True)
class CorruptionErrors(Tally):
    """Where a network errs on corrupted images.

    Args:
        model: the network.
        data: the clean images, and the seed of the corruptions.
        clean: correct on the clean images.
        counts: {corruption: correct at severity 1 to 5}.
        sums: how often images were wrong: columns (clean, *counts), entries 0 or 1 and 0 to 5.
        sources: {corruption: where its images are from}.
        table: of severities.
    """

    title: ClassVar[str] = "Errors under corruptions"

    model: ModelRecord
    data: DataRecord
    clean: Count
    counts: dict[str, tuple[Count, ...]]
    sums: Sums
    sources: dict[str, str]
    table: str

    def __post_init__(self) -> None:
        """Check that the numbers belong together."""
        everything = [self.clean, *(count for counts in self.counts.values() for count in counts)]
        if any(len(counts) != len(SEVERITIES) for counts in self.counts.values()):
            raise ConfigError(f"each corruption has {len(SEVERITIES)} severities; measure again")
        if len({count.total for count in everything}) > 1:
            raise ConfigError("the corruptions were measured on different numbers of images; measure again")
        self.sums.check(self.images, self.counted)

    @property
    def images(self) -> int:
        """How many images were looked at."""
        return self.clean.total

    @property
    def counted(self) -> dict[str, int]:
        """{"clean", corruption: how often wrong, over images and severities}."""
        wrong = {name: sum(c.total - c.correct for c in counts) for name, counts in self.counts.items()}
        return {"clean": self.clean.total - self.clean.correct, **wrong}

    @property
    def conditions(self) -> dict[str, Any]:
        """The corruptions, and how strong they are."""
        return {"corruptions": sorted(self.counts), "table of severities": self.table}

    def sentence(self) -> str:
        """The mean error, and the worst."""
        errors = {name: 100 * self.error(name) for name in self.counts}
        worst = max(errors, key=errors.__getitem__)
        mean = math.fsum(errors.values()) / len(errors)
        return (
            f"{mean:.1f} % of {self.images} images are misclassified on average under {len(errors)} corruptions, most under "
            f"{worst} ({errors[worst]:.1f} %); {100 * (1 - self.clean.accuracy):.1f} % without."
        )

    def cells(self) -> Mapping[str, str]:
        """The error without corruption and under each, in percent."""
        clean = {"none": f"{100 * (1 - self.clean.accuracy):.1f}"}
        return clean | {name: f"{100 * self.error(name):.1f}" for name in self.counts}

    def against(self, base: Self) -> CorruptionScores:
        """See `mce`."""
        return mce(self, base)

    def error(self, name: str) -> float:
        """The mean error over severities, in [0, 1]."""
        return self.counted[name] / (len(SEVERITIES) * self.images)


def corruption_errors(
    model: nn.Module,
    data: Data,
    *,
    names: Sequence[str] = STANDARD,
    seed: int = 0,
    table: str = "auto",
    frost: Frost | None = None,
    **options: Any,
) -> CorruptionErrors:
    """Count the errors on every corruption at every severity, in evaluation mode and exact arithmetic.

    Args:
        model: any classifier that takes pixels in [0, 1] and gives logits (B, C).
        data: a data set (its test split), a split, or images and labels.
        names: of corruptions; mCE needs the fifteen of `STANDARD`.
        seed: of generated corruptions, and of the choice of images.
        table: of severities, see `table_for`.
        frost: the pictures; by default `load_frost()`.
        options: of `predict` in `predictions.py`: folder, num_examples, batch_size, device ...

    Raises:
        ConfigError: an unknown corruption, no logits.
        DataError: images outside [0, 1] or too small, files that are broken or belong to other data.

    >>> import torch
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    >>> data = torch.rand(20, 1, 8, 8), torch.arange(20) % 2
    >>> errors = corruption_errors(net, data, names=["contrast", "brightness"])
    >>> str(mce(errors, errors).ce["contrast"]).split(" ")[0]
    '100.0'
    """
    seen = predict(model, data, names, Maker(False, seed, table, frost), **{"progress_name": "corruptions", **options})
    correct = {name: views == seen.labels[:, None] for name, views in seen.predictions.items()}
    clean = seen.clean == seen.labels
    times_wrong = [~clean, *((~c).sum(dim=1) for c in correct.values())]
    return CorruptionErrors(
        model=seen.model,
        data=seen.data,
        clean=count(clean),
        counts={name: tuple(count(column) for column in c.unbind(1)) for name, c in correct.items()},
        sums=Sums.of(times_wrong),
        sources=seen.sources,
        table=seen.table,
    )


@final
@dataclass(frozen=True)
class CorruptionScores(Measurement):
    """Corruption errors against a base model, in percent of its errors.

    Args:
        base: the base model.
        relative: the definition of the relative errors: "differences" or "as-printed", see `mce`.
        ce: {corruption: CE}.
        relative_ce: {corruption: relative CE}; None where the base model is no worse than on clean images.
        mce: mean CE of the fifteen standard corruptions; None unless all were measured.
        relative_mce: mean relative CE of them; None unless each has one.
        extra_mce: mean CE of the four extra corruptions.
        extra_relative_mce: mean relative CE of them.
    """

    title: ClassVar[str] = "mCE"
    section: ClassVar[str] = "Corruptions"
    rank: ClassVar[int] = 20
    drawn: ClassVar[bool] = False

    base: ModelRecord
    relative: Relative
    ce: dict[str, Percent]
    relative_ce: dict[str, Percent | None]
    mce: Percent | None
    relative_mce: Percent | None
    extra_mce: Percent | None
    extra_relative_mce: Percent | None

    def sentence(self) -> str:
        """The means that there are."""
        named = {
            "mCE": self.mce,
            f"relative mCE ({self.relative})": self.relative_mce,
            "mCE of the extra ones": self.extra_mce,
        }
        return means_against(self.base, named)


def mce(errors: CorruptionErrors, base: CorruptionErrors, *, relative: Relative = "differences") -> CorruptionScores:
    """CE_c = sum_s E_{s,c} / sum_s E_{s,c}(base) and mCE, its mean over the fifteen standard corruptions, in percent.

    The relative CE is sum_s (E_{s,c} - E_clean) / sum_s (E_{s,c}(base) - E_clean(base)), as the benchmark defines it
    ("differences"), or (sum_s E_{s,c} - E_clean) / (sum_s E_{s,c}(base) - E_clean(base)), as ANP's formula is typeset
    ("as-printed").

    Args:
        errors: of the network.
        base: of the network whose errors are 100 %: AlexNet for ImageNet-C, the vanilla model in ANP's tables.
        relative: which definition.

    Raises:
        ConfigError: the two were measured on other images or corruptions, or the base model makes no errors.

    Reference: Hendrycks and Dietterich 2019, section 3.1; Liu et al. 2021 (ANP), section 5.1.3.
    """
    if relative not in ("differences", "as-printed"):
        raise ConfigError(f"relative={relative!r} is unknown; type 'differences' or 'as-printed'")
    errors.check_alike(base)
    wrong = base.counted
    clean = len(SEVERITIES) if relative == "differences" else 1
    ce: dict[str, Weights] = {}
    relative_ce: dict[str, Weights | None] = {}
    for name in errors.counts:
        if not wrong[name]:
            raise ConfigError(
                f"the base model makes no errors under {name}, CE has no meaning; choose another base model"
            )
        ce[name] = {name: 100 / wrong[name]}
        rise = wrong[name] - clean * wrong["clean"]
        relative_ce[name] = {name: 100 / rise, "clean": -100 * clean / rise} if rise > 0 else None
    return CorruptionScores(
        base=base.model,
        relative=relative,
        ce={name: errors.percent(weights) for name, weights in ce.items()},
        relative_ce={n: None if weights is None else errors.percent(weights) for n, weights in relative_ce.items()},
        mce=errors.mean(ce, STANDARD),
        relative_mce=errors.mean(relative_ce, STANDARD),
        extra_mce=errors.mean(ce, EXTRA),
        extra_relative_mce=errors.mean(relative_ce, EXTRA),
    )
