"""Which corruptions and sequences are meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from layerwise.errors import ConfigError, did_you_mean
from layerwise.evaluation.corruptions.sequences import EXTRA_SEQUENCES, STANDARD_SEQUENCES
from layerwise.evaluation.corruptions.severities import EXTRA, STANDARD


def chosen_corruptions(names: Sequence[str]) -> list[str]:
    """Corruptions by name; `common` stands for the fifteen, `extra` for the four, `all` for both.

    >>> chosen_corruptions(["fog", "extra"])
    ['fog', 'speckle_noise', 'gaussian_blur', 'spatter', 'saturate']

    Raises:
        ConfigError: an unknown one.
    """
    return _chosen(names, STANDARD, EXTRA, "corruption")


def chosen_sequences(names: Sequence[str]) -> list[str]:
    """Perturbation sequences by name, likewise: ten are common.

    Raises:
        ConfigError: an unknown one.
    """
    return _chosen(names, STANDARD_SEQUENCES, EXTRA_SEQUENCES, "sequence")


def _chosen(names: Sequence[str], standard: Iterable[str], extra: Iterable[str], what: str) -> list[str]:
    groups = {"common": [*standard], "extra": [*extra], "all": [*standard, *extra]}
    found: list[str] = []
    for name in names:
        if name not in groups and name not in groups["all"]:
            known = [*groups, *groups["all"]]
            raise ConfigError(f"{what} {name!r} is unknown; {did_you_mean(name, known)} (`layerwise list corruptions`)")
        found += groups.get(name, [name])
    return list(dict.fromkeys(found))
