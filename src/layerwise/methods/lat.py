"""LAT: efficient layer-wise adversarial training with the previous batch's gradients, and the contrasts at the same layers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from layerwise.core.ascent import scaled_signs
from layerwise.core.calling import Inputs, examples, logits, rows, shape_of
from layerwise.core.checks import Count, NonNegative, Share
from layerwise.core.cost import AGAIN, DESCENT, PROBE, Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.passes import Gradients, Noise, Replacement
from layerwise.core.probe import Probe
from layerwise.core.random import normal, own_rows
from layerwise.core.registry import register
from layerwise.core.sites import Sites, block_sites
from layerwise.core.tracing import INPUT, Site
from layerwise.errors import CheckpointError, SiteError
from layerwise.methods.base import InputMethod, LayerMethod, Losses, in_pixel_range, zeros_at
from layerwise.methods.standard import Standard


@dataclass(kw_only=True)
class LayerSigns(LayerMethod):
    """What LAT and FGS-inter share: r = (eps / reference_batch) (max g - min g) sign(g) at every site.

    Args:
        sites: None takes the batch-norm outputs; where there are no two of them the convolutions' outputs, then the blocks', then
            those of affine layers.
        eps: 10, 20 or 30 with the range (for a mean loss at `reference_batch`); in the activation's unit without.
        reference_batch: batch size that eps is stated for; the paper does not state it.
        relative: multiply by the range of the site's gradients; False is eq. 6 as printed.
        alpha: weight of the clean loss in alpha L(x) + (1 - alpha) L(x + r).
        criterion: each example's loss (of the default base).
    """

    sites: str | list[str] | tuple[str, ...] | None = None
    eps: NonNegative = 20.0
    reference_batch: Count = 128
    relative: bool = True
    alpha: Share = 0.5
    criterion: Criterion = field(default_factory=CrossEntropy)

    def make_sites(self, model: nn.Module, example: Inputs) -> Sites:
        return block_sites(model, example, self.sites)

    def noise_of(self, g: Gradients) -> Noise:
        """The scaled signs."""
        return scaled_signs(g, eps=self.eps, reference_batch=self.reference_batch, relative=self.relative)


@register("method")
@final
@dataclass(kw_only=True)
class LAT(LayerSigns):
    """Layer-wise training with the gradient of the previous batch: one descent at z + r, r from what the last descent recorded.

    Row i of a batch meets row i of the previous one; a shorter batch takes the first rows, rows that have no predecessor get zero; the
    first batch gets none. No extra pass is made.

    Args:
        joint: descend alpha L(x) + (1 - alpha) L(x + r) instead, at twice the cost; the perturbed pass records.
        base: what perturbs the input and gives the loss.

    Reference: Sankaranarayanan et al. 2018, Regularizing deep networks using efficient layerwise
    adversarial training, algorithm 1. The latent adversarial training of language models is `LatentPGD` and
    `TargetedLAT`.
    """

    joint: bool = False
    base: InputMethod | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._previous: dict[str, Tensor] = {}
        self._left_by: Hashable = None

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """Algorithm 1, or the joint form of section 4.1."""
        sites = self.sites_on(model, x)
        base = self.base or Standard(criterion=self.criterion)
        x_adv, _ = base.batch_perturb(model, x, y, step)
        first, total = own_rows(step.generator, rows(x))
        noise = self._noise(sites, first, x, x_adv)
        clean = base.loss(model, x, x_adv, y) if self.joint else None
        # One pass serves two batches: it descends with the noise of the last one and records that of the next.
        with sites.record(x, noise) as descent:
            loss = descent.mean(base.loss, model, x, x_adv, y)
            yield loss if clean is None else self.alpha * clean + (1 - self.alpha) * loss
        self._keep(descent.gradients(), first, total)
        self._left_by = shape_of(x)

    def _noise(self, sites: Sites, first: int, x: Inputs, x_adv: Inputs) -> Mapping[Site, Tensor | Replacement]:
        """The noise of these rows, from the rows of the previous batch; where that was of another length, the part that fits."""
        if not self._previous:
            return {}
        known = sites.shapes(x)
        alike = self._left_by == shape_of(x) or (self._left_by is None and known is not None)
        previous = {site: self._row_of(site, known[site] if alike and known is not None else None) for site in sites}
        every = self.noise_of({site: g.to(examples(x).device) for site, g in previous.items()})
        noise = {site: _rows(r, first, rows(x)) for site, r in every.items()}
        if alike:
            return in_pixel_range(noise, x_adv)
        return {site: partial(added_where_it_fits, r) for site, r in noise.items() if site != INPUT}

    def _row_of(self, site: Site, shape: torch.Size | None) -> Tensor:
        previous = self._previous.get(str(site))
        if previous is None or (shape is not None and previous.shape[1:] != shape):
            found = "nothing" if previous is None else f"shape {tuple(previous.shape[1:])}"
            wanted = "be there" if shape is None else f"have shape {tuple(shape)}"
            raise CheckpointError(f"LAT's stored gradient for site '{site}' should {wanted}, found {found}")
        return previous

    def _keep(self, g: Gradients, first: int, total: int) -> None:
        """Store this micro-batch's rows; the first one of a batch starts a new register of exactly the present rows."""
        for site, gradient in g.items():
            if first == 0:
                register = gradient if len(gradient) == total else gradient.new_zeros(total, *gradient.shape[1:])
                self._previous[str(site)] = register
            if len(gradient) != total:
                self._previous[str(site)][first : first + len(gradient)] = gradient

    def state_dict(self) -> dict[str, Tensor]:
        """The previous batch's gradients, {site name: tensor}."""
        return dict(self._previous)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._previous, self._left_by = dict(state), None

    @property
    def passes(self) -> Passes:
        """One descent; two in the joint form."""
        base = (self.base or Standard()).passes
        return base + AGAIN if self.joint else base


