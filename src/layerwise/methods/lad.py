"""LAD and LAD-SM: layer-wise adversarial defence."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, final

from torch import Tensor, nn

from layerwise.core import norms
from layerwise.core.calling import Inputs, logits
from layerwise.core.checks import Count, NonNegative, Share
from layerwise.core.cost import AGAIN, PROBE, Passes
from layerwise.core.driving import Step
from layerwise.core.passes import Gradients, Noise
from layerwise.core.probe import Probe
from layerwise.core.random import normal
from layerwise.core.registry import register
from layerwise.core.sites import Sites
from layerwise.errors import ConfigError
from layerwise.methods.base import InputMethod, LayerMethod, Losses
from layerwise.methods.pgd import PGD, TRADES


@register("method")
@final
@dataclass(kw_only=True)
class LAD(LayerMethod):
    """Layer-wise adversarial defence: every block's output x_n is moved along its own gradient g_n, recorded at x'.

    Lie-Trotter (eq. 5): x_n gets eta g_n, n = 1..N. Strang-Marchuk (eq. 8, LAD-SM): block n gets (eta / 2) g_n at its input and
    (eta / 4)(g_n + g_n+1) at its output; where the two shapes differ, (eta / 2) g_n+1 at the output. Raw gradients: no sign, no norm,
    no projection.

    Args:
        eta: the paper's scale (50 for CIFAR-10, 1000 for CIFAR-100), stated for a mean loss over `reference_batch` examples: an
            example's own gradient is multiplied by eta / reference_batch. 0 is the base training, bitwise.
        reference_batch: batch size that eta is stated for.
        splitting: `"lie-trotter"` or `"strang-marchuk"`.
        base: `Standard()` (natural training), `PGD()` or `TRADES()`; any other that perturbs the input works as PGD does.
        gamma: with TRADES, gamma L(x) + (1 - gamma) L_LAD(x') + beta KL, the KL term without hidden noise.
        num_inner_steps: M of eq. 3: gradients are taken again at the perturbed states and the noise adds up; Lie-Trotter only.
        noise_std: deviation of Gaussian noise on the block outputs in training (the stochastic variant; see `NoisyAverage`).
        sites: None takes the network's blocks; or the names of x_1..x_N (Lie-Trotter) or x_0..x_N (Strang-Marchuk).
        probe: how gradients are taken.

    Reference: Layer-wise adversarial defense: an ODE perspective (Yang et al. 2021), eqs. 3-5 and 8, appendix B.2.
    """

    eta: float = 50.0
    reference_batch: Count = 128
    splitting: Literal["lie-trotter", "strang-marchuk"] = "lie-trotter"
    base: InputMethod = field(default_factory=PGD)
    gamma: Share = 0.5
    num_inner_steps: Count = 1
    noise_std: NonNegative = 0.0
    sites: str | list[str] | tuple[str, ...] | None = None
    probe: Probe = field(default_factory=Probe)

    _goes_on = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_inner_steps > 1 and self.splitting == "strang-marchuk":
            raise ConfigError(
                "num_inner_steps > 1 is defined for the Lie-Trotter splitting only; type splitting=lie-trotter"
            )

    def make_sites(self, model: nn.Module, example: Inputs) -> Sites:
        states = "block outputs" if self.splitting == "lie-trotter" else "block states"
        return Sites(model, states if self.sites is None else self.sites, example=example)

    def batch_losses(self, model: nn.Module, x: Inputs, y: Tensor, step: Step) -> Losses:
        """Probe at the perturbed input, then descend with the gradients added to the states."""
        if isinstance(self.base, TRADES) and self.gamma == 1:
            yield from self.base.batch_losses(model, x, y, step)
            return
        sites = self.sites_on(model, x)
        x_adv, _ = self.base.batch_perturb(model, x, y, step)
        noise: Noise = {}
        for _ in range(self.num_inner_steps):
            _, g = self.probe(model, x_adv, y, criterion=self.base.criterion, sites=sites, noise=noise, step=step)
            more = self.noise_of(g)
            noise = {site: noise[site] + r if site in noise else r for site, r in more.items()}
        if self.noise_std:
            # x_0 is the network's own input to the blocks, which only the Strang-Marchuk scheme has among its sites.
            blurred = list(sites)[self.splitting == "strang-marchuk" :]
            noise |= {k: noise[k] + self.noise_std * normal(noise[k], step.generator, key=str(k)) for k in blurred}
        if not isinstance(self.base, TRADES):
            with sites.perturb(noise):
                yield self.base.loss(model, x, x_adv, y)
            return
        # The KL term compares x and x' without hidden noise; the natural pass comes first.
        natural, kl = self.base.parts(model, x, x_adv, y)
        with sites.perturb(noise):
            layerwise = self.base.criterion.mean(logits(model, x_adv), y)
            yield self.gamma * natural + (1 - self.gamma) * layerwise + self.base.beta * kl

    def noise_of(self, g: Gradients) -> Noise:
        """What the states get: eq. 5 or eq. 8, in the order of the calls."""
        eta = self.eta / self.reference_batch
        if self.splitting == "lie-trotter":
            return {site: eta * gradient for site, gradient in g.items()}
        # An inner state is the input of one block and the output of another, and gets both parts.
        states = list(g)
        noise = {site: eta / 2 * g[site] for site in states[:-1]}
        for before, after in pairwise(states):
            same = g[before].shape == g[after].shape
            at_output = eta / 4 * (g[before] + g[after]) if same else eta / 2 * g[after]
            noise[after] = noise[after] + at_output if after in noise else at_output
        return noise

    def diagnose(self, model: nn.Module, x: Inputs, y: Tensor) -> dict[str, float]:
        """The ratio of eq. 16, ||x_0 + f(x_0)||_2 / ||dL/dx_0||_2 for the mean loss over `reference_batch`, over the whole batch.

        Nothing where x_0 is not known: the Lie-Trotter scheme with sites of the user's.
        """
        if self.sites is not None and self.splitting == "lie-trotter":
            return {}
        with Sites(model, "block states" if self.sites is None else self.sites, example=x) as states:
            first: list[Tensor] = []
            block = states.model.get_submodule(list(states)[1].module)
            handle = block.register_forward_hook(lambda module, args, output: first.append(output.detach()))
            try:
                _, g = self.probe(model, x, y, criterion=self.base.criterion, sites=states)
            finally:
                handle.remove()
            size = norms.norm(first[0].unsqueeze(0)) / norms.norm(next(iter(g.values())).unsqueeze(0))
        return {"eq16_ratio": float(size) * self.reference_batch}

    @property
    def passes(self) -> Passes:
        """Those of the base and one probe an inner step; with TRADES one more descent pass."""
        second = AGAIN if isinstance(self.base, TRADES) and self.gamma != 1 else 0 * AGAIN
        return self.base.passes + self.num_inner_steps * PROBE + second
