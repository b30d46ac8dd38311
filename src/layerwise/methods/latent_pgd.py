"""Latent PGD: untargeted latent adversarial training, several steps at hidden sites before each descent."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor, nn

from layerwise.core.ascent import Ascent, accumulate, chain, normalize, project, scale, sign
from layerwise.core.calling import Inputs
from layerwise.core.checks import Count, NonNegative
from layerwise.core.cost import PROBE, Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.latent import as_tensors, at_real, drawn, each, in_ball, stream_sites, units
from layerwise.core.modes import evaluation_mode
from layerwise.core.passes import Constraint, Noise, Replacement
from layerwise.core.probe import Probe
from layerwise.core.registry import register
from layerwise.core.sites import Sites, unwrap
from layerwise.core.tape import remembered
from layerwise.core.tracing import Site
from layerwise.errors import ConfigError, did_you_mean
from layerwise.methods.base import InputMethod, LayerMethod, Losses, in_pixel_range, refuse_others
from layerwise.methods.standard import Standard


@register("method")
@final
@dataclass(kw_only=True)
class LatentPGD(LayerMethod):
    """Untargeted latent adversarial training: projected gradient ascent at hidden sites, then one descent at z + delta.

    What language-model papers call LAT; `LAT` here is Sankaranarayanan's.

    Args:
        sites: where; None takes the outputs of the network's blocks, or of its affine layers. The paper has
            one layer: name it.
        eps: radius in the unit of the activation, one or {site: radius}; 8 is the authors' for one layer
            of a language model.
        norm: `"l2"` or `"linf"`.
        per: what the norm is of: an `"example"`, as in the paper, or each `"token"` where activations are
            (B, L, d). Positions that the attention mask leaves out stay as they are.
        relative: eps is in units of ||z||, of the example or token; at hidden sites only.
        steps: probes before the descent.
        step: their size as a fraction of eps; None is 1 / steps.
        random_start: start in a Gaussian direction at a radius uniform in [0, eps] (`linf`: uniformly in
            the cube) instead of at z.
        clamp_to_activation_range: keep z + delta between the least and the greatest entry that z has in the
            batch, as the authors' code does.
        mode: of the network in the probes: `"train"`, or `"eval"` as in the authors' code.
        base: what perturbs the input and gives the loss.
        criterion: each example's loss (of the probes and the default base).
        probe: how gradients are taken.

    Reference: Casper et al. 2024, Defending against unforeseen failure modes with latent adversarial
    training, eq. 2. The authors divide by ||g|| + 1e-6, here zero stays zero.
    """

    sites: str | list[str] | tuple[str, ...] | None = None
    eps: NonNegative | dict[str, NonNegative] = 8.0
    norm: Literal["l2", "linf"] = "l2"
    per: Literal["example", "token"] = "example"
    relative: bool = False
    steps: Count = 6
    step: NonNegative | None = None
    random_start: bool = True
    clamp_to_activation_range: bool = False
    mode: Literal["train", "eval"] = "train"
    base: InputMethod | None = None
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    _goes_on = False

    def make_sites(self, model: nn.Module, example: Inputs) -> Sites:
        sites = stream_sites(model, example, self.sites)
        for site in sites:
            self.eps_at(site)
        refuse_others("eps", self.eps, sites, example)
        if self.relative and any(site.is_input for site in sites):
            raise ConfigError(
                "relative=True is for hidden sites; at the input, whose pixels stay in [0, 1], type relative=False and a radius in pixels"
            )
        return sites

    def eps_at(self, site: Site) -> float:
        """The radius of one site."""
        if not isinstance(self.eps, Mapping):
            return self.eps
        if str(site) not in self.eps:
            raise ConfigError(f"eps names no radius for site '{site}'; {did_you_mean(str(site), self.eps)}")
        return self.eps[str(site)]

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """Climb, then one descent."""
        sites = self.sites_on(model, x)
        base = self.base or Standard(criterion=self.criterion)
        x_adv, _ = base.batch_perturb(model, x, y, step)
        delta = remembered(lambda: self.climb(model, x_adv, y, sites, step))
        with sites.perturb(delta, constraint=self.constraint):
            yield base.loss(model, x, x_adv, y)

    def climb(self, model: nn.Module, x: Inputs, y: Tensor, sites: Sites, step: Step) -> Noise:
        """Delta at every site, for inputs x and what the criterion takes beside the logits."""
        rules = {str(site): self._rule(self.eps_at(site)) for site in sites}
        delta = self._start(sites, x, step)
        evaluated = evaluation_mode(unwrap(model)) if self.mode == "eval" else nullcontext()
        with evaluated, self.probe.around(model):
            for _ in range(self.steps):
                g = self.probe(
                    model,
                    x,
                    y,
                    criterion=self.criterion,
                    sites=sites,
                    noise=delta,
                    constraint=self.constraint,
                    step=step,
                )[1]
                known = as_tensors(delta)
                moved = {site: rules[str(site)](at_real(v, x), known.get(site)) for site, v in g.items()}
                delta = {**in_pixel_range(moved, x)}
        return as_tensors(delta)

    def _start(self, sites: Sites, x: Inputs, step: Step) -> dict[Site, Tensor | Replacement]:
        if not self.random_start:
            return {}

        def make(site: Site, z: Tensor) -> Tensor:
            return in_ball(z, self.eps_at(site), self.norm, self.per, step.generator, key=f"start/{site}")

        return drawn(sites, x, step.generator, make, constraint=self.constraint)

    def _rule(self, eps: float) -> Ascent:
        size = eps / self.steps if self.step is None else self.step * eps
        direction = sign() if self.norm == "linf" else normalize(self.norm)
        return each(chain(direction, scale(size), accumulate(), project(self.norm, eps)), self.per)

    @property
    def constraint(self) -> Constraint | None:
        """What is added for delta at an activation z."""
        if not self.relative and not self.clamp_to_activation_range:
            return None

        def added(r: Tensor, z: Tensor) -> Tensor:
            r = r * units(z, self.norm, self.per) if self.relative else r
            return torch.clamp(z + r, z.amin(), z.amax()) - z if self.clamp_to_activation_range else r

        return added

    @property
    def passes(self) -> Passes:
        """Those of the base, and two for each step."""
        return (self.base or Standard()).passes + self.steps * PROBE
