"""Training on clean and adversarial images in equal parts: PAT, NAT and EAT, ANP's baselines."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn

from layerwise.core import norms
from layerwise.core.checks import Radius, at_least, check_radius, one_of
from layerwise.core.cost import DESCENT, PROBE, Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.probe import Probe
from layerwise.core.random import Source, for_the_batch, uniform
from layerwise.core.registry import register
from layerwise.core.sites import Sites
from layerwise.methods.base import InputMethod, Perturbed
from layerwise.methods.pgd import PGD
from layerwise.methods.sources import NETWORKS, Sources

Halves: TypeAlias = Literal["apart", "together"]
"""`"apart"`: batch norm sees the clean and the adversarial images in a pass each; `"together"`: in one pass of 2 B images."""

HALVES = ("apart", "together")
SECOND = Passes(1, 1, 1, 0)
"""The descent over the second half."""


def joint_loss(
    criterion: Criterion,
    model: nn.Module,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    *,
    alpha: float = 0.5,
    halves: Halves = "apart",
) -> Tensor:
    """Alpha L(x) + (1 - alpha) L(x_adv), mean losses; with alpha 1/2 the mean over all 2 B images. The clean images come first."""
    if halves == "together":
        clean, adversarial = criterion(model(torch.cat([x, x_adv])), torch.cat([y, y])).chunk(2)
        return alpha * clean.mean() + (1 - alpha) * adversarial.mean()
    clean = criterion.mean(model(x), y)
    return alpha * clean + (1 - alpha) * criterion.mean(model(x_adv), y)


@register("method")
@final
@dataclass(kw_only=True)
class PAT(InputMethod):
    """PGD adversarial training on clean and adversarial images 1 : 1, the mean loss over all 2 B of them.

    Args:
        eps: radius in pixel units, in [0, 1].
        steps: probes of the attack.
        alpha: step size.
        random_start: start uniformly in the ball; the paper's PGD starts at x.
        halves: see `Halves`; the paper says that both kinds are mixed in the training set.
        criterion: each example's loss.
        probe: how gradients are taken.

    Reference: Liu et al. 2021 (ANP), implementation details: eps 8, k 10, alpha 2 of 255.
    """

    eps: Radius = 8 / 255
    steps: int = 10
    alpha: Radius = 2 / 255
    random_start: bool = False
    halves: Halves = "apart"
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    def __post_init__(self) -> None:
        """Check the fields."""
        self._attack()
        one_of("halves", self.halves, HALVES)

    def _attack(self) -> PGD:
        shared: dict[str, Any] = {"eps": self.eps, "steps": self.steps, "alpha": self.alpha}
        return PGD(**shared, random_start=self.random_start, criterion=self.criterion, probe=self.probe)

    def batch_perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, step: Step, record: Sites | None = None
    ) -> Perturbed:
        """As PGD does."""
        return self._attack().batch_perturb(model, x, y, step, record)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """The mean over both halves."""
        return joint_loss(self.criterion, model, x, x_adv, y, halves=self.halves)

    @property
    def passes(self) -> Passes:
        """Those of PGD and the clean half."""
        return self._attack().passes + SECOND


class LeastLikely(Criterion):
    """-L(logits, y_LL): its ascent leads to the class y_LL that has the smallest logit; the labels are not looked at."""

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion

    def __call__(self, logits: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`."""
        del y
        return -self.criterion(logits, logits.detach().argmin(dim=1))


def drawn_radii(x: Tensor, generator: Source, *, std: float, largest: float) -> Tensor:
    """Each example's radius, N(0, std) truncated to [0, largest], shape (B,): std sqrt 2 erfinv(u erf(largest / (std sqrt 2)))."""
    spread = std * math.sqrt(2)
    u = (uniform(x.flatten(1)[:, 0], generator, key="radius") + 1) / 2
    # u may be a rounding error below 1, and where largest is many std, erf is 1: the inverse is then infinite.
    return (spread * torch.erfinv(u * math.erf(largest / spread))).clamp(max=largest)


