"""LAD and LAD-SM, layer-wise adversarial defence: equations 5 and 8, on natural, PGD and TRADES training.

States: x_0 is the stem's output, x_n the output of residual block n. eta is the paper's, for a mean loss over 128
examples, so a gradient of the summed loss is multiplied by eta / 128. The recorded g_n belongs to the unperturbed
pass at x'. Readings: inner steps (equation 3) repeat the probe at the noise so far, which leaves the input alone; the
passes of the TRADES descent come in the order x, x', x' with hidden noise (it only matters to running statistics).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, each_loss, gradients, mean_loss
from tests.reference.nets import Net
from tests.reference.pgd import pgd_attack
from tests.reference.trades import kl, trades_attack

BLOCKS = 4
STATES = ["conv1", *(f"blocks.block{n}" for n in range(1, BLOCKS + 1))]


def lie_trotter(g: Sequence[Tensor], eta: float) -> dict[str, Tensor]:
    """Equation 5: x_n <- x_n + eta g_n, n = 1..N."""
    return {STATES[n]: eta * g[n] for n in range(1, BLOCKS + 1)}


def strang_marchuk(g: Sequence[Tensor], eta: float) -> dict[str, Tensor]:
    """Equation 8: block n takes x_n + (eta/2) g_n, and (eta/4)(g_n + g_{n+1}) is added to its output x_{n+1}.

    Where the block changes the shape, its output gets (eta/2) g_{n+1}.
    """
    noise = {}
    for n in range(BLOCKS):
        block = STATES[n + 1]
        noise[f"{block}:input"] = eta / 2 * g[n]
        fits = g[n].shape == g[n + 1].shape
        noise[block] = eta / 4 * (g[n] + g[n + 1]) if fits else eta / 2 * g[n + 1]
    return noise


def layer_noise(
    net: Net, x: Tensor, y: Tensor, *, eta: float, splitting: str, num_inner_steps: int, bn: str
) -> dict[str, Tensor]:
    """The noise of all layers: gradients at the states, scaled, and added up over the inner steps."""
    assert num_inner_steps == 1 or splitting == "lie-trotter"
    scheme = {"lie-trotter": lie_trotter, "strang-marchuk": strang_marchuk}[splitting]
    noise: dict[str, Tensor] = {}
    for _ in range(num_inner_steps):
        g = gradients(net, x, y, STATES, noise, bn=bn)
        for site, r in scheme([g[s] for s in STATES], eta / 128).items():
            noise[site] = noise.get(site, torch.zeros_like(r)) + r
    return noise


def lad(
    net: Net,
    batches: Batches,
    *,
    eta: float,
    splitting: str = "lie-trotter",
    base: str = "natural",
    draws: Sequence[Tensor] | None = None,
    eps: float = 8 / 255,
    alpha: float = 2 / 255,
    steps: int = 10,
    gamma: float = 0.5,
    lambda_: float = 1 / 6,
    num_inner_steps: int = 1,
    probe_bn: str = "frozen",
    **sgd: float,
) -> Net:
    """natural, PGD: L_LAD(x'). TRADES: gamma L(x) + (1 - gamma) L_LAD(x') + KL(p(x) || p(x')) / lambda.

    `draws` are the attack's random numbers: U(-1, 1) for PGD (times eps), N(0, 1) for TRADES (times 0.001).
    """
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for (x, y), u in zip(batches, draws or [torch.zeros(()) for _ in batches], strict=True):
        x_adv = x
        if base == "pgd":
            x_adv = pgd_attack(net, x, y, x + eps * u, eps=eps, alpha=alpha, steps=steps)
        elif base == "trades":
            x_adv = trades_attack(net, x, x + 0.001 * u, eps=eps, alpha=alpha, steps=steps)
        noise = layer_noise(net, x_adv, y, eta=eta, splitting=splitting, num_inner_steps=num_inner_steps, bn=probe_bn)
        if base == "trades":
            clean, adversarial = net.logits(x), net.logits(x_adv)
            loss = gamma * each_loss(clean, y).mean() + kl(clean, adversarial).mean() / lambda_
            loss = loss + (1 - gamma) * mean_loss(net, x_adv, y, noise)
        else:
            loss = mean_loss(net, x_adv, y, noise)
        optimiser.step(loss)
    return net
