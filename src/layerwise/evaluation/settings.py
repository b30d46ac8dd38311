"""How a trained network is evaluated: the settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from layerwise.attacks.text import parse_attack
from layerwise.core.checks import at_least
from layerwise.evaluation.corruptions.names import chosen_corruptions, chosen_sequences
from layerwise.evaluation.evaluate import choose
from layerwise.evaluation.measures.registry import parse_diagnostic
from layerwise.models.stochastic import Inference
from layerwise.reading import CHECK


def _check_attacks(texts: list[str], *, trust: bool) -> None:
    """Complain about attacks that do not exist, and import those that are the user's own."""
    for text in texts:
        parse_attack(text, trust=trust)


@dataclass(kw_only=True)
class EvaluationSettings:
    """How the trained network is judged.

    Args:
        attacks: names as `layerwise list attacks` shows them, such as pgd-50-10 (50 steps, 10 restarts).
        sources: run folders of other networks; an attack transfer:each:ATTACK is made on each of them.
        num_examples: a fixed random subset of so many; null is all.
        split: test, or validation, on which to choose anything (a rate, a method, an epoch).
        seed: of the images and of all random numbers.
        batch_size: examples attacked at a time.
        eot: passes that every gradient is averaged over, for networks that draw random numbers.
        rho_steps: DeepFool steps of Deep Defense's rho_2, a measure for each; 5 to compare with the paper, 50 to converge.
        eps_ref: Deep Defense's radius at which FGSM halves the accuracy.
        corruptions: names as `layerwise list corruptions` shows them; common is the benchmark's 15, extra its 4 others, all both.
        sequences: of perturbations, likewise; common is the benchmark's 10, extra its 4 others.
        corruption_base: run folder of the network whose errors are 100 % in mCE and mFR, judged under the same record.
        diagnostics: names as `layerwise list diagnostics` shows them, with sizes, such as [landscape, jacobian images=20]; or all.
        diagnostics_other: run folder of a network to compare with, for diagnostics that need two.
        num_pictures: adversarial images to keep, of the last attack that makes some.
        inference: how the network is judged if it is not simply called: noisy passes averaged, images randomly resized; null calls it.
    """

    attacks: list[str] = field(default_factory=lambda: ["clean", "fgsm", "pgd-20"], metadata={CHECK: _check_attacks})
    sources: list[str] = field(default_factory=list)
    num_examples: int | None = None
    split: Literal["test", "validation"] = "test"
    seed: int = 0
    batch_size: int = 250
    eot: int = 1
    rho_steps: list[int] = field(default_factory=list)
    eps_ref: bool = False
    corruptions: list[str] = field(default_factory=list)
    sequences: list[str] = field(default_factory=list)
    corruption_base: str | None = None
    diagnostics: list[str] = field(default_factory=list)
    diagnostics_other: str | None = None
    num_pictures: int = 0
    inference: Inference | None = None

    def __post_init__(self) -> None:
        """Check the settings: a misspelt attack is told before the training, not after it."""
        choose(self.attacks, self.eot)
        chosen_corruptions(self.corruptions)
        chosen_sequences(self.sequences)
        for text in self.diagnostics:
            if text != "all":
                parse_diagnostic(text)
        at_least("seed", self.seed, 0)
        at_least("num_pictures", self.num_pictures, 0)
        at_least("batch_size", self.batch_size, 1)
        for steps in self.rho_steps:
            at_least("rho_steps", steps, 1)
        if self.num_examples is not None:
            at_least("num_examples", self.num_examples, 1)
