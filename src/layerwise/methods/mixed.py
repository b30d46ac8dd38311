"""Training on clean and adversarial images at once: PAT, NAT, EAT (ANP's baselines) and FGS-orig."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn

from layerwise.core.calling import Inputs, logits, twice
from layerwise.core.checks import Share
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.random import for_the_batch
from layerwise.core.registry import register
from layerwise.core.sites import Sites
from layerwise.methods.base import AttackedMethod, InputMethod, Perturbed
from layerwise.methods.fgsm import FGSM
from layerwise.methods.pgd import PGD
from layerwise.methods.sources import NETWORKS, Sources

Halves: TypeAlias = Literal["apart", "together"]
"""`"apart"`: batch norm sees the clean and the adversarial images in a pass each; `"together"`: in one pass of 2 B images."""


def joint_loss(
    criterion: Criterion,
    model: nn.Module,
    x: Inputs,
    x_adv: Inputs,
    y: Tensor,
    *,
    alpha: float = 0.5,
    halves: Halves = "apart",
) -> Tensor:
    """Alpha L(x) + (1 - alpha) L(x_adv), mean losses; with alpha 1/2 the mean over all 2 B images. The clean images come first."""
    if halves == "together":
        clean, adversarial = criterion(logits(model, twice(x, x_adv)), torch.cat([y, y])).chunk(2)
        return alpha * clean.mean() + (1 - alpha) * adversarial.mean()
    clean = criterion.mean(logits(model, x), y)
    return alpha * clean + (1 - alpha) * criterion.mean(logits(model, x_adv), y)


@dataclass(kw_only=True)
class Mixed(AttackedMethod):
    """What they share: alpha L(x) + (1 - alpha) L(x_adv), x_adv found by an attack.

    Args:
        attack: what finds x_adv, on this method's criterion.
        alpha: weight of the clean loss.
        halves: see `Halves`.
        criterion: each example's loss.
    """

    attack: InputMethod
    alpha: Share = 0.5
    halves: Halves = "apart"
    criterion: Criterion = field(default_factory=CrossEntropy)

    def loss(self, model: nn.Module, x: Inputs, x_adv: Inputs, y: Tensor) -> Tensor:
        return joint_loss(self.criterion, model, x, x_adv, y, alpha=self.alpha, halves=self.halves)


@register("method")
@final
@dataclass(kw_only=True)
class PAT(Mixed):
    """PGD adversarial training on clean and adversarial images 1 : 1, the mean loss over all 2 B of them.

    Args:
        attack: what finds x_adv; the paper's PGD starts at x.

    Reference: Madry et al. 2018; Liu et al. 2021 (ANP), implementation details: eps 8, k 10, alpha 2 of
    255; the paper says that both kinds are mixed in the training set.
    """

    attack: InputMethod = field(default_factory=partial(PGD, random_start=False))


@register("method")
@final
@dataclass(kw_only=True)
class FGSOrig(Mixed):
    """FGS-orig: alpha L(x) + (1 - alpha) L(x + eps sign(dL/dx)), the input only.

    Args:
        attack: what finds x_adv; LAT's paper does not print the radius that it trained with.

    Reference: Goodfellow et al. 2015, section 6; Sankaranarayanan et al. 2018 (LAT), eq. 3.
    """

    attack: InputMethod = field(default_factory=FGSM)


# N(0, 8) of 255, truncated to [0, 16], at eps 8.
_least_likely = partial(FGSM, step=2.0, std=1.0, target="least-likely")


@register("method")
@final
@dataclass(kw_only=True)
class NAT(Mixed):
    """Single-step training on clean and adversarial images 1 : 1: x_adv = clip(x - eps_i sign(dL(x, y_LL)/dx)), eps_i drawn.

    y_LL is the class that the network thinks least likely; each image's eps_i is N(0, eps) truncated
    to [0, 2 eps].

    Args:
        attack: what finds x_adv; with `target="label"` it is the main text's FGSM, the least likely
            class is the appendix's.

    Reference: Kurakin et al. 2017, Adversarial machine learning at scale, algorithm 1; Liu et al. 2021
    (ANP), implementation details, whose N(0, 8) is read as a deviation of 8/255.
    """

    attack: InputMethod = field(default_factory=_least_likely)


@register("method")
@final
@dataclass(kw_only=True)
class EAT(Mixed):
    """NAT whose adversarial images come, batch by batch, from the network itself or from one of several fixed ones, drawn evenly.

    Args:
        attack: as in `NAT`; the fixed networks are in evaluation mode.
        sources: the fixed networks; in a recipe the runs or recipes that they come from. With none it
            is NAT.

    Reference: Tramer et al. 2018, Ensemble adversarial training: attacks and defenses, section 4.1;
    Liu et al. 2021 (ANP), implementation details.
    """

    attack: InputMethod = field(default_factory=_least_likely)
    sources: list[Any] = field(default_factory=list, metadata=NETWORKS)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._networks = Sources(self.sources, where="EAT.sources")

    def batch_perturb(
        self, model: nn.Module, x: Inputs, y: Tensor, step: Step, record: Sites | None = None
    ) -> Perturbed:
        """The attack on the network that was drawn; another on the trained one where its gradients are asked for."""
        networks = [model, *self._networks.like(x)]
        drawn = int(for_the_batch(1, step.generator, key="source") * len(networks))
        x_adv, recorded = super().batch_perturb(networks[drawn], x, y, step, record if drawn == 0 else None)
        if record is not None and drawn != 0:
            recorded = super().batch_perturb(model, x, y, step, record)[1]
        return x_adv, recorded
