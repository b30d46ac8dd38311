"""MeanSparse: after training, activations near their channel's mean become that mean."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from layerwise.core.arguments import Named
from layerwise.core.calling import Inputs, call, move
from layerwise.core.checks import at_least
from layerwise.core.modes import evaluation_mode
from layerwise.core.selection import Selection
from layerwise.core.sites import Sites, block_sites, unwrap
from layerwise.errors import ConfigError


class MeanSparse(Named, nn.Module):
    """A trained network in which a value z of a channel becomes its mean mu where |z - mu| < threshold sigma.

    Small variations, which attacks live on, are taken away. `calibrate` finds mu and sigma first; with threshold 0 the
    network is what it was, bit for bit. Gradients of what is replaced are zero.

    Args:
        model: the trained network.
        sites: inputs of activation functions; None takes batch-norm outputs, or convolution outputs without batch norm,
            or affine outputs.
        threshold: in units of sigma; the paper chooses from 0 to 0.4, on data that nothing is reported on. It may be set again.

    Reference: Amini et al. 2024, MeanSparse: post-training robustness enhancement through mean-centered feature
    sparsification, eq. 6.
    """

    def __init__(self, model: nn.Module, *, sites: Selection | None = None, threshold: float = 0.2) -> None:
        super().__init__()
        at_least("threshold", threshold, 0)
        self.model, self.threshold, self.selection = model, threshold, sites
        self.means, self.deviations = nn.ParameterDict(), nn.ParameterDict()
        self._sites: Sites | None = None

    def calibrate(self, batches: Iterable[Any]) -> Self:
        """Take mean and deviation of every channel over batches of training data, x or (x, y); in evaluation mode.

        Raises:
            ConfigError: there is no batch.
        """
        sums: dict[str, list[Tensor]] = {}

        def note(z: Tensor, *, name: str) -> Tensor:
            flat = _channels_last(z).detach().double().flatten(0, -2)
            found = [torch.full((), float(len(flat)), device=flat.device), flat.sum(0), flat.square().sum(0)]
            sums[name] = [a + b for a, b in zip(sums[name], found, strict=True)] if name in sums else found
            return z

        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        with torch.no_grad(), evaluation_mode(unwrap(self.model)):
            for batch in batches:
                x = move(batch[0] if isinstance(batch, tuple | list) else batch, device)
                sites = self._attached(x)
                with sites.perturb({site: partial(note, name=str(site)) for site in sites}):
                    call(self.model, x)
        if not sums:
            raise ConfigError("there is no batch to calibrate with; give some of the training data")
        dtype = next((p.dtype for p in self.model.parameters()), torch.float32)
        for name, (count, total, squares) in sums.items():
            mean = total / count
            self.means[_key(name)] = nn.Parameter(mean.to(dtype), requires_grad=False)
            deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
            self.deviations[_key(name)] = nn.Parameter(deviation.to(dtype), requires_grad=False)
        return self

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the network gives with sparse activations.

        Raises:
            ConfigError: it is not calibrated.
        """
        if not len(self.means):
            raise ConfigError("MeanSparse knows no means yet; call calibrate(batches) with some of the training data")
        x: Inputs = named or (inputs[0] if len(inputs) == 1 else inputs)
        sites = self._attached(x)
        with sites.perturb({site: partial(self._sparse, name=str(site)) for site in sites}):
            return call(self.model, x)

    def _attached(self, x: Inputs) -> Sites:
        if self._sites is None:
            self._sites = block_sites(self.model, x, self.selection)
        self._sites.attach(x)
        return self._sites

    def _sparse(self, z: Tensor, *, name: str) -> Tensor:
        values, mean = _channels_last(z), self.means[_key(name)]
        near = (values - mean).abs() < self.threshold * self.deviations[_key(name)]
        return _channels_back(torch.where(near, mean.to(z.dtype), values), z)


def _key(name: str) -> str:
    """A site's name as a state dict takes it."""
    return name.replace(".", "/")


def _channels_last(z: Tensor) -> Tensor:
    """Tokens (B, L, d) have their channels last already, all else in the second dimension."""
    return z if z.ndim in (2, 3) else z.movedim(1, -1)


def _channels_back(values: Tensor, z: Tensor) -> Tensor:
    return values if z.ndim in (2, 3) else values.movedim(-1, 1)
