"""Adversarial training with a fixed set of DeepFool images, which Deep Defense is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from layerwise.core.calling import Inputs, examples, logits, with_examples
from layerwise.core.checks import Count, Share
from layerwise.core.cost import AGAIN, DESCENT, Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.deepfool import deepfool
from layerwise.core.driving import Step
from layerwise.core.probe import Probe
from layerwise.core.registry import register
from layerwise.core.sites import Sites
from layerwise.core.tape import remembered
from layerwise.errors import ConfigError
from layerwise.methods.base import InputMethod, Perturbed
from layerwise.methods.mixed import joint_loss
from layerwise.methods.sources import NETWORKS, Sources


@register("method")
@final
@dataclass(kw_only=True)
class AdvTrainI(InputMethod):
    """Learn the DeepFool images of a fixed reference beside the clean ones: alpha L(x) + (1 - alpha) L(clip(x + Delta_x)).

    Delta_x is DeepFool's perturbation for the reference network, which does not train: each image has one and the same Delta_x in every
    epoch, as in a set that is made once. It is worked out batch by batch here, so that augmented images have theirs too.

    Args:
        network: the reference; in a recipe the run or recipe that it comes from, usually that of `model.start`.
        alpha: weight of the clean loss; 0 learns the perturbed images only, as the DeepFool paper does.
        num_steps: DeepFool's steps at most; most images need two to four.
        num_classes: its candidate classes, those with the largest logits; None is all.
        overshoot: its overshoot.
        criterion: each example's loss.
        probe: how gradients are recorded where a layer-wise method asks for them.

    Reference: Moosavi-Dezfooli et al. 2016, section 4.2; Yan et al. 2018 (Deep Defense), "Adv. Train I".
    """

    network: Any = field(default=None, metadata=NETWORKS)
    alpha: Share = 0.5
    num_steps: Count = 5
    num_classes: int | None = None
    overshoot: float = 0.02
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._networks = Sources([self.network], where="AdvTrainI.network")

    def batch_perturb(
        self, model: nn.Module, x: Inputs, y: Tensor, step: Step, record: Sites | None = None
    ) -> Perturbed:
        """DeepFool on the reference, from its prediction; a probe at the result only if gradients are asked for."""
        if self.network is None:
            raise ConfigError(
                "AdvTrainI learns the DeepFool images of a reference network; set its field network, in a recipe to a run or recipe"
            )
        (network,), classes = self._networks.like(x), self.num_classes
        find = partial(deepfool, network, x, num_steps=self.num_steps, num_classes=classes, overshoot=self.overshoot)
        given = examples(x)
        with torch.autocast(given.device.type, enabled=False):
            found = remembered(find)
        x_adv = with_examples(x, (given + found.perturbation).clamp(0, 1))
        if record is None:
            return x_adv, {}
        return x_adv, self.probe(model, x_adv, y, criterion=self.criterion, sites=record, step=step)[1]

    def loss(self, model: nn.Module, x: Inputs, x_adv: Inputs, y: Tensor) -> Tensor:
        """The joint loss, or that of the perturbed images alone."""
        if self.alpha == 0:
            return self.criterion.mean(logits(model, x_adv), y)
        return joint_loss(self.criterion, model, x, x_adv, y, alpha=self.alpha)

    @property
    def passes(self) -> Passes:
        """One or two descent passes; DeepFool's, on the reference, at their most: two forwards and a backward a class at each step."""
        classes = self.num_classes or 10  # who knows how many there are asks `among`
        fooling = Passes(2 * self.num_steps + 1, classes * self.num_steps, 0, 0)
        return (DESCENT if self.alpha == 0 else DESCENT + AGAIN) + fooling
