"""Flips of the prediction within perturbation sequences; see `layerwise.evaluation.corruptions`."""

from __future__ import annotations

from layerwise.core.registry import register
from layerwise.evaluation.corruptions import SEQUENCES, FlipProbabilities, flip_probabilities
from layerwise.evaluation.corruptions.names import chosen_sequences
from layerwise.evaluation.measure import Target


@register(
    "measure",
    "sequences",
    passes=lambda size: size.total * (1 + sum(SEQUENCES[n][1] for n in chosen_sequences(size.words or ["common"]))),
    check=lambda *names: chosen_sequences(names),
)
def _measure(target: Target, *names: str) -> FlipProbabilities:
    """Flips of the prediction within sequences: common (10, the usual ones), extra (4 others), all, or names (`list corruptions`)."""
    chosen = chosen_sequences(names or ["common"])
    return flip_probabilities(target.model, target.split, names=chosen, **target.subset, **target.told)