@register("method")
@final
@dataclass(kw_only=True)
class FGSInter(LayerSigns):
    """FGS-inter: a probe of the same batch gives signs at the intermediate layers; alpha L(x) + (1 - alpha) L(x, z + r).

    The input itself is not perturbed.

    Args:
        probe: how gradients are taken.

    Reference: Sankaranarayanan et al. 2018, section 4.1.
    """

    probe: Probe = field(default_factory=Probe)

    _goes_on = False

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """A probe, then the clean and the perturbed descent pass."""
        sites = self.sites_on(model, x)
        _, g = self.probe(model, x, y, criterion=self.criterion, sites=sites, step=step)
        noise = in_pixel_range(self.noise_of(g), x)
        clean = self.criterion.mean(logits(model, x), y)
        with sites.perturb(noise):
            yield self.alpha * clean + (1 - self.alpha) * self.criterion.mean(logits(model, x), y)

    @property
    def passes(self) -> Passes:
        """One probe and two descent passes."""
        return PROBE + DESCENT + AGAIN


@register("method")
@final
@dataclass(kw_only=True)
class GaussianNoise(LayerMethod):
    """Random noise at the sites, r = std N(0, 1): the contrast to every adversarial one.

    Args:
        sites: None takes LAT's; `"input"` perturbs the input.
        std: deviation, in the unit of the activation.
        base: what perturbs the input and gives the loss.
        criterion: each example's loss (of the default base).

    Reference: Sankaranarayanan et al. 2018, section 3.3 (deviation 1); Liu et al. 2021 (each layer, N(0, 0.1)).
    """

    sites: str | list[str] | tuple[str, ...] | None = None
    std: NonNegative = 0.1
    base: InputMethod | None = None
    criterion: Criterion = field(default_factory=CrossEntropy)

    _goes_on = False

    def make_sites(self, model: nn.Module, example: Inputs) -> Sites:
        return block_sites(model, example, self.sites)

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """One descent at z + r."""
        sites = self.sites_on(model, x)
        base = self.base or Standard(criterion=self.criterion)
        x_adv, _ = base.batch_perturb(model, x, y, step)
        empty = zeros_at(sites, x)
        noise = {site: self.std * normal(z, step.generator, key=str(site)) for site, z in empty.items()}
        with sites.perturb(in_pixel_range(noise, x_adv)):
            yield base.loss(model, x, x_adv, y)

    @property
    def passes(self) -> Passes:
        """Those of the base."""
        return (self.base or Standard()).passes


def added_where_it_fits(r: Tensor, z: Tensor) -> Tensor:
    """Z + r at the positions that both have.

    >>> added_where_it_fits(torch.ones(1, 2), torch.zeros(1, 3))
    tensor([[1., 1., 0.]])
    """
    if r.ndim != z.ndim:
        raise SiteError(
            f"an activation of shape {tuple(z.shape)} cannot take the noise of one of shape {tuple(r.shape)}"
        )
    part = tuple(slice(0, min(a, b)) for a, b in zip(r.shape, z.shape, strict=True))
    fitted = torch.zeros_like(z, dtype=r.dtype)
    fitted[part] = r[part]
    return z + fitted


def _rows(r: Tensor, first: int, count: int) -> Tensor:
    """Rows first..first + count of r, zeros where r has none."""
    present = r[first : first + count]
    if len(present) == count:
        return present
    return torch.cat([present, r.new_zeros(count - len(present), *r.shape[1:])])
