"""Single-step adversarial training: FGSM and its two starts from random noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from torch import Tensor, nn

from layerwise.core.ascent import chain, scale, sign
from layerwise.core.checks import Radius, check_radius
from layerwise.core.cost import DESCENT, PROBE, Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.probe import Probe
from layerwise.core.random import uniform
from layerwise.core.registry import register
from layerwise.core.sites import Sites
from layerwise.methods.base import InputMethod, Perturbed


@register("method")
@final
@dataclass(kw_only=True)
class FGSM(InputMethod):
    """Fast gradient sign training: x_adv = clip(x + step eps sign(dL/dx)).

    Args:
        eps: radius in pixel units, in [0, 1].
        step: step size as a fraction of eps; SLAT's code uses 0.9 at the input.
        criterion: each example's loss.
        probe: how the gradient is taken.

    Reference: Goodfellow et al. 2015, section 5.
    """

    eps: Radius = 8 / 255
    step: float = 1.0
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    def __post_init__(self) -> None:
        """Check the radius."""
        check_radius("eps", self.eps)

    def batch_perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, step: Step, record: Sites | None = None
    ) -> Perturbed:
        """One probe at x."""
        g, recorded = self.probe(model, x, y, criterion=self.criterion, sites=record, wrt_input=True, step=step)
        return (x + chain(sign(), scale(self.step * self.eps))(g)).clamp_(0, 1), recorded

    @property
    def passes(self) -> Passes:
        """One probe, one descent."""
        return PROBE + DESCENT


@register("method")
@final
@dataclass(kw_only=True)
class FGSMRS(InputMethod):
    """FGSM from a random start: x_adv = clip(x + project(u + step eps sign(dL/dx at x + u))), u uniform in the ball.

    Args:
        eps: radius in pixel units, in [0, 1].
        step: step size as a fraction of eps; 1.25 is the authors' CIFAR-10 value.
        criterion: each example's loss.
        probe: how the gradient is taken.

    Reference: Wong et al. 2020, algorithm 3. The start is clipped to [0, 1] as in the authors' code.
    """

    eps: Radius = 8 / 255
    step: float = 1.25
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    def __post_init__(self) -> None:
        """Check the radius."""
        check_radius("eps", self.eps)

    def batch_perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, step: Step, record: Sites | None = None
    ) -> Perturbed:
        """One probe at the random start."""
        start = (x + self.eps * uniform(x, step.generator, key="start")).clamp_(0, 1)
        g, recorded = self.probe(model, start, y, criterion=self.criterion, sites=record, wrt_input=True, step=step)
        r = (start - x + chain(sign(), scale(self.step * self.eps))(g)).clamp_(-self.eps, self.eps)
        return (x + r).clamp_(0, 1), recorded

    @property
    def passes(self) -> Passes:
        """One probe, one descent."""
        return PROBE + DESCENT


@register("method")
@final
@dataclass(kw_only=True)
class NFGSM(InputMethod):
    """Noise FGSM: x_adv = clip(x + u + step eps sign(dL/dx at x + u)), u uniform in +-noise eps, no projection on eps.

    Args:
        eps: radius in pixel units, in [0, 1].
        noise: amplitude of the start as a fraction of eps; 2 is the authors' value.
        step: step size as a fraction of eps.
        criterion: each example's loss.
        probe: how the gradient is taken.

    Reference: de Jorge et al. 2022, algorithm 1. Pixels are clipped at the start and at the end.
    """

    eps: Radius = 8 / 255
    noise: float = 2.0
    step: float = 1.0
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    def __post_init__(self) -> None:
        """Check the radius."""
        check_radius("eps", self.eps)

    def batch_perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, step: Step, record: Sites | None = None
    ) -> Perturbed:
        """One probe at the noisy start."""
        start = (x + self.noise * self.eps * uniform(x, step.generator, key="start")).clamp_(0, 1)
        g, recorded = self.probe(model, start, y, criterion=self.criterion, sites=record, wrt_input=True, step=step)
        return (start + chain(sign(), scale(self.step * self.eps))(g)).clamp_(0, 1), recorded

    @property
    def passes(self) -> Passes:
        """One probe, one descent."""
        return PROBE + DESCENT
