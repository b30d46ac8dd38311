"""SLAT: single-step latent adversarial training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self, final

import torch
from torch import Tensor, nn

from layerwise.core.ascent import Ascent, accumulate, chain, project, scale, sign
from layerwise.core.calling import Inputs, examples, with_examples
from layerwise.core.checks import Count, Radius
from layerwise.core.cost import PROBE, Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.passes import Noise
from layerwise.core.probe import Probe
from layerwise.core.registry import register
from layerwise.core.selection import Selection
from layerwise.core.sites import Sites, choose_sites
from layerwise.core.threat import EPS, ThreatModel, radius
from layerwise.core.tracing import Site
from layerwise.errors import ConfigError, did_you_mean
from layerwise.methods.base import InputMethod, LayerMethod, Losses, refuse_others
from layerwise.methods.fgsm import FGSM


@register("method")
@final
@dataclass(kw_only=True)
class SLAT(LayerMethod):
    """Single-step latent adversarial training: delta_k = eta_k sign(dL/dh_k), all from one probe, then one descent.

    Args:
        sites: the hidden layers of K; the input belongs to K always. None takes the paper's "conv1" and "conv2" of a wide ResNet,
            which are the stem convolution and the first group, `conv1` and `layer1` here; in a network without them the outputs of
            the first layer and of the first block, or of the first two layers. Without hidden sites (`"input"`) this is FGSM
            training, bitwise.
        eta: eta_k, in the unit of the pixels at the input and of the activation elsewhere: one number,
            which the threat model's radius is if it is None, as the paper has 8/255 everywhere; or
            {site: number} that names every hidden site, and `input` unless that is the threat model's.
        input_step: step at the input as a fraction of its eta: 1.0 printed, 0.9 in the authors' code.
        clamp_to_activation_range: keep z + delta within the range that z has in this example and channel, over space; so does the
            authors' code, the paper is silent.
        num_probes: more than 1 is the multi-step form that the paper leaves open: sign steps at the perturbed point, projected on eta.
        base: what finds the input's perturbation, in the same probe; None is FGSM with the eta, step, criterion and probe of this
            method. `FGSMRS()` and `NFGSM()` move the start, bring their own radius and step, and all gradients are taken at that start.
        criterion: each example's loss (of the default base).
        probe: how gradients are taken (by the default base).

    Reference: Park and Lee 2021, Reliably fast adversarial training via latent adversarial
    perturbation, eq. 4 and algorithm 1, whose slip (delta at the last hidden layer never applied) is
    corrected.
    """

    sites: str | list[str] | tuple[str, ...] | None = None
    eta: Radius | dict[str, Radius] | None = field(default=None, metadata=EPS)
    input_step: float = 1.0
    clamp_to_activation_range: bool = False
    num_probes: Count = 1
    base: InputMethod | None = None
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    _goes_on = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base is not None and self.input_step != 1.0:
            raise ConfigError(
                f"input_step={self.input_step} has no effect with base={type(self.base).__name__}; set its step"
            )

    @property
    def hidden(self) -> list[Selection]:
        """The sites of K other than the input: what to look for, one after the other; nothing if there are none."""
        if self.sites is None:
            return [["conv1", "layer1"], ["embeddings", "first(1) block outputs"], "first(2)"]
        if isinstance(self.sites, str):
            return [] if self.sites in ("", "input") else [self.sites]
        named = [s for s in self.sites if s != "input"]
        return [named] if named else []

    def start(self) -> InputMethod:
        """What perturbs the input."""
        eps = self.eta_at("input")
        return self.base or FGSM(eps=eps, step=self.input_step, criterion=self.criterion, probe=self.probe)

    def eta_at(self, site: Site | str) -> float:
        """The step size of one site."""
        name = str(site)
        if not isinstance(self.eta, Mapping):
            return radius(self.eta)
        if name == "input":
            return radius(self.eta.get(name))
        if name not in self.eta:
            raise ConfigError(f"eta names no step for site '{name}'; {did_you_mean(name, self.eta)}")
        return self.eta[name]

    def under(self, threat: ThreatModel) -> Self:
        """See `Method.under`; a mapping that leaves the input out gets the radius there."""
        if not isinstance(self.eta, Mapping) or "input" in self.eta:
            return super().under(threat)
        eta = {"input": threat.eps_in("linf", of="SLAT"), **self.eta}
        return replace(self, eta=eta).under(threat)

    def threats(self) -> dict[str, ThreatModel]:
        """See `Method.threats`; the step at the input is one, unless a base perturbs there."""
        if self.base is None and isinstance(self.eta, Mapping):
            own = self.eta.get("input")
            return {} if own is None else {"eta.input": ThreatModel("linf", own)}
        return {k: threat for k, threat in super().threats().items() if k != "eta" or self.base is None}

    def attach(self, model: nn.Module, example: Inputs) -> None:
        """See `Method.attach`; without hidden sites there is nothing to attach."""
        if self.hidden:
            super().attach(model, example)

    def make_sites(self, model: nn.Module, example: Inputs) -> Sites:
        sites = choose_sites(model, example, *self.hidden)
        if self.clamp_to_activation_range and (flat := [s for s in sites if len(sites.shape(s)) < 2]):
            raise ConfigError(
                f"clamp_to_activation_range: site '{flat[0]}' has shape {tuple(sites.shape(flat[0]))}, no space to take the range "
                "over, so the clamp would erase the noise; leave the site out or the clamp off"
            )
        for site in sites:
            self.eta_at(site)
        refuse_others("eta", self.eta, sites, example)
        return sites

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """Algorithm 1."""
        base = self.start()
        if not self.hidden:
            yield from base.batch_losses(model, x, y, step)
            return
        sites = self.sites_on(model, x)
        constraint = within_activation_range if self.clamp_to_activation_range else None
        # The base's own probe records at the hidden sites too: SLAT costs what its base costs.
        x_adv, g = base.batch_perturb(model, x, y, step, sites)
        delta: Noise = {k: chain(sign(), scale(self.eta_at(k)))(g[k]) for k in sites}
        for _ in range(self.num_probes - 1):
            g_x, g = self.probe(
                model,
                x_adv,
                y,
                criterion=self.criterion,
                sites=sites,
                noise=delta,
                constraint=constraint,
                wrt_input=True,
                step=step,
            )
            delta = {k: self._step(k)(g[k], delta[k]) for k in sites}
            given = examples(x)
            moved = given + self._input_step(base)(g_x, examples(x_adv) - given)
            x_adv = with_examples(x, moved.clamp_(0, 1))
        with sites.perturb(delta, constraint=constraint):
            yield base.loss(model, x, x_adv, y)

    def _step(self, site: Site) -> Ascent:
        eta = self.eta_at(site)
        return chain(sign(), scale(eta), accumulate(), project("linf", eta))

    def _input_step(self, base: InputMethod) -> Ascent:
        """The single step of the base again, in its ball; with another base a step eta."""
        step = reach = self.eta_at("input")
        if isinstance(base, FGSM):
            step, reach = base.step * radius(base.eps), base.reach
        return chain(sign(), scale(step), accumulate(), project("linf", reach))

    @property
    def perturbs_input(self) -> bool:
        return self.start().perturbs_input

    @property
    def passes(self) -> Passes:
        """Those of the base, and two for each probe after the first."""
        return self.start().passes + (self.num_probes - 1) * PROBE


def within_activation_range(r: Tensor, z: Tensor) -> Tensor:
    """The noise that keeps z + r within z's own range, per example and channel, over space; shapes (B, C, ...)."""
    space = tuple(range(2, z.ndim))
    return torch.clamp(z + r, z.amin(space, keepdim=True), z.amax(space, keepdim=True)) - z
