"""Attacks: typed values that are called on a batch, all built from the ascent rules of training.

An attack leaves the network as it is, mode included: `evaluate` puts it in evaluation mode; who calls an attack by hand does that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor, nn

from layerwise.attacks.base import (
    EVALUATED,
    GRADIENT,
    Averaged,
    InputAttack,
    ascend,
    is_correct,
    loss_gradient,
    starting_points,
    step_size,
)
from layerwise.core.ascent import Ascent, accumulate, chain, iterate, normalize
from layerwise.core.checks import Count, Length, NonNegative, at_least
from layerwise.core.criteria import CrossEntropy
from layerwise.core.deepfool import DeepFool, deepfool
from layerwise.core.modes import frozen
from layerwise.core.norms import ORDER, project
from layerwise.core.random import Source
from layerwise.core.registry import register
from layerwise.core.threat import ThreatModel
from layerwise.errors import ConfigError


@final
@register("attack", "clean")
@dataclass(frozen=True)
class Clean(InputAttack):
    """No attack: x' = x."""

    def passes(self, classes: int = 10) -> int:
        """The image is looked at."""
        return EVALUATED

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """The images."""
        del model, y, threat, generator
        return x


@final
@register("attack", "fgsm")
@dataclass(frozen=True)
class FGSMAttack(InputAttack):
    """Fast gradient sign: x' = clip(x + step eps sign(dL/dx)); l2: the gradient's unit vector instead of its sign.

    Args:
        step: step size as a fraction of eps, in (0, 1].

    Reference: Goodfellow et al. 2015, section 4.

    >>> attack = FGSMAttack()
    >>> x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    >>> bool((attack(net, x, y, ThreatModel("linf", 0.1)) - x).abs().max() <= 0.1 + 1e-6)
    True
    """

    step: float = 1.0

    def __post_init__(self) -> None:
        """Check the step."""
        _check_step(self.step)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """One step from x."""
        del generator
        return ascend(model, x, y, threat, start=x, steps=1, alpha=self.step * threat.eps)


class Iterated(InputAttack):
    """What attacks of several steps share."""

    numbers: ClassVar[tuple[str, ...]] = ("steps",)

    steps: Count
    alpha: Length | None
    stop_when_fooled: bool

    def resolved(self, threat: ThreatModel) -> Self:
        """With the step size."""
        return replace(self, alpha=self.step_size(threat))  # type: ignore[type-var]

    def step_size(self, threat: ThreatModel) -> float:
        """Alpha; where none is given eps / 4, or eps / steps for fewer than four steps."""
        return step_size(self.alpha, self.steps, threat)

    def passes(self, classes: int = 10) -> int:
        """A gradient a step."""
        return GRADIENT * self.steps + EVALUATED

    def ascend(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, start: Tensor, rule: Ascent | None = None
    ) -> Tensor:
        """The steps from a start."""
        stop, alpha = self.stop_when_fooled, self.step_size(threat)
        return ascend(model, x, y, threat, start=start, steps=self.steps, alpha=alpha, stop=stop, rule=rule)


@final
@register("attack", "bim")
@dataclass(frozen=True)
class BIM(Iterated):
    """Basic iterative method, or IFGSM: projected gradient ascent that starts at x.

    Args:
        steps: how many; LAD's M = 20.
        alpha: step size, pixel units; None is eps / 4 (eps / steps for fewer than four). LAD: 2/255 (robust), 0.5/255 (natural).
        stop_when_fooled: an image stays at its first iterate that fools the network; False evaluates the last iterate, as the papers
            do: weaker and dearer, but right for a network that draws random numbers (under `eot` it is so in any case).

    Reference: Kurakin et al. 2017, eq. 2 (of "Adversarial examples in the physical world").
    """

    steps: Count = 20
    alpha: Length | None = None
    stop_when_fooled: bool = True

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """Steps from x."""
        del generator
        return self.ascend(model, x, y, threat, x)


@final
@register("attack", "pgd")
@dataclass(frozen=True)
class PGDAttack(Iterated):
    """Projected gradient ascent from random starts: x_t+1 = clip(x + project(x_t - x + alpha sign(dL/dx_t))).

    Of several restarts the worst is kept for each image: one that fools the network, else the one of the highest loss. Images that
    are fooled drop out, of the later steps and of the later restarts (not of `Averaged`, see `ascend`).

    Args:
        steps: steps of each restart.
        restarts: how many; SLAT's PGD-50-10 has 50 steps and 10 restarts.
        alpha: step size, pixel units; None is eps / 4 (SLAT: 2/255 at 8/255), or eps / steps for fewer than four steps.
        random_start: start uniformly in the ball (and the pixel range) instead of at x.
        stop_when_fooled: an image stays at its first iterate that fools the network; False evaluates the last iterate, as the papers
            do: weaker and dearer, but right for a network that draws random numbers (under `eot` it is so in any case).

    Reference: Madry et al. 2018, section 2.1.
    """

    numbers: ClassVar[tuple[str, ...]] = ("steps", "restarts")

    steps: Count = 20
    restarts: Count = 1
    alpha: Length | None = None
    random_start: bool = True
    stop_when_fooled: bool = True

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if self.restarts > 1 and not self.random_start:
            raise ConfigError(f"restarts={self.restarts} without a random start are all the same; type restarts=1")

    def passes(self, classes: int = 10) -> int:
        """The steps of every restart, and a look at its end."""
        return self.restarts * super().passes(classes)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """The worst of the restarts."""
        worst = self.ascend(model, x, y, threat, starting_points(x, threat, generator) if self.random_start else x)
        if self.restarts == 1:
            return worst
        fooled, loss = verdict(model, worst, y)
        for restart in range(1, self.restarts):
            rows = (~fooled | isinstance(model, Averaged)).nonzero().flatten()
            if not len(rows):
                break
            start = starting_points(x, threat, generator, restart)[rows]
            found = self.ascend(model, x[rows], y[rows], threat, start)
            fooled_now, loss_now = verdict(model, found, y[rows])
            before = fooled[rows]
            better = (fooled_now & ~before) | ((fooled_now | ~before) & (loss_now > loss[rows]))
            worst[rows[better]], loss[rows[better]] = found[better], loss_now[better]
            fooled[rows] = before | fooled_now
        return worst


