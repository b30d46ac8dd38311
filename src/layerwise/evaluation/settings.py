"""How a trained network is evaluated: the settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from layerwise.attacks.text import parse_attack
from layerwise.core.checks import Count, Whole, check_fields
from layerwise.evaluation.evaluate import choose
from layerwise.evaluation.measure import choose_measures
from layerwise.models.stochastic import Inference
from layerwise.reading import CHECK


def _check_attacks(texts: list[str], *, trust: bool) -> None:
    """Complain about attacks that do not exist, and import those that are the user's own."""
    for text in texts:
        parse_attack(text, trust=trust)


def _check_measures(texts: list[str], *, trust: bool) -> None:
    """The same of measures."""
    choose_measures(texts, trust=trust)


@dataclass(kw_only=True)
class EvaluationSettings:
    """How the trained network is evaluated.

    Args:
        attacks: names as `layerwise list attacks` shows them, such as pgd-50-10 (50 steps, 10 restarts).
        sources: run folders of other networks; an attack transfer:each:ATTACK is made on each of them.
        measures: names as `layerwise list measures` shows them, with sizes, such as [corruptions, landscape points=21]; or all.
        trace: measures, written likewise, of every epoch at which training looks at the validation images; their numbers are logged.
        baseline: run folder of a network to compare with: its errors are 100 % in mCE and mFR, and measures of two networks take it.
        num_examples: a fixed random subset of so many; null is all.
        split: test, or validation, on which to choose anything (a rate, a method, an epoch).
        seed: of the images and of all random numbers.
        batch_size: examples attacked at a time.
        eot: passes that every gradient is averaged over, for networks that draw random numbers.
        inference: how the network is called if not simply: noisy passes averaged, images randomly resized; null calls it.
    """

    attacks: list[str] = field(default_factory=lambda: ["clean", "fgsm", "pgd-20"], metadata={CHECK: _check_attacks})
    sources: list[str] = field(default_factory=list)
    measures: list[str] = field(default_factory=list, metadata={CHECK: _check_measures})
    trace: list[str] = field(default_factory=list, metadata={CHECK: _check_measures})
    baseline: str | None = None
    num_examples: Count | None = None
    split: Literal["test", "validation"] = "test"
    seed: Whole = 0
    batch_size: Count = 250
    eot: int = 1
    inference: Inference | None = None

    def __post_init__(self) -> None:
        """Check the settings: a misspelt attack is told before the training, not after it."""
        choose(self.attacks, self.eot)
        choose_measures(self.measures)
        choose_measures(self.trace, other=False)
        check_fields(self)
