"""Targeted latent adversarial training: noise that brings about what is not wanted, and weights that withstand it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, final

import torch
from torch import Tensor, nn

from layerwise.core.ascent import chain, project
from layerwise.core.calling import Inputs, logits
from layerwise.core.checks import Count, NonNegative, at_least
from layerwise.core.cost import AGAIN, DESCENT, PROBE, Passes
from layerwise.core.criteria import Criterion, CrossEntropy, class_dim
from layerwise.core.driving import Step
from layerwise.core.latent import at_real, each, stream_sites
from layerwise.core.passes import Noise
from layerwise.core.probe import Probe
from layerwise.core.random import uniform
from layerwise.core.registry import register
from layerwise.core.sites import Sites
from layerwise.core.tape import remembered
from layerwise.errors import DataError
from layerwise.methods.base import LayerMethod, Losses, in_pixel_range


@final
@dataclass(frozen=True)
class Opposed(Criterion):
    """towards L(wanted) + away (-log(1 - p(unwanted))) of each example, means over its labelled positions.

    Args:
        criterion: L, cross entropy of classes or tokens, p = exp(-L).
        towards: weight of what is wanted.
        away: weight of what is not.
        cutoff: where log p(unwanted) is below -cutoff already, nothing is to be gained.
        drawn: U(-1, 1) of y's shape: labels that are not y's are drawn with it; None: rows come in pairs, label and counter label.
        swapped: what is unwanted is wanted.
    """

    criterion: Criterion
    towards: float
    away: float
    cutoff: float = 5.0
    drawn: Tensor | None = None
    swapped: bool = False

    def __call__(self, output: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`."""
        wanted, unwanted = self.roles(output, y)
        near = self._of_rows(output, wanted, far=False)
        return self.towards * near + self.away * self._of_rows(output, unwanted, far=True)

    def roles(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Labels to move towards and away from; -100 has no part."""
        if self.drawn is None:
            even = (torch.arange(len(y), device=y.device) % 2 == 0).reshape(-1, *[1] * (y.ndim - 1))
            found = torch.where(even, y, -100), torch.where(even, -100, y)
        else:
            classes = output.shape[class_dim(self.criterion, output)]
            farther = ((self.drawn + 1) / 2 * (classes - 1)).long().clamp(max=classes - 2)
            found = y, torch.where(y == -100, y, (y + 1 + farther) % classes)
        return (found[1], found[0]) if self.swapped else found

    def _of_rows(self, output: Tensor, labels: Tensor, *, far: bool) -> Tensor:
        losses = self.criterion(output, labels)
        if labels.ndim > 1:
            labels = labels[:, labels.shape[1] - losses.shape[1] :]  # those of the next token are one fewer
        if far:
            smallest = torch.finfo(losses.dtype).eps
            beyond = -torch.log(-torch.expm1(-losses.clamp(min=smallest)))
            losses = torch.where(losses > self.cutoff, torch.zeros_like(losses), beyond)
        counted = (labels != -100).flatten(1 if labels.ndim > 1 else 0)
        kept = torch.where(labels != -100, losses, torch.zeros_like(losses))
        return kept if labels.ndim == 1 else kept.flatten(1).sum(1) / counted.sum(1).clamp(min=1)


class AdamW:
    """AdamW on a perturbation, as a rule that descends: it lives for one batch.

    Args:
        lr: rate.
    """

    def __init__(self, lr: float, *, betas: tuple[float, float] = (0.9, 0.999), decay: float = 0.01) -> None:
        self.lr, self.betas, self.decay = lr, betas, decay
        self.steps, self.mean, self.square = 0, torch.zeros(()), torch.zeros(())

    def __call__(self, update: Tensor, gradient: Tensor, previous: Tensor | None, /) -> Tensor:
        """See `layerwise.core.ascent.Rule`."""
        (a, b), self.steps = self.betas, self.steps + 1
        self.mean = a * self.mean.to(update) + (1 - a) * update
        self.square = b * self.square.to(update) + (1 - b) * update.square()
        root = (self.square / (1 - b**self.steps)).sqrt() + 1e-8
        move = self.lr * self.mean / (1 - a**self.steps) / root
        return -move if previous is None else previous * (1 - self.lr * self.decay) - move


@register("method")
@final
@dataclass(kw_only=True)
class TargetedLAT(LayerMethod):
    """Targeted latent adversarial training: an attack towards what is unwanted, then descents that want the opposite under it.

    The attack descends  towards L(unwanted) + away (-log(1 - p(wanted)))  by AdamW on delta, projected;
    each of the descents has the two swapped, and utility L(wanted) without noise, divided by the sum of the weights.

    Args:
        sites: where; None takes the outputs of the network's blocks. The authors have the embeddings and the
            mlps of layers 8, 16, 24 and 30.
        pairs: rows 2 i and 2 i + 1 are one prompt with the wanted and the unwanted completion; they share their
            delta, at the prompt: real positions whose label is -100. Otherwise what is unwanted is a label (of
            each token) drawn at random.
        eps: l2 radius of delta, in the unit of the activation.
        per: what the radius is of: each `"token"` where activations are (B, L, d), or the `"example"`.
        steps: of the attack.
        lr: of AdamW; 5e-2 for Llama-2, 1e-3 for Llama-3.
        towards: weight of the loss towards.
        away: weight of the loss away.
        cutoff: what has log p below -cutoff is not pushed farther.
        utility: weight of the loss without noise.
        descents: with one delta, each a step of the optimiser.
        criterion: cross entropy of classes, `TokenCrossEntropy`, or `NextToken`.
        probe: how gradients are taken.

    Reference: Sheshadri et al. 2024, Latent adversarial training improves robustness to persistent harmful
    behaviors in LLMs, eqs. 1-4. Losses are means of each example, the authors' of all tokens; the authors take
    utility on other data, which a `Standard` step between may do.
    """

    sites: str | list[str] | tuple[str, ...] | None = None
    pairs: bool = False
    eps: NonNegative = 6.0
    per: Literal["token", "example"] = "token"
    steps: Count = 16
    lr: NonNegative = 0.05
    towards: NonNegative = 0.5
    away: NonNegative = 0.5
    cutoff: NonNegative = 5.0
    utility: NonNegative = 1.5
    descents: Count = 4
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("towards + away + utility", self.towards + self.away + self.utility, 1e-9)

    def make_sites(self, model: nn.Module, example: Inputs) -> Sites:
        return stream_sites(model, example, self.sites)

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """The attack, then its descents."""
        if self.pairs and len(y) % 2:
            raise DataError(f"pairs=True takes rows in pairs, found {len(y)}; an even number in every micro-batch")
        sites = self.sites_on(model, x)
        drawn = None if self.pairs else uniform(y.new_empty(y.shape, dtype=torch.float64), step.generator, key="target")
        wanted = Opposed(self.criterion, self.towards, self.away, self.cutoff, drawn)
        delta = remembered(lambda: self._attack(model, x, y, sites, replace(wanted, swapped=True), step))
        # Of a pair, each row has one of the two losses.
        share = (2 if self.pairs else 1) / (self.towards + self.away + self.utility)
        clean = replace(wanted, towards=self.utility, away=0.0)
        for _ in range(self.descents):
            sites.leave()  # the clean pass, of what another micro-batch has open
            loss = share * clean.mean(logits(model, x), y) if self.utility else 0
            with sites.perturb(delta):
                yield loss + share * wanted.mean(logits(model, x), y)

    def _attack(self, model: nn.Module, x: Inputs, y: Tensor, sites: Sites, criterion: Opposed, step: Step) -> Noise:
        """Delta at every site."""
        rules = {str(s): each(chain(AdamW(self.lr), project("l2", self.eps)), self.per) for s in sites}
        delta: Noise = {}
        with self.probe.around(model):
            for _ in range(self.steps):
                _, g = self.probe(model, x, y, criterion=criterion, sites=sites, noise=delta, step=step)
                shared = {k: self._shared(at_real(v, x), y) for k, v in g.items()}
                delta = in_pixel_range({k: rules[str(k)](v, delta.get(k)) for k, v in shared.items()}, x)
        return delta

    def _shared(self, g: Tensor, y: Tensor) -> Tensor:
        """The gradient of what a pair shares, at the positions of its prompt."""
        if not self.pairs:
            return g
        if g.ndim == 3 and y.shape == g.shape[:2]:
            g = g * (y == -100)[:, :, None]
        both = g.reshape(-1, 2, *g.shape[1:])
        return (both.sum(1, keepdim=True) * (both != 0).all(1, keepdim=True)).expand_as(both).flatten(0, 1)

    @property
    def passes(self) -> Passes:
        """The probes, and for each descent a noisy and a clean pass."""
        descent = DESCENT + AGAIN if self.utility else DESCENT
        return self.steps * PROBE + self.descents * descent
