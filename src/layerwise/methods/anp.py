"""ANP: adversarial noise propagation."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal, final

from torch import Tensor, nn

from layerwise.core.ascent import Ascent, accumulate, chain, normalize, scale, sign
from layerwise.core.calling import Inputs
from layerwise.core.checks import Count, NonNegative
from layerwise.core.cost import DESCENT, PROBE, Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.passes import Noise
from layerwise.core.probe import Probe
from layerwise.core.random import Source, normal
from layerwise.core.registry import register
from layerwise.core.selection import SHORTCUTS, Selection
from layerwise.core.sites import Sites
from layerwise.errors import ConfigError
from layerwise.methods.base import InputMethod, LayerMethod, Losses, in_pixel_range, zeros_at
from layerwise.methods.standard import Standard


@register("method")
@final
@dataclass(kw_only=True)
class ANP(LayerMethod):
    """Adversarial noise propagation: r_t+1 = (1 - eta) r_t + (eps / k) g_t / ||g_t||_2, a descent at every r_t.

    The noise of a mini-batch starts at zero; each of its k descents updates the parameters and, by the gradient that it records
    anyway, the noise of every chosen layer.

    Args:
        eta: decay of the earlier noise, in [0, 1].
        eps: total step over k, in the unit of the activation (`apply="raw"`: the l2 length of an example's noise at a site).
        k: progressive steps.
        layers: only the first so many affine layers, counted from the input; None is all.
        sites: where; affine outputs (convolution, linear) stand before batch norm and activation.
        include_input: noise on the input too; the pixels stay in [0, 1].
        include_shortcuts: count the convolutions on skip paths among the layers.
        norm: what the gradient is divided by: `"l2"` its norm per example (printed), `"l2-batch"` the norm of the whole tensor,
            `"sign"` its sign is taken.
        apply: `"raw"` adds r; `"sign"` adds (eps / k) sign(R) with R_t+1 = (1 - eta) R_t + g_t / ||g_t||_2, as in the earlier code of
            the authors' group, which has it at the input and all convolutions.
        update: `"every-step"` (algorithm 1), `"last-step"`: k passes of which only the last updates, `"after-probes"`: k probes and
            then one descent with the noise after k, the reading of eq. 1.
        descend_at: `"printed"` r_0..r_k-1, so that k = 1 is exactly standard training; `"shifted"` a probe at r_0 and descents at
            r_1..r_k. For `update="every-step"` only.
        noise_std: deviation of Gaussian noise added at the same sites in every pass.
        base: what perturbs the input, once a mini-batch, and gives the loss.
        criterion: each example's loss (of the default base and of the probes).
        probe: how gradients are taken in the passes that do not update.

    Reference: Liu et al. 2021, eq. 2 and algorithm 1.
    """

    eta: float = 0.3
    eps: NonNegative = 0.3
    k: Count = 5
    layers: int | None = 4
    sites: str | list[str] | tuple[str, ...] = "affine outputs"
    include_input: bool = False
    include_shortcuts: bool = False
    norm: Literal["l2", "l2-batch", "sign"] = "l2"
    apply: Literal["raw", "sign"] = "raw"
    update: Literal["every-step", "last-step", "after-probes"] = "every-step"
    descend_at: Literal["printed", "shifted"] = "printed"
    noise_std: NonNegative = 0.0
    base: InputMethod | None = None
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.descend_at == "shifted" and self.update != "every-step":
            raise ConfigError(f"descend_at='shifted' has no effect with update={self.update!r}; type update=every-step")

    def make_sites(self, model: nn.Module, example: Inputs) -> Sites:
        chosen = [self.sites] if isinstance(self.sites, str) else list(self.sites)
        selection: Selection = ["input", *chosen] if self.include_input else self.sites
        exclude = () if self.include_shortcuts else SHORTCUTS
        return Sites(model, selection, first=self.layers, exclude=exclude, example=example)

    @property
    def perturbs_input(self) -> bool:
        """See `LayerMethod.perturbs_input`."""
        return self.include_input or super().perturbs_input

    def plan(self) -> tuple[int, int]:
        """Numbers of probes and of descents after them, each made at the noise that the passes before have left."""
        if self.update == "last-step":
            return self.k - 1, 1
        if self.update == "after-probes":
            return self.k, 1
        return int(self.descend_at == "shifted"), self.k

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """Algorithm 1."""
        sites = self.sites_on(model, x)
        base = self.base or Standard(criterion=self.criterion)
        x_adv, _ = base.batch_perturb(model, x, y, step)
        rule = self._rule()
        r: Noise = {}
        probes, descents = self.plan()
        # Every pass is made at the r_t that the passes before have left; what it records gives r_t+1.
        for t in range(probes + descents):
            noise = in_pixel_range(self._added(r, sites, x, step.generator, t), x_adv)
            last = t == probes + descents - 1
            if t < probes:
                _, g = self.probe(model, x_adv, y, criterion=self.criterion, sites=sites, noise=noise, step=step)
            elif last:
                with sites.perturb(noise) if noise else nullcontext():
                    yield base.loss(model, x, x_adv, y)
            else:
                with sites.record(x, noise) as descent:
                    yield descent.mean(base.loss, model, x, x_adv, y)
                g = descent.gradients()
            if not last:
                r = {site: rule(g[site], r.get(site)) for site in sites}

    def _rule(self) -> Ascent:
        """Eq. 2."""
        direction = sign() if self.norm == "sign" else normalize("l2", batch=self.norm == "l2-batch")
        step = 1.0 if self.apply == "sign" else self.eps / self.k
        return chain(direction, scale(step), accumulate(1 - self.eta))

    def _added(self, r: Noise, sites: Sites, x: Inputs, generator: Source, t: int) -> Noise:
        """What the pass adds: r itself or its scaled sign, and Gaussian noise."""
        # The earlier code keeps R unscaled and adds its sign only.
        added = (
            {k: chain(sign(), scale(self.eps / self.k))(v) for k, v in r.items()} if self.apply == "sign" else dict(r)
        )
        if self.noise_std:
            for site, zeros in zeros_at(sites, x).items():
                like = added.get(site, zeros)
                added[site] = like + self.noise_std * normal(like, generator, key=f"{site}/{t}")
        return added

    @property
    def passes(self) -> Passes:
        """K descents as printed: 3 k."""
        probes, descents = self.plan()
        return (self.base or Standard()).passes + probes * PROBE + (descents - 1) * DESCENT
