"""Standard training, the control of every method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from torch import Tensor, nn

from layerwise.core.calling import Inputs
from layerwise.core.cost import DESCENT, Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.probe import Probe
from layerwise.core.registry import register
from layerwise.core.sites import Sites
from layerwise.methods.base import InputMethod, Perturbed


@register("method")
@final
@dataclass(kw_only=True)
class Standard(InputMethod):
    """Descend the loss of the clean input: min_theta E L(f(x), y).

    Args:
        criterion: each example's loss.
        probe: how gradients are recorded where a layer-wise method asks for them.
    """

    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    perturbs_input = False

    def batch_perturb(
        self, model: nn.Module, x: Inputs, y: Tensor, step: Step, record: Sites | None = None
    ) -> Perturbed:
        """The input as it is; a probe is made only if gradients are asked for."""
        if record is None:
            return x, {}
        return x, self.probe(model, x, y, criterion=self.criterion, sites=record, step=step)[1]

    @property
    def passes(self) -> Passes:
        """One descent."""
        return DESCENT
