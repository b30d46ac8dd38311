"""FGSM with checkpoints: the shortest of a few steps along the adversarial direction that already fools the network."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor, nn

from layerwise.core import norms
from layerwise.core.calling import Inputs, examples, logits, with_examples
from layerwise.core.checks import Count
from layerwise.core.cost import Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.modes import evaluation_mode
from layerwise.core.registry import register
from layerwise.core.sites import Sites, unwrap
from layerwise.core.tape import remembered
from layerwise.methods.base import InputMethod, Perturbed
from layerwise.methods.fgsm import FGSM, FGSMRS


@register("method")
@final
@dataclass(kw_only=True)
class FGSMCKPT(InputMethod):
    """FGSM-CKPT: with delta of FGSM-RS, x + (j / c) delta for the smallest j = 1..c that is misclassified; j = c if none is.

    Examples that are misclassified at the random start train clean. The checkpoints are classified in
    evaluation mode.

    Args:
        attack: what finds delta, on this method's criterion; the authors probe in evaluation mode.
        c: number of checkpoints; 1 is FGSM-RS, but for the wrong examples.
        criterion: each example's loss.

    Reference: Kim et al. 2021, Understanding catastrophic overfitting in single-step adversarial
    training; that the start tells which examples are wrong is the authors' code: its probe has the
    logits already.
    """

    attack: FGSM = field(default_factory=FGSMRS)
    c: Count = 3
    criterion: Criterion = field(default_factory=CrossEntropy)

    needs_classes = True
    """It looks for what is misclassified."""

    def batch_perturb(
        self, model: nn.Module, x: Inputs, y: Tensor, step: Step, record: Sites | None = None
    ) -> Perturbed:
        """One probe at the random start, and c - 1 forward passes."""
        probe = self.attack.probe
        noting = Noting(probe.criterion or self.criterion)
        attack = replace(self.attack, probe=replace(probe, criterion=noting))

        def find() -> Perturbed:
            full, recorded = attack.batch_perturb(model, x, y, step, record)
            given = examples(x)
            delta = examples(full) - given
            share = norms.rows(self._share(model, x, y, delta, noting), given)
            return with_examples(x, given + share * delta), recorded

        return remembered(find)

    def _share(self, model: nn.Module, x: Inputs, y: Tensor, delta: Tensor, noting: Noting) -> Tensor:
        """How much of delta each example gets, shape (B,): from the last checkpoint to the first, each fooled one takes over."""
        given = examples(x)
        share = given.new_ones(len(given))
        with torch.no_grad(), evaluation_mode(unwrap(model)):
            for j in range(self.c - 1, 0, -1):
                fooled = logits(model, with_examples(x, given + j / self.c * delta)).argmax(dim=1) != y
                share = torch.where(fooled, j / self.c, share)
        return share * (noting.prediction == y)

    @property
    def passes(self) -> Passes:
        """Those of the attack, and c - 1 forwards."""
        return self.attack.passes + Passes(self.c - 1, 0, 0, 0)


@final
class Noting(Criterion):
    """A criterion that keeps what the network predicted, shape (B,)."""

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self.prediction = torch.empty(0)

    def __call__(self, logits: Tensor, y: Tensor, /) -> Tensor:
        self.prediction = logits.detach().argmax(dim=1)
        return self.criterion(logits, y)
