"""The singular values of the encoder's Jacobian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from layerwise.core.registry import register
from layerwise.core.tracing import trace
from layerwise.errors import ConfigError
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import Curves, Look, Panels
from layerwise.evaluation.measures.base import activations, attached, batches, examining, place


@final
@dataclass(frozen=True)
class Spectrum(Curves):
    """The average singular values of dz/dx.

    Args:
        values: the largest ones in falling order, each the mean over the images, units of z per unit of pixel.
        frobenius: mean over the images of ||dz/dx||_F, from all singular values.
        encoder: the site of z.
        shape: (entries of z, entries of x).
        images: how many the means are over.
    """

    title: ClassVar[str] = "Jacobian of the encoder"
    section: ClassVar[str] = "Jacobian spectrum"
    rank: ClassVar[int] = 34
    caption: ClassVar[str] = "Lower is good: the features stretch small changes of the image less."
    alike: ClassVar[tuple[str, ...]] = ("encoder",)

    values: tuple[float, ...]
    frobenius: float
    encoder: str
    shape: tuple[int, int]
    images: int

    def draw(self, panels: Panels, look: Look) -> None:
        """The spectrum."""
        every = max(1, len(self.values) // 12)
        panels[0].plot(range(1, len(self.values) + 1), self.values, markevery=every, **look)

    def finish(self, panels: Panels) -> None:
        """Label the axes."""
        panels[0].set(
            xlabel=f"index of the singular value of dz/dx, z at '{self.encoder}'",
            ylabel="mean singular value (units of z per pixel)",
        )
        panels[0].set_ylim(bottom=0)

    def sentence(self) -> str:
        """How large, and how fast it falls."""
        half = sum(value > self.values[0] / 2 for value in self.values)
        return (
            f"the largest of the mean singular values at {self.encoder} is {self.values[0]:.3g}, {half} of the {len(self.values)} shown "
            f"exceed half of it; mean Frobenius norm {self.frobenius:.3g} ({self.images} images)."
        )


@register("measure", "jacobian", passes=lambda size: 600 * size.images)
def _measure(target: Target, *, images: int = 10, top: int = 50) -> Spectrum:
    """Singular values of the encoder's Jacobian (LAT, figure 2)."""
    model, x, _ = target.first(images)
    return jacobian_spectrum(model, x, top=top, batch_size=10)


def jacobian_spectrum(
    model: nn.Module, x: Tensor, *, encoder: str | None = None, top: int = 50, batch_size: int = 50
) -> Spectrum:
    """Mean over the images of the singular values of J = dz/dx, z the activation at a site.

    One backward pass for each entry of z, over a batch of images; J is held whole, in (batch_size x entries of z x entries of x)
    numbers.

    Args:
        model: any classifier whose rows are independent in evaluation mode.
        x: images, shape (N, ...), pixels in [0, 1].
        encoder: the site of z, for example `"tanh2"`; None is the input of the last convolution or linear layer.
        top: how many singular values to keep.
        batch_size: images at a time; the result does not depend on it.

    Raises:
        ConfigError: no gradient goes from z to x, or top is below 1.

    Reference: Sankaranarayanan et al. 2018 (LAT), figure 2.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> found = jacobian_spectrum(net, torch.rand(8, 4), encoder="0")
    >>> found.shape, len(found.values)
    ((3, 4), 3)
    """
    if top < 1:
        raise ConfigError(f"top={top} keeps no singular value; type 1 or more")
    with examining(model, x) as network:
        site = last_features(network, place(network, x[:2])) if encoder is None else encoder
        with attached(network, [site], x) as sites:
            if len(sites) != 1:
                raise ConfigError(f"encoder={site!r} is {len(sites)} sites ({', '.join(map(str, sites))}); name one")
            name = str(next(iter(sites)))
            parts = []
            for images, _, _ in batches(network, x, x, batch_size=batch_size):
                leaf = images.detach().requires_grad_()
                (z,) = activations(network, sites, leaf)[1].values()
                parts.append(torch.linalg.svdvals(_jacobian(z.flatten(1), leaf, name).double()).cpu())
    found = torch.cat(parts)
    shape = z[0].numel(), x[0].numel()
    frobenius = found.square().sum(dim=1).sqrt().mean().item()
    return Spectrum(tuple(found.mean(dim=0)[:top].tolist()), frobenius, name, shape, len(x))


def _jacobian(z: Tensor, x: Tensor, name: str) -> Tensor:
    """dz/dx of every row, shape (B, entries of z, entries of x).

    Rows are independent, so the gradient of a column's sum holds each row's own. Back-propagating all columns at once (vmap) is no
    faster and holds every layer's activations once for each column.
    """
    if not z.requires_grad:
        raise ConfigError(f"no gradient goes from '{name}' back to the input; name an encoder before what cuts it")
    columns = []
    for k in range(z.shape[1]):
        (g,) = torch.autograd.grad(z[:, k].sum(), x, retain_graph=True)
        columns.append(g.flatten(1))
    return torch.stack(columns, dim=1)


def last_features(network: nn.Module, example: Tensor) -> str:
    """The site of the features that the last convolution or linear layer reads."""
    found = [c for c in trace(network, example) if c.site.side == "input" and isinstance(c.module, _ConvNd | nn.Linear)]
    if not found:
        raise ConfigError("the network has no convolution and no linear layer; name the site of the features")
    return str(found[-1].site)
