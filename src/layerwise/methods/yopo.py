"""YOPO: many attack steps for few propagations, each through the first layer only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from layerwise.core.ascent import iterate, random_start
from layerwise.core.calling import Inputs, call, examples, logits, rows, with_examples
from layerwise.core.checks import Count, NonNegative, Radius
from layerwise.core.cost import AGAIN, DESCENT, Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Partial, Step
from layerwise.core.modes import batch_norm, frozen
from layerwise.core.probe import Probe
from layerwise.core.registry import register
from layerwise.core.shards import grouped
from layerwise.core.sites import Sites, unwrap
from layerwise.core.threat import EPS, radius
from layerwise.core.tracing import Site, tensors_of
from layerwise.errors import ConfigError, SiteError
from layerwise.methods.base import LayerMethod, Losses


@register("method")
@final
@dataclass(kw_only=True)
class YOPO(LayerMethod):
    """YOPO-m-n: m propagations at x + eta; after each, n sign steps along d(p . z)/dx with p = dL/dz at the first layer held constant.

    The steps run the network up to the site only. The weights' gradients of the m propagations add up to one optimiser step, so the
    usual rate is divided by m.

    Args:
        eps: radius, pixels in [0, 1]; None is the threat model's.
        m: propagations of a batch.
        n: steps after each of them.
        step: step size as a fraction of eps.
        site: the first layer's output, any module's; `"first(1)"` is the first convolution or linear layer.
        adjoint_update: after the steps, the first layer also descends p . z at the new point, as in the authors' code (its gradient is
            then counted twice, and the steps after the last propagation serve for this only). One process only.
        criterion: each example's loss.
        probe: what batch norm does in the steps, where the site lies behind one.

    Reference: Zhang et al. 2019, You only propagate once, algorithm 1. Pixels are clipped outside of the gradient; the authors' code
    clips inside, where a saturated pixel has gradient 0, and leaves the first propagation's pixels unclipped.
    """

    eps: Radius | None = field(default=None, metadata=EPS)
    m: Count = 5
    n: Count = 3
    step: NonNegative = 0.25
    site: str = "first(1)"
    adjoint_update: bool = False
    criterion: Criterion = field(default_factory=CrossEntropy)
    probe: Probe = field(default_factory=Probe)

    perturbs_input = True

    def make_sites(self, model: nn.Module, example: Inputs) -> Sites:
        sites = Sites(model, [self.site], example=example)
        found = list(sites)
        if len(found) != 1 or found[0].side != "output":
            sites.remove()
            names = ", ".join(map(str, found))
            raise SiteError(f"site={self.site!r} has to be one module's output, found {names}; type site=conv1, say")
        return sites

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """Algorithm 1."""
        if self.adjoint_update and grouped() and dist.get_world_size() > 1:
            raise ConfigError(
                "adjoint_update=True descends on one process only; type adjoint_update=false or devices=1"
            )
        sites, raw = self.sites_on(model, x), unwrap(model)
        (site,) = sites
        given = examples(x)
        x_adv = random_start(given, radius(self.eps), "linf", step.generator)
        again = given.new_zeros(())
        for j in range(self.m):
            with sites.record(x) as descent:
                loss = descent.mean(self.criterion.mean, logits(model, with_examples(x, x_adv)), y) + again
                if j == self.m - 1 and not self.adjoint_update:
                    yield loss
                    return
                yield Partial(loss)
            p = descent.gradients()[site]
            sites.leave()  # another micro-batch's descent may still be open
            x_adv = self._ascend(raw, site, x, x_adv, p)
            if self.adjoint_update:
                again = self._adjoint(raw, site, with_examples(x, x_adv), p)
        yield loss.detach() + again

    def _ascend(self, raw: nn.Module, site: Site, x: Inputs, x_adv: Tensor, p: Tensor) -> Tensor:
        """N steps along the gradient of p . z, which is dL/dx as long as p = dL/dz does not change."""

        def gradient(at: Tensor, last: bool) -> Tensor:
            at = at.detach().requires_grad_()
            with frozen(raw), batch_norm(raw, self.probe.batch_norm):
                return torch.autograd.grad((value_at(raw, site, with_examples(x, at)) * p).sum(), at)[0]

        eps = radius(self.eps)
        return iterate(examples(x), x_adv, steps=self.n, alpha=self.step * eps, eps=eps, norm="linf", gradient=gradient)

    def _adjoint(self, raw: nn.Module, site: Site, x_adv: Inputs, p: Tensor) -> Tensor:
        """A zero with the gradient of p . z, mean over the batch: what is logged stays the loss."""
        with batch_norm(raw, self.probe.batch_norm):
            value = (value_at(raw, site, x_adv) * p).sum() / rows(x_adv)
        return value - value.detach()

    @property
    def passes(self) -> Passes:
        """M descents, one step; the first layer's own passes, 2 n a descent, are not counted."""
        return DESCENT + (self.m - 1) * AGAIN


@final
class _Reached(Exception):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


def value_at(model: nn.Module, site: Site, x: Inputs) -> Tensor:
    """The activation at a module's output, from a forward pass that ends there.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> value_at(net, Site("0"), torch.zeros(1, 2)).shape
    torch.Size([1, 3])
    """
    calls = 0

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal calls
        calls += 1
        if site.call in (None, calls - 1):
            raise _Reached(tensors_of(output)[site.key])

    handle = model.get_submodule(site.module).register_forward_hook(leave)
    try:
        call(model, x)
    except _Reached as reached:
        return reached.value
    finally:
        handle.remove()
    raise SiteError(f"site '{site}' was not reached in this pass: the branch was not taken")