@torch.no_grad()
def verdict(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Which images fool the network, and every one's loss."""
    logits = model(x)
    return ~is_correct(logits, y), CrossEntropy()(logits, y)


@final
@register("attack", "mi-fgsm")
@dataclass(frozen=True)
class MIFGSM(Iterated):
    """Momentum iterative FGSM: m_t+1 = mu m_t + g_t / ||g_t||_1, then a step along sign(m) (l2: its unit vector).

    Args:
        steps: how many.
        mu: decay of the momentum.
        alpha: step size, pixel units; None is eps / steps, as in the paper.
        stop_when_fooled: an image stays at its first iterate that fools the network; False evaluates the last iterate, as the papers
            do: weaker and dearer, but right for a network that draws random numbers (under `eot` it is so in any case).

    Reference: Dong et al. 2018, algorithm 1; iterates are projected on the ball, which eps / steps never needs.
    """

    steps: Count = 10
    mu: NonNegative = 1.0
    alpha: Length | None = None
    stop_when_fooled: bool = True

    def step_size(self, threat: ThreatModel) -> float:
        """Alpha; where none is given eps / steps."""
        return threat.eps / self.steps if self.alpha is None else self.alpha

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """Steps from x, with momentum."""
        del generator
        return self.ascend(model, x, y, threat, x, chain(normalize("l1"), accumulate(self.mu)))


@final
@register("attack", "step-ll")
@dataclass(frozen=True)
class StepLL(InputAttack):
    """A step towards the class that the network thinks least likely: x' = clip(x - step eps sign(dL(x, y_LL)/dx)).

    Args:
        step: step size as a fraction of eps, in (0, 1].

    Reference: Kurakin et al. 2017, section 2 (of "Adversarial machine learning at scale").
    """

    step: float = 1.0

    def __post_init__(self) -> None:
        """Check the step."""
        _check_step(self.step)

    def passes(self, classes: int = 10) -> int:
        """A look at the classes, and a gradient."""
        return 1 + GRADIENT + EVALUATED

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """One step from x; the labels are not used."""
        del y, generator
        with torch.no_grad():
            least = model(x).argmin(dim=1)

        def gradient(x_adv: Tensor, last: bool) -> Tensor:
            return -loss_gradient(model, x_adv, least)

        alpha, norm = self.step * threat.eps, threat.norm
        return iterate(x, x, steps=1, alpha=alpha, eps=threat.eps, norm=norm, gradient=gradient)


@final
@register("attack", "deepfool")
@dataclass(frozen=True)
class DeepFoolAttack(InputAttack):
    """DeepFool's shortest step over the nearest boundary, in the norm of the threat model, cut to the ball and the pixel range.

    The labels are not used: the step leads away from the prediction. For the size of the step itself see `layerwise.evaluation.rho`.

    Args:
        num_steps: linearised steps.
        num_classes: how many of the likeliest classes are looked at; 10 in the paper.
        overshoot: share added to the sum of the steps.

    Reference: Moosavi-Dezfooli et al. 2016, algorithm 2.
    """

    numbers: ClassVar[tuple[str, ...]] = ("num_steps",)

    num_steps: Count = 50
    num_classes: int = 10
    overshoot: NonNegative = 0.02

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        at_least("num_classes", self.num_classes, 2)

    def passes(self, classes: int = 10) -> int:
        """A forward pass a step, and a backward pass for each class that is looked at."""
        return self.num_steps * (1 + max(2, min(classes, self.num_classes))) + EVALUATED

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """The shortest step, cut to the ball.

        Raises:
            ConfigError: no gradient reaches the images.
        """
        del y, generator
        shape = {"num_steps": self.num_steps, "num_classes": self.num_classes, "overshoot": self.overshoot}
        found = run_deepfool(model, x, p=ORDER[threat.norm], **shape)
        return (x + project(found.perturbation, threat.norm, threat.eps)).clamp(0, 1)


def run_deepfool(model: nn.Module, x: Tensor, **options: float | None) -> DeepFool:
    """`layerwise.core.deepfool.deepfool` from the prediction, the parameters frozen.

    Raises:
        ConfigError: no gradient reaches the images.
    """
    with frozen(model):
        leaf = x[:1].detach().requires_grad_()
        logits = model(leaf)
        if not logits.requires_grad or torch.autograd.grad(logits.sum(), leaf, allow_unused=True)[0] is None:
            raise ConfigError(
                "DeepFool needs gradients, and none reaches the images (a step function, a quantised network); type an attack "
                "that needs none: square"
            )
        return deepfool(model, x, **options)  # type: ignore[arg-type]


def _check_step(step: float) -> None:
    if not 0 < step <= 1:
        raise ConfigError(f"step={step} is a fraction of eps; type a number above 0 and at most 1")
