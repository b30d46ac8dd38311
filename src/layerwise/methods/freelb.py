"""FreeLB: every ascent step at the embeddings is a descent of the weights too."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from layerwise.core.ascent import accumulate, chain, normalize, project, scale
from layerwise.core.calling import Inputs, examples
from layerwise.core.checks import Count, NonNegative
from layerwise.core.cost import AGAIN, Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Partial, Step
from layerwise.core.latent import as_tensors, at_real, drawn, embedding_sites, entries
from layerwise.core.passes import Replacement
from layerwise.core.random import uniform
from layerwise.core.registry import register
from layerwise.core.sites import Sites
from layerwise.core.tracing import Site
from layerwise.methods.base import InputMethod, LayerMethod, Losses, in_pixel_range
from layerwise.methods.standard import Standard


@register("method")
@final
@dataclass(kw_only=True)
class FreeLB(LayerMethod):
    """K passes at growing noise, whose weight gradients add up to one step; each moves the noise as well.

    delta_0 = U(-1, 1) start / sqrt(n), n the entries of an example's embeddings; delta <- delta + step g / ||g||_2,
    projected on ||delta||_2 <= eps. Each loss counts 1 / K.

    Args:
        sites: where; None takes the embeddings, in networks of images the pixels.
        step: step size, in the unit of the activation: .04 to .2 in the authors' settings.
        steps: K, 2 or 3.
        start: size of the random start, .08 to .6; 0 starts at z.
        eps: radius for each example; None has none, as for SST-2.
        same_dropout: every pass has the dropout of the first, as in the paper; not in captured steps.
        base: what perturbs the input and gives the loss.
        criterion: each example's loss (of the default base).

    Reference: Zhu et al. 2020, FreeLB: enhanced adversarial training for natural language
    understanding, algorithm 1; the defaults are those of SST-2.
    """

    sites: str | list[str] | tuple[str, ...] | None = None
    step: NonNegative = 0.1
    steps: Count = 2
    start: NonNegative = 0.6
    eps: NonNegative | None = None
    same_dropout: bool = False
    base: InputMethod | None = None
    criterion: Criterion = field(default_factory=CrossEntropy)

    def make_sites(self, model: nn.Module, example: Inputs) -> Sites:
        return embedding_sites(model, example, self.sites)

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """Algorithm 1, one batch."""
        sites = self.sites_on(model, x)
        base = self.base or Standard(criterion=self.criterion)
        x_adv, _ = base.batch_perturb(model, x, y, step)
        radius = math.inf if self.eps is None else self.eps
        rule = chain(normalize("l2"), scale(self.step), accumulate(), project("l2", radius))

        def begin(site: Site, z: Tensor) -> Tensor:
            return uniform(z, step.generator, key=f"start/{site}") * self.start / entries(z, x) ** 0.5

        delta: dict[Site, Tensor | Replacement] = drawn(sites, x_adv, step.generator, begin)
        for t in range(self.steps):
            last = t == self.steps - 1
            with sites.perturb(delta) if last else sites.record(x, delta) as descent:
                with self._dropout(x, last):
                    loss = descent.mean(base.loss, model, x, x_adv, y) / self.steps
                yield loss if last else Partial(loss)
            if not last:
                known = as_tensors(delta)
                moved = {k: rule(at_real(g, x), known.get(k)) for k, g in descent.gradients().items()}
                delta = {**in_pixel_range(moved, x_adv)}

    def _dropout(self, x: Inputs, last: bool) -> AbstractContextManager[None]:
        """Random numbers of the forward pass that the next one finds again."""
        if last or not self.same_dropout:
            return nullcontext()
        device = examples(x).device
        return torch.random.fork_rng([device] if device.type == "cuda" else [])

    @property
    def passes(self) -> Passes:
        """Those of the base, and three for each step after the first."""
        return (self.base or Standard()).passes + (self.steps - 1) * AGAIN
