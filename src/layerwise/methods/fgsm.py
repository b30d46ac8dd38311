"""Single-step adversarial training: one sign step, from the image or from a random start."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, final

import torch
from torch import Tensor, nn

from layerwise.core import norms
from layerwise.core.calling import Inputs, examples, with_examples
from layerwise.core.checks import NonNegative, Positive, Radius
from layerwise.core.cost import DESCENT, PROBE, Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.probe import Probe
from layerwise.core.random import Source, uniform
from layerwise.core.registry import register
from layerwise.core.sites import Sites
from layerwise.core.threat import EPS, radius
from layerwise.methods.base import InputMethod, Perturbed


@register("method")
@dataclass(kw_only=True)
class FGSM(InputMethod):
    """Fast gradient sign training: x_adv = clip(x + u + step eps sign(dL/dx at x + u)), u uniform in +-noise eps.

    Its namesakes are this class with other defaults: `FGSMRS` and `NFGSM` start at random, NAT steps
    by drawn lengths towards the least likely class.

    Args:
        eps: radius, pixels in [0, 1]; None is the threat model's.
        step: step size as a fraction of eps; SLAT's code uses 0.9 at the input.
        noise: amplitude of the random start as a fraction of eps; 0 starts at x.
        project: whether x_adv - x is cut to +-eps at the end.
        std: None steps by `step` eps; else each image by a length of its own, N(0, std eps) truncated
            to [0, step eps].
        target: `"label"` climbs the loss of the label, `"least-likely"` descends that of the class
            which the network thinks least likely (Kurakin et al. 2017, "step l.l.").
        criterion: each example's loss.
        probe: how the gradient is taken.

    Reference: Goodfellow et al. 2015, Explaining and harnessing adversarial examples, section 5.
    """

    eps: Radius | None = field(default=None, metadata=EPS)
    step: NonNegative = 1.0
    noise: NonNegative = 0.0
    project: bool = False
    std: Positive | None = None
    target: Literal["label", "least-likely"] = "label"
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    def batch_perturb(
        self, model: nn.Module, x: Inputs, y: Tensor, step: Step, record: Sites | None = None
    ) -> Perturbed:
        """One probe at the start, and the step from there."""
        eps, probe = radius(self.eps), self.probe
        given = start = examples(x)
        if self.noise:
            start = (given + self.noise * eps * uniform(given, step.generator, key="start")).clamp_(0, 1)
        if self.target == "least-likely":
            probe = replace(probe, criterion=LeastLikely(probe.criterion or self.criterion))
        g, recorded = probe(
            model, with_examples(x, start), y, criterion=self.criterion, sites=record, wrt_input=True, step=step
        )
        move = self._length(given, eps, step.generator) * g.sign()
        moved = given + (start - given + move).clamp_(-eps, eps) if self.project else start + move
        return with_examples(x, moved.clamp_(0, 1)), recorded

    def _length(self, x: Tensor, eps: float, generator: Source) -> float | Tensor:
        """How far each image steps."""
        if self.std is None:
            return self.step * eps
        return norms.rows(drawn_radii(x, generator, std=self.std * eps, largest=self.step * eps), x)

    @property
    def reach(self) -> float:
        """How far x_adv may lie from x when the step is made again: eps, or anywhere from a start beyond it."""
        return radius(self.eps) if self.project or not self.noise else math.inf

    @property
    def needs_classes(self) -> bool:
        """See `Method.needs_classes`: the least likely one is one of them."""
        return self.target == "least-likely"

    @property
    def passes(self) -> Passes:
        """One probe, one descent."""
        return PROBE + DESCENT


@register("method")
@final
@dataclass(kw_only=True)
class FGSMRS(FGSM):
    """FGSM-RS: x_adv = clip(x + project(u + 1.25 eps sign(dL/dx at x + u))), u uniform in the ball.

    Reference: Wong et al. 2020, Fast is better than free, algorithm 3; 1.25 is the authors' CIFAR-10
    value. The start is clipped to [0, 1] as in their code.
    """

    step: NonNegative = 1.25
    noise: NonNegative = 1.0
    project: bool = True


@register("method")
@final
@dataclass(kw_only=True)
class NFGSM(FGSM):
    """N-FGSM: x_adv = clip(x + u + eps sign(dL/dx at x + u)), u uniform in +-2 eps, no way back to the ball.

    Reference: de Jorge et al. 2022, Make some noise, algorithm 1. Pixels are clipped at the start and
    at the end.
    """

    noise: NonNegative = 2.0


@final
class LeastLikely(Criterion):
    """-L(logits, y_LL): its ascent leads to the class y_LL that has the smallest logit; the labels are not looked at."""

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion

    def __call__(self, logits: Tensor, y: Tensor, /) -> Tensor:
        del y
        return -self.criterion(logits, logits.detach().argmin(dim=1))


def drawn_radii(x: Tensor, generator: Source, *, std: float, largest: float) -> Tensor:
    """Each example's radius, N(0, std) truncated to [0, largest], shape (B,): std sqrt 2 erfinv(u erf(largest / (std sqrt 2)))."""
    spread = std * math.sqrt(2)
    u = (uniform(x.flatten(1)[:, 0], generator, key="radius") + 1) / 2
    # u may be a rounding error below 1, and where largest is many std, erf is 1: the inverse is then infinite.
    return (spread * torch.erfinv(u * math.erf(largest / spread))).clamp(max=largest)
