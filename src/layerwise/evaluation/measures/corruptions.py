"""Errors under the common corruptions, five severities each; see `layerwise.evaluation.corruptions`."""

from __future__ import annotations

from layerwise.core.registry import register
from layerwise.evaluation.corruptions import SEVERITIES, CorruptionErrors, corruption_errors
from layerwise.evaluation.corruptions.names import chosen_corruptions
from layerwise.evaluation.measure import Target


@register(
    "measure",
    "corruptions",
    passes=lambda size: size.total * (1 + len(SEVERITIES) * len(chosen_corruptions(size.words or ["common"]))),
    check=lambda *names: chosen_corruptions(names),
)
def _measure(target: Target, *names: str) -> CorruptionErrors:
    """Errors under common corruptions: common (15, the usual ones), extra (4 others), all, or names (`list corruptions`)."""
    chosen = chosen_corruptions(names or ["common"])
    return corruption_errors(target.model, target.split, names=chosen, **target.subset, **target.told)
