"""SLAT, single-step latent adversarial training: Algorithm 1 and equation 4.

Readings: the input is always perturbed, `sites` are the hidden ones, each layer in them is applied (Algorithm 1 slips).
With more than one probe (the paper leaves it open) probe j takes its gradients at the noise found so far, at the
input and at the sites, steps on by the same step, and projects on +-eta; N-FGSM's input is never projected.
`input_step` is a fraction of the input's eta; where it is not given, the base's (FGSM and N-FGSM 1, FGSM-RS 1.25).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, gradients, mean_loss, pixels
from tests.reference.nets import Net

START = {"fgsm": 0.0, "fgsm-rs": 1.0, "n-fgsm": 2.0}
INPUT_STEP = {"fgsm": 1.0, "fgsm-rs": 1.25, "n-fgsm": 1.0}


def in_activation_range(r: Tensor, z: Tensor) -> Tensor:
    """The noise that keeps z + r between the least and the largest z of its example and channel."""
    return torch.clamp(z + r, z.amin((2, 3), keepdim=True), z.amax((2, 3), keepdim=True)) - z


def slat(
    net: Net,
    batches: Batches,
    *,
    sites: Sequence[str],
    eta: float | Mapping[str, float],
    base: str = "fgsm",
    uniform: Sequence[Tensor] | None = None,
    input_step: float | None = None,
    clamp_to_activation_range: bool = False,
    num_probes: int = 1,
    probe_bn: str = "frozen",
    **sgd: float,
) -> Net:
    """Probe at the start, delta_k = eta_k sign g_k at every k of the same probe, one descent at x' and z_k + delta_k."""
    net = net.clone()
    optimiser = SGD(net, **sgd)
    etas = eta if isinstance(eta, Mapping) else dict.fromkeys(["input", *sites], eta)
    step = (INPUT_STEP[base] if input_step is None else input_step) * etas["input"]
    radius = inf if base == "n-fgsm" else etas["input"]
    starts = uniform or [torch.zeros_like(x) for x, _ in batches]

    def added(delta: Mapping[str, Tensor]) -> dict[str, Tensor | Callable[[Tensor], Tensor]]:
        return {k: partial(in_activation_range, r) if clamp_to_activation_range else r for k, r in delta.items()}

    for (x, y), u in zip(batches, starts, strict=True):
        x_adv = pixels(x + START[base] * etas["input"] * u)
        delta: dict[str, Tensor] = {}
        for _ in range(num_probes):
            g = gradients(net, x_adv, y, ["input", *sites], added(delta), bn=probe_bn)
            x_adv = pixels(x + (x_adv - x + step * g["input"].sign()).clamp(-radius, radius))
            for k in sites:
                delta[k] = (delta.get(k, torch.zeros_like(g[k])) + etas[k] * g[k].sign()).clamp(-etas[k], etas[k])
        optimiser.step(mean_loss(net, x_adv, y, added(delta)))
    return net
