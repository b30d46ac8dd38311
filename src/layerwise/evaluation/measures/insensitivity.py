"""How little the loss, and every layer, reacts to noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from layerwise.core import norms
from layerwise.core.checks import check_radius
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.random import Stream
from layerwise.core.registry import register
from layerwise.core.selection import Selection
from layerwise.errors import ConfigError, DataError
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import Curves, Look, Panels, PerSite
from layerwise.evaluation.measures.base import (
    LAYERS,
    NOISES,
    NoiseName,
    Pollute,
    activations,
    attached,
    batches,
    examining,
    losses,
    uniform_noise,
)


@final
@dataclass(frozen=True)
class NoiseInsensitivity(Curves):
    """The empirical noise insensitivity I_f; lower is less sensitive.

    Args:
        radii: the eps, pixel units.
        values: I_f at each, nats per unit of pixel.
        skipped: pairs left out at each eps: the polluted image equals the clean one, or lies farther away than eps.
        images: N.
        copies: M, polluted images of each.
    """

    title: ClassVar[str] = "Noise insensitivity"
    section: ClassVar[str] = "Insensitivity"
    rank: ClassVar[int] = 33
    caption: ClassVar[str] = "Lower is good: the loss changes less per unit of noise."

    radii: tuple[float, ...]
    values: tuple[float, ...]
    skipped: tuple[int, ...]
    images: int
    copies: int

    def draw(self, panels: Panels, look: Look) -> None:
        """I_f over eps."""
        panels[0].plot(self.radii, self.values, **look)

    def finish(self, panels: Panels) -> None:
        """Label the axes."""
        panels[0].set(xlabel="eps (l-infinity, pixels in [0, 1])", ylabel="I_f (nats per unit of pixel)")
        panels[0].set_ylim(bottom=0)

    def sentence(self) -> str:
        """From the smallest to the largest radius."""
        return (
            f"the loss changes by {self.values[0]:.3g} nats per unit of noise at eps {self.radii[0]:.3g} and {self.values[-1]:.3g} at "
            f"{self.radii[-1]:.3g}, mean of {self.images} images and {self.copies} polluted copies of each."
        )


@register("measure", "noise-insensitivity", passes=lambda size: 4 * size.images * size.copies)
def _noise(target: Target, *, images: int = 100, copies: int = 10, noise: NoiseName = "uniform") -> NoiseInsensitivity:
    """Change of the loss per unit of noise (ANP, eq. 4)."""
    radii = [radius for share in (0.25, 0.5, 1.0, 2.0) if 0 < (radius := target.eps * share) <= 1]
    return noise_insensitivity(*target.first(images), eps=radii, pollute=NOISES[noise], copies=copies, seed=target.seed)


def noise_insensitivity(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: Sequence[float],
    pollute: Pollute = uniform_noise,
    copies: int = 10,
    criterion: Criterion | None = None,
    seed: int = 0,
    batch_size: int = 250,
) -> NoiseInsensitivity:
    """I_f(eps) = mean over N images and M copies of |L(x_i) - L(mu_ij)| / ||x_i - mu_ij||_inf, where that distance is at most eps.

    Args:
        model: any classifier.
        x: images, shape (N, ...), pixels in [0, 1]; the paper takes N = 100.
        y: labels, shape (N,).
        eps: the radii, pixel units, above 0.
        pollute: makes the copies: noise, corruption or attack.
        copies: M.
        criterion: each image's loss; None is cross entropy.
        seed: of the copies.
        batch_size: images at a time; the result does not depend on it.

    Raises:
        ConfigError: a setting is out of range, or at some eps every pair is skipped.

    Reference: Liu et al. 2021 (ANP), eq. 4 and figures 8 and 9.

    >>> found = noise_insensitivity(nn.Linear(4, 2), torch.rand(8, 4), torch.zeros(8, dtype=torch.int64), eps=[0.1, 0.2])
    >>> found.copies, len(found.values)
    (10, 2)
    """
    if copies < 1 or not eps:
        raise ConfigError(f"copies={copies}, eps={list(eps)} leave nothing to compare; type copies=10, eps=[8/255]")
    for radius in eps:
        check_radius("eps", radius)
    loss = criterion or CrossEntropy()
    total = torch.zeros(len(eps), dtype=torch.float64)
    counted = torch.zeros(len(eps), dtype=torch.int64)
    with examining(model, x, y) as network:
        for images, labels, source in batches(network, x, y, batch_size=batch_size, seed=seed):
            clean = losses(network, images, labels, loss)
            for k, radius in enumerate(eps):
                for copy in range(copies):
                    stream = Stream(source.seed, step=copy, start=source.start, total=source.total)
                    polluted = pollute(network, images, labels, radius, stream).detach()
                    distance = norms.norm(polluted.double() - images.double(), "linf")
                    # The rounding of float32 images near 1 is 6e-8.
                    usable = (distance > 0) & (distance <= radius + 1e-6)
                    change = (losses(network, polluted, labels, loss) - clean).abs()
                    total[k] += norms.safe_divide(change, distance)[usable].sum().cpu()
                    counted[k] += usable.sum().cpu()
    pairs = len(x) * copies
    if int(counted.min()) == 0:
        radius = eps[int(counted.argmin())]
        raise ConfigError(
            f"all {pairs} polluted images equal their clean ones or lie farther away than eps={radius:g}; give noise that keeps to eps"
        )
    return NoiseInsensitivity(
        tuple(map(float, eps)), tuple((total / counted).tolist()), tuple((pairs - counted).tolist()), len(x), copies
    )


@final
@dataclass(frozen=True)
class RepresentationInsensitivity(PerSite):
    """How much every layer's activation changes; lower is less sensitive.

    Args:
        sites: their names, in the order of the forward pass.
        changes: at each, the mean over the images of ||z' - z||_2 / ||z||_2.
        mean: over the sites.
        blank: at each, images left out because z is all zeros.
        images: how many pairs were given.
    """

    title: ClassVar[str] = "Representation insensitivity"
    section: ClassVar[str] = "Insensitivity"
    rank: ClassVar[int] = 33
    caption: ClassVar[str] = "To the left is good: the layer changes less when the image is attacked."
    logarithmic: ClassVar[bool] = False

    sites: tuple[str, ...]
    changes: tuple[float, ...]
    mean: float
    blank: tuple[int, ...]
    images: int

    @property
    def values(self) -> tuple[float, ...]:
        return self.changes

    @property
    def quantity(self) -> str:
        return "mean relative l2 change ||z' - z|| / ||z|| (no unit)"


@register("measure", "representation-insensitivity", passes=lambda size: 4 * size.images)
def _representation(target: Target, *, images: int = 100, noise: NoiseName = "fgsm") -> RepresentationInsensitivity:
    """Change of every layer under noise (ANP, figures 4 and 13)."""
    model, x, y = target.first(images)
    with examining(model, x, y) as network:
        polluted = NOISES[noise](network, x, y, target.eps, Stream(target.seed, total=len(x))).detach()
    return representation_insensitivity(model, x, polluted)


def representation_insensitivity(
    model: nn.Module, x: Tensor, polluted: Tensor, *, sites: Selection = LAYERS, batch_size: int = 250
) -> RepresentationInsensitivity:
    """Mean over the images of ||z' - z||_2 / ||z||_2 at every site, z and z' the activations of an image and of its polluted copy.

    Args:
        model: any classifier.
        x: images, shape (N, ...), pixels in [0, 1].
        polluted: a noisy or adversarial copy of each, the same shape.
        sites: where; ANP's figures take the ReLUs, `sites=".*relu.*"`.
        batch_size: images at a time; the result does not depend on it.

    Raises:
        DataError: the shapes differ.

    Reference: Liu et al. 2021 (ANP), figures 4 and 13, which print no formula: norm and mean are our choice.

    >>> x = torch.rand(8, 4)
    >>> representation_insensitivity(nn.Linear(4, 2), x, x).changes
    (0.0, 0.0)
    """
    if x.shape != polluted.shape:
        raise DataError(
            f"images have shape {tuple(x.shape)}, polluted ones {tuple(polluted.shape)}; give one copy of each"
        )
    with examining(model, x, polluted) as network, attached(network, sites, x) as found, torch.no_grad():
        total = torch.zeros(len(found), dtype=torch.float64)
        counted = torch.zeros(len(found), dtype=torch.int64)
        for images, copies, _ in batches(network, x, polluted, batch_size=batch_size):
            (_, clean), (_, noisy) = activations(network, found, images), activations(network, found, copies)
            for k, site in enumerate(found):
                size = norms.norm(clean[site].double())
                change = norms.norm(noisy[site].double() - clean[site].double())
                total[k] += norms.safe_divide(change, size)[size > 0].sum().cpu()
                counted[k] += (size > 0).sum().cpu()
        names = tuple(map(str, found))
    changes = total / counted.clamp(min=1)
    return RepresentationInsensitivity(
        names, tuple(changes.tolist()), changes.mean().item(), tuple((len(x) - counted).tolist()), len(x)
    )