@register("method")
@final
@dataclass(kw_only=True)
class NAT(InputMethod):
    """Single-step training on clean and adversarial images 1 : 1: x_adv = clip(x - eps_i sign(dL(x, y_LL)/dx)), eps_i drawn.

    y_LL is the class that the network thinks least likely; each image's eps_i is N(0, std) truncated to [0, largest].

    Args:
        std: deviation of the radius, pixel units; the paper's N(0, 8) read as a deviation of 8/255.
        largest: the largest radius, in [0, 1].
        step: `"least-likely"` (the appendix) or `"gradient"`: x + eps_i sign(dL(x, y)/dx), the main text's FGSM.
        halves: see `Halves`.
        criterion: each example's loss.
        probe: how the gradient is taken.

    Reference: Kurakin et al. 2017, algorithm 1; Liu et al. 2021 (ANP), implementation details.
    """

    std: Radius = 8 / 255
    largest: Radius = 16 / 255
    step: Literal["least-likely", "gradient"] = "least-likely"
    halves: Halves = "apart"
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    def __post_init__(self) -> None:
        """Check the fields."""
        check_radius("largest", self.largest)
        at_least("std", self.std, 1e-9)
        one_of("step", self.step, ("least-likely", "gradient"))
        one_of("halves", self.halves, HALVES)

    def batch_perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, step: Step, record: Sites | None = None
    ) -> Perturbed:
        """One probe at x."""
        criterion = self.probe.criterion or self.criterion
        criterion = LeastLikely(criterion) if self.step == "least-likely" else criterion
        probe = replace(self.probe, criterion=criterion)
        g, recorded = probe(model, x, y, criterion=criterion, sites=record, wrt_input=True, step=step)
        eps = drawn_radii(x, step.generator, std=self.std, largest=self.largest)
        return (x + norms.rows(eps, x) * g.sign()).clamp(0, 1), recorded

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """The mean over both halves."""
        return joint_loss(self.criterion, model, x, x_adv, y, halves=self.halves)

    @property
    def passes(self) -> Passes:
        """One probe and two descent passes."""
        return PROBE + DESCENT + SECOND


@register("method")
@final
@dataclass(kw_only=True)
class EAT(InputMethod):
    """NAT whose adversarial images come, batch by batch, from the network itself or from one of several fixed ones, drawn evenly.

    Args:
        sources: the fixed networks; in a recipe the runs or recipes that they come from. With none it is NAT.
        std: as in `NAT`.
        largest: as in `NAT`.
        step: as in `NAT`.
        halves: as in `NAT`.
        criterion: as in `NAT`.
        probe: as in `NAT`; the fixed networks are in evaluation mode.

    Reference: Tramer et al. 2018, section 4.1; Liu et al. 2021 (ANP), implementation details.
    """

    sources: list[Any] = field(default_factory=list, metadata=NETWORKS)
    std: Radius = 8 / 255
    largest: Radius = 16 / 255
    step: Literal["least-likely", "gradient"] = "least-likely"
    halves: Halves = "apart"
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    def __post_init__(self) -> None:
        """Check the fields."""
        self._single()
        self._networks = Sources(self.sources, where="EAT.sources")

    def _single(self) -> NAT:
        shared: dict[str, Any] = {"std": self.std, "largest": self.largest, "step": self.step, "halves": self.halves}
        return NAT(**shared, criterion=self.criterion, probe=self.probe)

    def batch_perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, step: Step, record: Sites | None = None
    ) -> Perturbed:
        """One probe at x, of the network that was drawn; another of the trained one where its gradients are asked for."""
        networks = [model, *self._networks.like(x)]
        drawn = int(for_the_batch(1, step.generator, key="source") * len(networks))
        own = record if drawn == 0 else None
        single = self._single()
        x_adv, recorded = single.batch_perturb(networks[drawn], x, y, step, own)
        if record is not None and drawn != 0:
            recorded = single.batch_perturb(model, x, y, step, record)[1]
        return x_adv, recorded

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """The mean over both halves."""
        return self._single().loss(model, x, x_adv, y)

    @property
    def passes(self) -> Passes:
        """Those of NAT, on whichever network is drawn."""
        return self._single().passes
