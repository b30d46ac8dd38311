"""Multi-step adversarial training: PGD and TRADES."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.core.ascent import iterate, random_start
from layerwise.core.calling import Inputs, examples, logits, with_examples
from layerwise.core.checks import Count, NonNegative, Radius
from layerwise.core.cost import AGAIN, DESCENT, PROBE, Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.modes import batch_norm
from layerwise.core.norms import Norm
from layerwise.core.passes import Gradients
from layerwise.core.probe import Probe
from layerwise.core.random import normal
from layerwise.core.registry import register
from layerwise.core.sites import Sites
from layerwise.core.tape import remembered
from layerwise.core.threat import EPS, NORM, radius
from layerwise.methods.base import InputMethod, Perturbed


@register("method")
@final
@dataclass(kw_only=True)
class PGD(InputMethod):
    """Adversarial training with projected gradient ascent from a random start.

    Args:
        eps: radius, pixels in [0, 1]; None is the threat model's, and so is the norm then.
        steps: probes before the descent; 10 is LAD's M, 7 SLAT's PGD-7.
        step: step size as a fraction of eps; 1/4 is 2/255 of 8/255.
        norm: `"linf"` or `"l2"`; None is the threat model's, or linf with an eps of its own.
        random_start: start uniformly in the ball instead of at x.
        criterion: each example's loss.
        probe: how gradients are taken.

    Reference: Madry et al. 2018, Towards deep learning models resistant to adversarial attacks, section 2.1.
    """

    eps: Radius | None = field(default=None, metadata=EPS)
    steps: Count = 10
    step: NonNegative = 0.25
    norm: Literal["linf", "l2"] | None = field(default=None, metadata=NORM)
    random_start: bool = True
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    @property
    def ball(self) -> tuple[float, Norm]:
        """Radius and norm."""
        norm = self.norm or "linf"
        return radius(self.eps, norm), norm

    def batch_perturb(
        self, model: nn.Module, x: Inputs, y: Tensor, step: Step, record: Sites | None = None
    ) -> Perturbed:
        """`steps` probes; the last one records."""
        given = examples(x)
        start = random_start(given, *self.ball, step.generator) if self.random_start else given
        return self.climb(model, x, start, y, step, record)

    def climb(
        self, model: nn.Module, x: Inputs, start: Tensor, y: Tensor, step: Step, record: Sites | None = None
    ) -> Perturbed:
        """The same from a given start, in the ball around x; y is what the criterion takes beside the logits."""
        eps, norm = self.ball
        recorded: Gradients = {}

        def gradient(x_adv: Tensor, last: bool) -> Tensor:
            nonlocal recorded
            sites = record if last else None
            at = with_examples(x, x_adv)
            g, recorded = self.probe(model, at, y, criterion=self.criterion, sites=sites, wrt_input=True, step=step)
            return g

        with self.probe.around(model):
            x_adv = iterate(
                examples(x), start, steps=self.steps, alpha=self.step * eps, eps=eps, norm=norm, gradient=gradient
            )
        return with_examples(x, x_adv), recorded

    @property
    def passes(self) -> Passes:
        """`steps` probes and a descent: 2 n + 3."""
        return self.steps * PROBE + DESCENT


class Divergence(Criterion):
    """KL(p || softmax(logits)) of each example, where the target is p, shape (B, C)."""

    def __call__(self, logits: Tensor, target: Tensor, /) -> Tensor:
        return F.kl_div(F.log_softmax(logits, dim=1), target, reduction="none").sum(dim=1)

    def mean(self, logits: Tensor, target: Tensor, /) -> Tensor:
        """See `Criterion`; two kernels less in each direction, the same gradients."""
        return F.kl_div(F.log_softmax(logits, dim=1), target, reduction="batchmean")

    def sum(self, logits: Tensor, target: Tensor, /) -> Tensor:
        return F.kl_div(F.log_softmax(logits, dim=1), target, reduction="sum")


divergence = Divergence()


@register("method")
@final
@dataclass(kw_only=True)
class TRADES(InputMethod):
    """Trade accuracy for robustness: L(f(x), y) + beta KL(f(x) || f(x_adv)), x_adv maximising the KL term.

    Args:
        attack: how x_adv climbs the KL term: radius, steps, batch norm in its probes. Its criterion is
            the KL term, its start `start_noise`.
        beta: weight of the KL term, 1 / lambda of the papers (LAD prints lambda = 1/6).
        start_noise: deviation of the Gaussian start, in pixel units, since the KL term has no gradient
            at x.
        criterion: each example's loss at the clean input.

    Reference: Zhang et al. 2019, Theoretically principled trade-off between robustness and accuracy,
    algorithm 1. The natural forward of the attack is computed once, not at every step; the attack runs
    with batch statistics by default, where the authors' code has `attack.probe.batch_norm = "eval"`.
    """

    attack: PGD = field(default_factory=PGD)
    beta: NonNegative = 6.0
    start_noise: NonNegative = 0.001
    criterion: Criterion = field(default_factory=CrossEntropy)

    needs_classes = True
    """The KL term is between them."""

    def batch_perturb(
        self, model: nn.Module, x: Inputs, y: Tensor, step: Step, record: Sites | None = None
    ) -> Perturbed:
        """One natural forward, then the attack on the KL term."""
        del y
        target = remembered(lambda: self._natural(model, x))
        given = examples(x)
        start = (given + self.start_noise * normal(given, step.generator, key="start")).clamp_(0, 1)
        probe = replace(self.attack.probe, criterion=divergence)
        return replace(self.attack, probe=probe).climb(model, x, start, target, step, record)

    def _natural(self, model: nn.Module, x: Inputs) -> Tensor:
        """What the attack moves away from."""
        with torch.no_grad(), batch_norm(model, self.attack.probe.batch_norm):
            probabilities: Tensor = logits(model, x).softmax(dim=1)
        return probabilities

    def parts(self, model: nn.Module, x: Inputs, x_adv: Inputs, y: Tensor) -> tuple[Tensor, Tensor]:
        """The mean natural loss and the mean KL term; the natural pass comes first."""
        natural = logits(model, x)
        return self.criterion.mean(natural, y), divergence.mean(logits(model, x_adv), natural.softmax(dim=1))

    def loss(self, model: nn.Module, x: Inputs, x_adv: Inputs, y: Tensor) -> Tensor:
        """L(f(x), y) + beta KL."""
        natural, kl = self.parts(model, x, x_adv, y)
        return natural + self.beta * kl

    @property
    def passes(self) -> Passes:
        """A natural forward, those of the attack, a descent over two inputs."""
        return Passes(1, 0, 0, 0) + self.attack.passes + AGAIN
