"""SMART, VAT and R3F are one idea: the network should say the same at z and at z + r, for an r that is looked for or drawn."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal, final

import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.core import norms
from layerwise.core.ascent import Ascent, accumulate, chain, normalize, scale
from layerwise.core.calling import Inputs, logits, real_positions
from layerwise.core.checks import Count, NonNegative, Whole
from layerwise.core.cost import AGAIN, DESCENT, PROBE, Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Step
from layerwise.core.latent import as_tensors, at_real, drawn, each, embedding_sites, units
from layerwise.core.passes import Replacement
from layerwise.core.probe import Probe
from layerwise.core.random import Source, normal, uniform
from layerwise.core.registry import register
from layerwise.core.sites import Sites
from layerwise.core.tape import remembered
from layerwise.core.tracing import Site
from layerwise.methods.base import LayerMethod, Losses, in_pixel_range


class Disagreement(Criterion):
    """KL(p || q) of each example, q what the network gives and p what it gave, both logits with the classes last.

    Args:
        symmetric: add KL(q || p).
        real: which positions of a sequence count, (B, L).
    """

    def __init__(self, *, symmetric: bool, real: Tensor | None) -> None:
        self.symmetric, self.real = symmetric, real

    def __call__(self, output: Tensor, other: Tensor, /) -> Tensor:
        """See `Criterion`; the mean over the positions of each example."""
        q, p = F.log_softmax(output, -1), F.log_softmax(other, -1)
        each = F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
        if self.symmetric:
            each = each + F.kl_div(p, q, reduction="none", log_target=True).sum(-1)
        if self.real is not None and each.shape == self.real.shape:
            return (each * self.real).sum(1) / self.real.sum(1)
        return each if each.ndim == 1 else each.flatten(1).mean(1)


@dataclass(kw_only=True)
class Smoothness(LayerMethod):
    """Descend L(f(x), y) + weight D(f(x), f(x; z + r)).

    Args:
        sites: where; None takes the embeddings, in networks of images the pixels.
        weight: of the second term.
        criterion: each example's loss.
        probe: how gradients of the second term are taken.
    """

    sites: str | list[str] | tuple[str, ...] | None = None
    weight: NonNegative = 1.0
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    _goes_on = False

    @abstractmethod
    def start(self, z: Tensor, source: Source, key: str) -> Tensor:
        """The noise at an activation before any probe."""

    @property
    @abstractmethod
    def probes(self) -> int:
        """How many look for noise before the descent."""

    def rule(self, last: bool) -> Ascent:
        """From the gradient of D to the next noise; without probes nobody asks."""
        del last
        return chain()

    symmetric = True
    """Whether D is KL both ways, through which the clean pass learns too; or KL(clean || noisy) from a constant."""

    def make_sites(self, model: nn.Module, example: Inputs) -> Sites:
        return embedding_sites(model, example, self.sites)

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """The clean pass, the probes, and the noisy pass."""
        sites = self.sites_on(model, x)
        apart = Disagreement(symmetric=self.symmetric, real=real_positions(x))
        clean = logits(model, x)
        noise = remembered(lambda: self._noise(model, x, clean.detach(), sites, apart, step))
        loss = self.criterion.mean(clean, y)
        with sites.perturb(noise):
            moved = logits(model, x)
            yield loss + self.weight * apart.mean(moved, clean if self.symmetric else clean.detach())

    def _noise(
        self, model: nn.Module, x: Inputs, clean: Tensor, sites: Sites, apart: Criterion, step: Step
    ) -> dict[Site, Tensor | Replacement]:
        source = step.generator
        noise = drawn(sites, x, source, lambda site, z: self.start(z, source, f"start/{site}"))
        with self.probe.around(model):
            for t in range(self.probes):
                _, g = self.probe(model, x, clean, criterion=apart, sites=sites, noise=noise, step=step)
                known, rule = as_tensors(noise), self.rule(t == self.probes - 1)
                moved = {k: at_real(rule(at_real(v, x), known.get(k)), x) for k, v in g.items()}
                noise = {**in_pixel_range(moved, x)}
        return noise

    @property
    def passes(self) -> Passes:
        """Two descent passes and the probes."""
        return DESCENT + AGAIN + self.probes * PROBE


@register("method")
@final
@dataclass(kw_only=True)
class SMART(Smoothness):
    """Smoothness-inducing regularisation: KL both ways between clean logits and those at r.

    r = normal noise; then `steps` times r <- size (r + step g) / ||r + step g||_inf, of each token.

    Args:
        std: deviation of the start.
        steps: probes.
        step: their size before the division.
        size: largest entry of r; the authors' code has 1.
        per: what the largest entry is of: each `"token"` where activations are (B, L, d), or the `"example"`.

    Reference: Jiang et al. 2020, SMART: robust and efficient fine-tuning for pre-trained natural language
    models, section 3.1 and algorithm 1, without its Bregman steps.
    """

    std: NonNegative = 1e-5
    steps: Whole = 1
    step: NonNegative = 1e-3
    size: NonNegative = 1.0
    per: Literal["token", "example"] = "token"

    @property
    def probes(self) -> int:
        return self.steps

    def start(self, z: Tensor, source: Source, key: str) -> Tensor:
        return self.std * normal(z, source, key=key)

    def rule(self, last: bool) -> Ascent:
        del last
        return each(chain(scale(self.step), accumulate(), normalize("linf"), scale(self.size)), self.per)


@register("method")
@final
@dataclass(kw_only=True)
class VAT(Smoothness):
    """Virtual adversarial training: KL from the clean prediction, a constant, to that at r = eps g / ||g||_2.

    g is the gradient at xi d, d a random direction that `steps` power iterations have turned.

    Args:
        eps: length of r, of each example, in the unit of the activation.
        xi: length at which gradients are taken; so small that float32 still sees a difference.
        steps: power iterations.

    Reference: Miyato et al. 2018, Virtual adversarial training, algorithm 1. The clean loss is that of the
    same batch; unlabelled examples have the label that the criterion ignores.
    """

    symmetric = False

    eps: NonNegative = 1.0
    xi: NonNegative = 0.1
    steps: Count = 1

    @property
    def probes(self) -> int:
        return self.steps

    def start(self, z: Tensor, source: Source, key: str) -> Tensor:
        direction = normal(z, source, key=key)
        return self.xi * norms.safe_divide(direction, units(direction, "l2", "example"))

    def rule(self, last: bool) -> Ascent:
        return chain(normalize("l2"), scale(self.eps if last else self.xi))


@register("method")
@final
@dataclass(kw_only=True)
class R3F(Smoothness):
    """KL both ways between clean logits and those under random noise: no probe at all.

    Args:
        eps: deviation of normal noise, or the reach of uniform noise.
        noise: `"normal"` or `"uniform"`.

    Reference: Aghajanyan et al. 2021, Better fine-tuning by reducing representational collapse, eq. 3.
    """

    eps: NonNegative = 1e-5
    noise: Literal["normal", "uniform"] = "normal"

    @property
    def probes(self) -> int:
        return 0

    def start(self, z: Tensor, source: Source, key: str) -> Tensor:
        return self.eps * (normal if self.noise == "normal" else uniform)(z, source, key=key)
