"""FGSM with checkpoints: the shortest of a few steps along the adversarial direction that already fools the network."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor, nn

from layerwise.core import norms
from layerwise.core.checks import Radius, at_least, check_radius
from layerwise.core.cost import DESCENT, PROBE, Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.modes import evaluation_mode
from layerwise.core.passes import Gradients
from layerwise.core.probe import Probe
from layerwise.core.registry import register
from layerwise.core.sites import Sites, unwrap
from layerwise.core.tape import remembered
from layerwise.methods.base import InputMethod, Perturbed
from layerwise.methods.fgsm import FGSMRS


@register("method")
@final
@dataclass(kw_only=True)
class FGSMCKPT(InputMethod):
    """FGSM-CKPT: with delta of FGSM-RS, x + (j / c) delta for the smallest j = 1..c that is misclassified; j = c if none is.

    Examples that are misclassified at the random start train clean. The checkpoints are classified in evaluation mode.

    Args:
        eps: radius in pixel units, in [0, 1].
        step: step size of FGSM-RS as a fraction of eps; 1.25 is the authors' value.
        c: number of checkpoints; 1 is FGSM-RS, but for the wrong examples.
        criterion: each example's loss.
        probe: how the gradient is taken; the authors take it in evaluation mode.

    Reference: Kim et al. 2021; that the start judges which examples are wrong is the authors' code: its probe has the
    logits already.
    """

    eps: Radius = 8 / 255
    step: float = 1.25
    c: int = 3
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    def __post_init__(self) -> None:
        """Check the fields."""
        check_radius("eps", self.eps)
        at_least("c", self.c, 1)

    def batch_perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, step: Step, record: Sites | None = None
    ) -> Perturbed:
        """One probe at the random start, and c - 1 forward passes."""
        noting = Noting(self.probe.criterion or self.criterion)
        attack = FGSMRS(eps=self.eps, step=self.step, probe=replace(self.probe, criterion=noting))

        def find() -> tuple[Tensor, Gradients]:
            x_full, recorded = attack.batch_perturb(model, x, y, step, record)
            return x + norms.rows(self._share(model, x, y, x_full - x, noting), x) * (x_full - x), recorded

        return remembered(find)

    def _share(self, model: nn.Module, x: Tensor, y: Tensor, delta: Tensor, noting: Noting) -> Tensor:
        """How much of delta each example gets, shape (B,): from the last checkpoint to the first, each fooled one takes over."""
        share = x.new_ones(len(x))
        with torch.no_grad(), evaluation_mode(unwrap(model)):
            for j in range(self.c - 1, 0, -1):
                fooled = model(x + j / self.c * delta).argmax(dim=1) != y
                share = torch.where(fooled, j / self.c, share)
        return share * (noting.prediction == y)

    @property
    def passes(self) -> Passes:
        """One probe, c - 1 forwards, one descent."""
        return PROBE + Passes(self.c - 1, 0, 0, 0) + DESCENT


@final
class Noting(Criterion):
    """A criterion that keeps what the network predicted, shape (B,)."""

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self.prediction = torch.empty(0)

    def __call__(self, logits: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`."""
        self.prediction = logits.detach().argmax(dim=1)
        return self.criterion(logits, y)
