"""Self-checks: signs that an evaluation cannot be believed (Carlini et al. 2019, "On evaluating adversarial robustness").

Each has a name, a threshold and an explanation; what exceeds its threshold is a `Finding`. What is compared is not the share of the
images that was seen but the lower end of its interval, so that few images do not cry wolf. `compare` looks for contradictions among
the attacks that were run anyway, `layerwise.evaluation.examine` attacks a few images itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import torch
from torch import Tensor

from layerwise.attacks.at import At
from layerwise.attacks.base import Around, Attack
from layerwise.attacks.gradient import Clean, FGSMAttack, Iterated, PGDAttack
from layerwise.attacks.transfer import Transfer
from layerwise.core.threat import ThreatModel
from layerwise.evaluation.intervals import wilson

LEVEL = 0.98
"""Coverage of the intervals: an honest network at a threshold exceeds it by chance in one evaluation of a hundred."""

NEAR = 1.5
"""A finding below so many times its threshold says that it is near it."""

BLACK_BOX, WHITE_BOX = ("square", "transfer"), ("apgd-ce", "apgd-t", "fab-t")
"""Attacks that use no gradient of the network and others that do, by name."""


@dataclass(frozen=True)
class Finding:
    """A self-check that spoke up.

    Args:
        name: which check.
        threshold: the largest value that is not remarkable.
        value: at least this share of the images, the lower end of its interval.
        explanation: how many images, what it means and what to do.
    """

    name: str
    threshold: float
    value: float
    explanation: str

    def __str__(self) -> str:
        """Write it the way that reports do."""
        return f"{self.name}: at least {self.value:.3g} (more than {self.threshold:g}): {self.explanation}"


@dataclass(frozen=True)
class Check:
    """A self-check.

    Args:
        name: what it is called.
        threshold: the largest share of the images that is not remarkable.
        looks_at: of which images the share is taken.
        meaning: what it means, and what to do about it.
    """

    name: str
    threshold: float
    looks_at: str
    meaning: str

    @property
    def explanation(self) -> str:
        """What it looks at, what that means, and what to do about it."""
        return f"{self.looks_at}: {self.meaning}"

    def share(self, hits: Tensor | int, total: int) -> list[Finding]:
        """A finding if so many of `total` images are more than the threshold allows.

        Args:
            hits: how many, or bool (B,).
            total: of how many.
        """
        count = int(hits.sum()) if isinstance(hits, Tensor) else hits
        low, high = wilson(count, total, level=LEVEL)
        return self._finding(
            low if count else 0.0, count, total, f" ({100 * low:.1f} to {100 * high:.1f} % of all such)"
        )

    def surplus(self, hits: Tensor, against: Tensor) -> list[Finding]:
        """A finding if `hits` outnumber `against` by more than the threshold allows, both of the same images.

        The value is (h + a) / n (2 q - 1), q the lower end of the interval of h / (h + a): what the two share is no evidence.

        Args:
            hits: bool (B,).
            against: bool (B,).
        """
        only, other, total = int((hits & ~against).sum()), int((against & ~hits).sum()), len(hits)
        value = (only + other) / total * (2 * wilson(only, only + other, level=LEVEL)[0] - 1) if only else 0.0
        return self._finding(value, only, total, f" ({other} the other way round)")

    def _finding(self, value: float, count: int, total: int, beside: str = "") -> list[Finding]:
        text = f"{count} of {total} images{beside}: {self.explanation}"
        if value < NEAR * self.threshold:
            text += f"; this is near the threshold of {self.threshold:g}: look at more images before you rely on it"
        return [Finding(self.name, self.threshold, value, text)] if value > self.threshold else []


FGSM_ABOVE_CLEAN = Check(
    "fgsm-above-clean",
    0.0,
    "right under FGSM and wrong without attack",
    "the gradient's sign helps instead of harming, the network has learnt to undo one-step attacks or hides its gradient; "
    "do not report FGSM, look at the checks on gradients",
)
PGD_ABOVE_FGSM = Check(
    "pgd-above-fgsm",
    0.01,
    "right under iterated steps and wrong under a single one",
    "the gradient leads astray (gradient masking), robust accuracy is overstated; use a black-box attack as well",
)
FGSM_FAR_ABOVE_PGD = Check(
    "fgsm-far-above-pgd",
    0.35,
    "right under FGSM and wrong under iterated steps",
    "a single step says nothing here: the network withstands the one step it was trained on (catastrophic overfitting) or is too "
    "curved for it; report PGD or stronger",
)
MORE_STEPS = Check(
    "more-steps-weaker",
    0.01,
    "better off under more steps or restarts",
    "the gradient leads astray, or the step is too long for the last steps to help; try a smaller alpha and more restarts",
)
LARGER_RADIUS = Check(
    "larger-radius-weaker",
    0.05,
    "fooled within a radius and right when the same attack may go farther",
    "what the larger ball holds is not found, so what the smaller holds may not be either; use restarts and a black-box attack",
)
BLACK_BOX_BETTER = Check(
    "black-box-beats-white-box",
    0.02,
    "fooled by an attack without gradients (Square, transfer) and by none with",
    "the gradient hides what is there (gradient masking); count the worst case over all attacks and use AutoAttack",
)
ZERO_GRADIENT = Check(
    "zero-gradient",
    0.01,
    "the input gradient is exactly zero",
    "attacks by gradient cannot move there; look for step functions, quantisation or saturated outputs, and use BPDA or a black-box "
    "attack",
)
BAD_GRADIENT = Check(
    "nan-gradient",
    0.0,
    "the input gradient is not finite",
    "attacks by gradient go nowhere there; look for roots, logarithms and divisions at the pixels' limits",
)
RANDOM_GRADIENT = Check(
    "random-gradient",
    0.05,
    "two passes give gradients at an angle (cosine below 0.99)",
    "the network draws random numbers in evaluation mode, which one pass cannot follow; average over passes (eot=16 or more), and "
    "do not trust the checks that need a fixed network: they were left out",
)
PROBABILITIES = Check(
    "probabilities",
    0.5,
    "all outputs lie in [0, 1]",
    "they look like probabilities instead of logits: the loss is computed on softmax of softmax, its gradient is too small; remove "
    "the last softmax or sigmoid",
)
FLAT_LOGITS = Check(
    "flat-logits",
    0.5,
    "the two largest logits are less than 0.1 apart though the prediction is correct",
    "cross entropy is all but linear in such logits, so that attacks push towards all classes at once and towards none; use apgd-t, "
    "or multiply the logits by a constant",
)
UNRELATED_GRADIENT = Check(
    "unrelated-gradient",
    0.1,
    "a step of eps / 4 along the gradient does not raise the loss",
    "the loss does not do what its gradient says (step functions, a gradient of another function, a very rough loss); use a "
    "black-box attack",
)
OVERFITTING = Check(
    "catastrophic-overfitting",
    0.04,
    "withstands the full single step and falls to iterated steps within 3/4 of the radius (l2: 0.6)",
    "the network has learnt that one step and nothing else (catastrophic overfitting); train with a random start, more steps or less "
    "epochs, and report PGD or stronger",
)
SATURATED = Check(
    "loss-saturated",
    0.1,
    "withstands PGD on cross entropy and falls to PGD on the same logits, divided by the gap of the two largest",
    "cross entropy is saturated (large or distilled logits), its gradient vanishes in rounding; use apgd-t, or divide the logits",
)
RANDOM_SEARCH = Check(
    "random-search-beats-gradient",
    0.05,
    "withstands PGD and falls to a short random search",
    "the gradient hides what is there (gradient masking); use Square or AutoAttack",
)
ROUGH = Check(
    "smoothed-gradient-beats-gradient",
    0.1,
    "withstands PGD and falls to PGD whose gradients are means over noise around each image",
    "gradients are right at a point and lead nowhere around it (ripples, very rough layers); use Square or AutoAttack with more "
    "queries, or average gradients over noise on the images",
)
UNBOUNDED = Check(
    "unbounded-attack-fails",
    0.05,
    "withstands PGD that may change the image into any other",
    "the attack does not work here, whatever the radius: smaller ones prove nothing either; look at the checks on gradients",
)

CHECKS: dict[str, Check] = {
    check.name: check
    for check in (
        *(ZERO_GRADIENT, BAD_GRADIENT, RANDOM_GRADIENT, PROBABILITIES, FLAT_LOGITS),
        *(UNRELATED_GRADIENT, OVERFITTING, SATURATED, ROUGH, RANDOM_SEARCH, UNBOUNDED, LARGER_RADIUS, MORE_STEPS),
        *(FGSM_ABOVE_CLEAN, PGD_ABOVE_FGSM, FGSM_FAR_ABOVE_PGD, BLACK_BOX_BETTER),
    )
}
"""Every check by name."""


def compare(outcomes: Mapping[Attack, Tensor], threat: ThreatModel) -> list[Finding]:
    """Look for outcomes that contradict one another.

    Args:
        outcomes: of attacks on the same images: which stay right, bool (N,).
        threat: against what.
    """
    runs = [_Run.of(attack, threat, right) for attack, right in outcomes.items()]
    clean, one, many, white, black = (_worst(runs, threat, kind) for kind in (_clean, _one, _many, _white, _black))
    findings: list[Finding] = []
    if one is not None and clean is not None:
        findings += FGSM_ABOVE_CLEAN.surplus(one, clean)
    if one is not None and many is not None:
        findings += PGD_ABOVE_FGSM.surplus(many, one)
        # One l2 step is so poor an attack that honest networks withstand it by 50 points more than iterated ones.
        findings += FGSM_FAR_ABOVE_PGD.surplus(one, many) if threat.norm == "linf" else []
    if black is not None and white is not None:
        strongest = white if one is None else white & one
        findings += BLACK_BOX_BETTER.share(strongest & ~black, len(strongest))
    return findings + _contradictions(runs, threat)


@dataclass(frozen=True)
class _Run:
    """An attack without the wrappers around it, where it was allowed to go, and what stayed right."""

    attack: Attack
    threat: ThreatModel
    right: Tensor

    @classmethod
    def of(cls, attack: Attack, threat: ThreatModel, right: Tensor) -> _Run:
        while isinstance(attack, Around) and not isinstance(attack, Transfer):
            threat = attack.threat(threat) if isinstance(attack, At) else threat
            attack = attack.attack
        return cls(attack, threat, right)

    @property
    def reach(self) -> float:
        return self.threat.eps * (self.attack.step if isinstance(self.attack, FGSMAttack) else 1)

    @property
    def effort(self) -> tuple[int, int]:
        attack = self.attack
        return (
            (attack.steps, attack.restarts if isinstance(attack, PGDAttack) else 1)
            if isinstance(attack, Iterated)
            else (1, 1)
        )


def _clean(attack: Attack) -> bool:
    return isinstance(attack, Clean)


def _one(attack: Attack) -> bool:
    return isinstance(attack, FGSMAttack) and attack.step == 1


def _many(attack: Attack) -> bool:
    return isinstance(attack, Iterated) and attack.steps >= 5


def _white(attack: Attack) -> bool:
    return _many(attack) or attack.name in WHITE_BOX


def _black(attack: Attack) -> bool:
    return attack.name in BLACK_BOX


def _worst(runs: Sequence[_Run], threat: ThreatModel, kind: Callable[[Attack], bool]) -> Tensor | None:
    """What stays right under every attack of a kind in the threat model; None if there is no such attack."""
    chosen = [run.right for run in runs if run.threat == threat and kind(run.attack)]
    return torch.stack(chosen).all(dim=0) if chosen else None


def _contradictions(runs: Sequence[_Run], threat: ThreatModel) -> list[Finding]:
    """For each check, the worst case of an attack that is stronger on paper and weaker on the images."""
    found: dict[str, Finding] = {}
    for weak, strong in permutations(runs, 2):
        if (check := _stronger(weak, strong, threat)) is not None:
            for finding in check.surplus(strong.right, weak.right):
                found[check.name] = max(finding, found.get(check.name, finding), key=lambda f: f.value)
    return list(found.values())


def _stronger(weak: _Run, strong: _Run, threat: ThreatModel) -> Check | None:
    """Which check the two fail if `strong` leaves more right; None if the two cannot be ranked."""
    if weak.threat.norm != strong.threat.norm or _alike(weak.attack) != _alike(strong.attack):
        return None
    more = [s >= w for w, s in zip(weak.effort, strong.effort, strict=True)]
    if weak.effort != strong.effort:
        return MORE_STEPS if all(more) and weak.threat == strong.threat else None
    # A single step that goes far beyond the radius in question often comes out on the other side: that is no sign of anything.
    known = isinstance(strong.attack, Iterated) or strong.reach <= threat.eps
    return LARGER_RADIUS if strong.reach > weak.reach and known else None


def _alike(attack: Attack) -> object:
    """Equal for attacks that differ in their effort or their fraction of the radius only; each attack of another kind is alone."""
    if isinstance(attack, FGSMAttack):
        return FGSMAttack
    if isinstance(attack, PGDAttack):
        return replace(attack, steps=1, restarts=1)
    if isinstance(attack, Iterated):
        return replace(attack, steps=1)  # type: ignore[type-var]
    return attack if _white(attack) else id(attack)
