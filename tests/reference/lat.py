"""LAT, efficient layer-wise adversarial training: Algorithm 1, and the variants of section 4.1.

Readings: the range of the gradient is over the whole batch tensor of a site; eps is printed for a mean loss over
`reference_batch` examples, so eps * range of a summed loss's gradient is divided by that; without `relative` eps is
the size itself. The joint form's clean pass comes first. FGS-inter uses the same step on gradients of the same batch,
taken in a probe at the clean values; FGS-orig's eps is in pixels, and its pixels are clipped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, gradients, mean_loss, pixels
from tests.reference.nets import Net


def perturbation(g: Tensor, *, eps: float, relative: bool, reference_batch: int) -> Tensor:
    """(eps / 128)(max g - min g) sign g; or eps sign g."""
    size = eps / reference_batch * (g.max() - g.min()) if relative else eps
    return size * g.sign()


def fit_rows(r: Tensor, rows: int) -> Tensor:
    """The first `rows` rows of r; zeros for those that it does not have."""
    fitted = torch.zeros(rows, *r.shape[1:], dtype=r.dtype)
    fitted[: len(r)] = r[:rows]
    return fitted


def lat(
    net: Net,
    batches: Batches,
    *,
    sites: Sequence[str],
    eps: float,
    relative: bool = True,
    reference_batch: int = 128,
    alpha: float = 0.0,
    **sgd: float,
) -> tuple[Net, dict[str, Tensor]]:
    """One descent at z + r, r from the batch before; alpha > 0 (joint, 0.5) mixes in the clean loss.

    Returns the weights and the noise for the batch that would come next.
    """
    net = net.clone()
    optimiser = SGD(net, **sgd)
    r: dict[str, Tensor] = {}
    for x, y in batches:
        noise = {site: fit_rows(v, len(x)) for site, v in r.items()}
        g = gradients(net, x, y, sites, noise)
        if alpha > 0:
            clean = mean_loss(net, x, y)
            optimiser.step(alpha * clean + (1 - alpha) * mean_loss(net, x, y, noise))
        else:
            optimiser.step(mean_loss(net, x, y, noise))
        r = {s: perturbation(v, eps=eps, relative=relative, reference_batch=reference_batch) for s, v in g.items()}
    return net, r


def fgs_inter(
    net: Net,
    batches: Batches,
    *,
    sites: Sequence[str],
    eps: float,
    relative: bool = True,
    reference_batch: int = 128,
    alpha: float = 0.5,
    probe_bn: str = "frozen",
    **sgd: float,
) -> Net:
    """The same batch's gradients perturb the hidden layers, not the input; joint loss."""
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for x, y in batches:
        g = gradients(net, x, y, sites, bn=probe_bn)
        r = {s: perturbation(v, eps=eps, relative=relative, reference_batch=reference_batch) for s, v in g.items()}
        clean = mean_loss(net, x, y)
        optimiser.step(alpha * clean + (1 - alpha) * mean_loss(net, x, y, r))
    return net


def fgs_orig(
    net: Net, batches: Batches, *, eps: float, alpha: float = 0.5, probe_bn: str = "frozen", **sgd: float
) -> Net:
    """Equation 3: alpha L(x) + (1 - alpha) L(clip(x + eps sign g))."""
    net = net.clone()
    optimiser = SGD(net, **sgd)
    for x, y in batches:
        g = gradients(net, x, y, ["input"], bn=probe_bn)["input"]
        clean = mean_loss(net, x, y)
        optimiser.step(alpha * clean + (1 - alpha) * mean_loss(net, pixels(x + eps * g.sign()), y))
    return net
