"""MeanSparse (Amini et al. 2024), eq. 6: after training, what lies near its channel's mean becomes the mean."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from tests.reference.nets import Net


def mean_sparse(net: Net, x: Tensor, *, calibration: Tensor, sites: Sequence[str], threshold: float) -> Tensor:
    """The logits of x; means and deviations are those of the plain network on other images."""
    seen = net.passes(calibration, bn="eval")[1]
    return net.logits(
        x, bn="eval", replaced={site: partial(sparse, seen=seen[site], alpha=threshold) for site in sites}
    )


def sparse(z: Tensor, *, seen: Tensor, alpha: float) -> Tensor:
    """Channel by channel."""
    channels = []
    for channel in range(z.shape[1]):
        mu, values = seen[:, channel].mean(), z[:, channel]
        sigma = (seen[:, channel] - mu).pow(2).mean().sqrt()
        channels.append(torch.where((values - mu).abs() < alpha * sigma, mu, values))
    return torch.stack(channels, 1)
