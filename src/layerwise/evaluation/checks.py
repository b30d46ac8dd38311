"""Self-checks: signs that an evaluation cannot be believed (Carlini et al. 2019, "On evaluating adversarial robustness").

Each has a name, a threshold and an explanation; what exceeds its threshold is a `Finding`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerwise.evaluation.attacks import BIM, FGSM, MIFGSM, PGD, Clean
from layerwise.evaluation.base import Attack, raw_gradient
from layerwise.evaluation.wrappers import BPDA, EOT


@dataclass(frozen=True)
class Finding:
    """A self-check that spoke up.

    Args:
        name: which check.
        threshold: the largest value that is not remarkable.
        value: what was found.
        explanation: what it means, in a sentence.
    """

    name: str
    threshold: float
    value: float
    explanation: str

    def __str__(self) -> str:
        """Write it the way that reports do."""
        return f"{self.name}: {self.value:.3g} (more than {self.threshold:g}): {self.explanation}"


@dataclass(frozen=True)
class Check:
    """A self-check: the arguments of `Finding` but the value."""

    name: str
    threshold: float
    explanation: str

    def __call__(self, value: float) -> list[Finding]:
        """A finding, or nothing."""
        return [Finding(self.name, self.threshold, value, self.explanation)] if value > self.threshold else []


FGSM_ABOVE_CLEAN = Check(
    "fgsm-above-clean",
    0.01,
    "accuracy under FGSM exceeds clean accuracy by this share of the images: the gradient's sign helps instead of harming, "
    "the network has learnt to undo one-step attacks or hides its gradient",
)
PGD_ABOVE_FGSM = Check(
    "pgd-above-fgsm",
    0.02,
    "accuracy under iterated steps exceeds that under a single step by this share of the images: "
    "the gradient leads astray (gradient masking), robust accuracy is overstated",
)
FGSM_FAR_ABOVE_PGD = Check(
    "fgsm-far-above-pgd",
    0.4,
    "accuracy under FGSM exceeds that under iterated steps by this share of the images: "
    "the network withstands the one step it was trained on and nothing else (catastrophic overfitting)",
)
ZERO_GRADIENT = Check(
    "zero-gradient",
    0.01,
    "this share of the images has an input gradient of exactly zero: attacks by gradient cannot move there; "
    "look for step functions, quantisation or saturated outputs, and use BPDA or a black-box attack",
)
BAD_GRADIENT = Check(
    "nan-gradient",
    0.0,
    "this share of the images has an input gradient that is not finite: attacks by gradient go nowhere there",
)
PROBABILITIES = Check(
    "probabilities",
    0.99,
    "this share of the outputs looks like probabilities (not negative, sum 1) instead of logits: "
    "the loss is computed on softmax of softmax, its gradient is too small; remove the last softmax",
)

CHECKS: dict[str, Check] = {
    check.name: check
    for check in (FGSM_ABOVE_CLEAN, PGD_ABOVE_FGSM, FGSM_FAR_ABOVE_PGD, ZERO_GRADIENT, BAD_GRADIENT, PROBABILITIES)
}
"""Every check by name."""


def inspect(model: nn.Module, x: Tensor, y: Tensor) -> list[Finding]:
    """Look at gradients and outputs of a batch.

    Args:
        model: the network in evaluation mode.
        x: images, shape (B, ...).
        y: labels, shape (B,).
    """
    g = raw_gradient(model, x, y).flatten(1)
    with torch.no_grad():
        outputs = model(x)
    alike = (outputs >= 0).all(dim=1) & ((outputs.sum(dim=1) - 1).abs() < 1e-4)
    return [
        *ZERO_GRADIENT((g == 0).all(dim=1).double().mean().item()),
        *BAD_GRADIENT((~g.isfinite()).any(dim=1).double().mean().item()),
        *PROBABILITIES(alike.double().mean().item()),
    ]


def compare(accuracies: Mapping[Attack, float]) -> list[Finding]:
    """Look for accuracies that contradict one another.

    Args:
        accuracies: of attacks under one threat model on the same images, in [0, 1].
    """
    by_kind: dict[str, list[float]] = {"clean": [], "one": [], "many": []}
    for attack, accuracy in accuracies.items():
        by_kind.get(_kind(attack), []).append(accuracy)
    clean, one, many = (min(values, default=None) for values in by_kind.values())
    findings: list[Finding] = []
    if one is not None and clean is not None:
        findings += FGSM_ABOVE_CLEAN(one - clean)
    if one is not None and many is not None:
        findings += [*PGD_ABOVE_FGSM(many - one), *FGSM_FAR_ABOVE_PGD(one - many)]
    return findings


def _kind(attack: Attack) -> str:
    """Clean, one full step, or at least five steps; "" is none of them."""
    while isinstance(attack, BPDA | EOT):
        attack = attack.attack
    if isinstance(attack, Clean):
        return "clean"
    if isinstance(attack, FGSM):
        return "one" if attack.step == 1 else ""
    return "many" if isinstance(attack, PGD | BIM | MIFGSM) and attack.steps >= 5 else ""
