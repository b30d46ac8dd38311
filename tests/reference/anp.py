"""ANP, adversarial noise propagation: Algorithm 1 and equation 2.

Readings: a layer whose gradient is zero for an example gets no noise there (0 / 0 is 0). Noise on the input leaves the
pixels in [0, 1], the register keeps the unclipped r, and its gradient is that at the clipped pixels. Gaussian noise,
if any, is fresh in each pass, probes included, and is no part of r.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, gradients, mean_loss, pixel_noise
from tests.reference.nets import Net


def unit(g: Tensor, norm: str) -> Tensor:
    """g / ||g||_2 per example ("l2") or over the batch ("l2-batch"), or sign g ("sign")."""
    if norm == "sign":
        return g.sign()
    groups = [g] if norm == "l2-batch" else [g[i : i + 1] for i in range(len(g))]
    return torch.cat([v / v.square().sum().sqrt() if v.any() else v for v in groups])


def schedule(k: int, update: str, descend_at: str) -> list[str]:
    """What each pass over the batch does: the weights "descend", the noises "ascend", or both at once."""
    if descend_at == "shifted":
        assert update == "every-step"
        return ["ascend", *["descend, ascend"] * (k - 1), "descend"]
    return {
        "every-step": ["descend, ascend"] * k,
        "last-step": [*["ascend"] * (k - 1), "descend"],
        "after-probes": [*["ascend"] * k, "descend"],
    }[update]


def anp(
    net: Net,
    batches: Batches,
    *,
    k: int,
    eta: float,
    eps: float,
    m: int = 4,
    include_input: bool = False,
    norm: str = "l2",
    apply: str = "raw",
    update: str = "every-step",
    descend_at: str = "printed",
    gaussian: Iterator[Mapping[str, Tensor]] | None = None,
    probe_bn: str = "frozen",
    **sgd: float,
) -> tuple[Net, dict[str, Tensor]]:
    """r <- (1 - eta) r + (eps / k) g / ||g||_2 k times a batch; with apply "sign", (eps / k) sign R is what is added.

    Returns the weights and the last batch's r (or R) after its last ascent. With update "every-step" and printed
    descents that last r is never used.
    """
    net = net.clone()
    optimiser = SGD(net, **sgd)
    sites = (["input"] if include_input else []) + list(net.affine[:m])
    size = 1.0 if apply == "sign" else eps / k
    r: dict[str, Tensor] = {}

    def added() -> dict[str, Tensor | Callable[[Tensor], Tensor]]:
        total = {s: eps / k * v.sign() if apply == "sign" else v for s, v in r.items()}
        for site, v in (next(gaussian) if gaussian else {}).items():
            total[site] = total[site] + v if site in total else v
        return {s: partial(pixel_noise, v) if s == "input" else v for s, v in total.items()}

    for x, y in batches:
        r = {}
        for action in schedule(k, update, descend_at):
            noise, g = added(), {}
            if "ascend" in action:
                g = gradients(net, x, y, sites, noise, bn="frozen" if "descend" in action else probe_bn)
            if "descend" in action:
                optimiser.step(mean_loss(net, x, y, noise))
            for site, v in g.items():
                r[site] = (1 - eta) * r.get(site, torch.zeros_like(v)) + size * unit(v, norm)
    return net, r
