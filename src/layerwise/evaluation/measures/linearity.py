"""The linear approximation error of the loss at every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

from layerwise.core.ascent import chain, scale, sign
from layerwise.core.checks import Radius, format_radius
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.probe import Probe
from layerwise.core.registry import register
from layerwise.core.selection import Selection
from layerwise.errors import ConfigError
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import PerSite
from layerwise.evaluation.measures.base import LAYERS, attached, batches, examining, losses
from layerwise.evaluation.measures.landscape import rademacher


@final
@dataclass(frozen=True)
class Linearity(PerSite):
    """How far the loss is from its tangent at the sites.

    Args:
        sites: their names, in the order of the forward pass.
        errors: at each, the mean over the images of R = |L(z + e) - L(z) - <g, e>|, nats.
        first_order: at each, the mean of |<g, e>|, nats: what R is to be compared with.
        eta: size of the entries of e, in the unit of the activation.
        direction: `"adversarial"` or `"random"`.
        images: how many the means are over.
    """

    title: ClassVar[str] = "Linear approximation error"
    caption: ClassVar[str] = (
        "To the left is good: the loss is closer to its tangent, so one gradient step finds what many would."
    )
    alike: ClassVar[tuple[str, ...]] = ("eta", "direction")

    sites: tuple[str, ...]
    errors: tuple[float, ...]
    first_order: tuple[float, ...]
    eta: float
    direction: str
    images: int

    @property
    def values(self) -> tuple[float, ...]:
        return self.errors

    @property
    def relative(self) -> tuple[float, ...]:
        """The errors beside what they are to be compared with: 0 where the loss is linear."""
        return tuple(r / max(g, 1e-12) for r, g in zip(self.errors, self.first_order, strict=True))

    @property
    def quantity(self) -> str:
        return f"mean |L(z + e) - L(z) - <g, e>| (nats)\nfor {self.direction} e of {format_radius(self.eta)}"


@register("measure", "linearity", passes=lambda size: 25 * size.images)
def _measure(target: Target, *, images: int = 100) -> Linearity:
    """Distance of the loss from its tangent at every layer (SLAT, eq. 6)."""
    return linear_approximation_error(*target.first(images), eta=target.eps, seed=target.seed)


def linear_approximation_error(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    sites: Selection = LAYERS,
    eta: Radius = 8 / 255,
    direction: Literal["adversarial", "random"] = "adversarial",
    criterion: Criterion | None = None,
    seed: int = 0,
    batch_size: int = 250,
) -> Linearity:
    """Mean of R = |L(z + e) - L(z) - <dL/dz, e>| at every site, one site at a time.

    Args:
        model: any classifier.
        x: images, shape (N, ...), pixels in [0, 1].
        y: labels, shape (N,).
        sites: where; see `layerwise.core.tracing.select`.
        eta: size of the entries of e, in the unit of the activation.
        direction: `"adversarial"` is e = eta sign(dL/dz), SLAT's own perturbation; `"random"` has entries +eta or -eta.
        criterion: each image's loss; None is cross entropy.
        seed: of the random directions.
        batch_size: images at a time; the result does not depend on it.

    Raises:
        ConfigError: unknown direction.

    Reference: SLAT, eq. 6.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> linear_approximation_error(net, torch.rand(8, 4), torch.zeros(8, dtype=torch.int64)).sites
    ('input', '0', '2')
    """
    if direction not in ("adversarial", "random"):
        raise ConfigError(f"direction={direction!r} is unknown; type 'adversarial' or 'random'")
    loss = criterion or CrossEntropy()
    with examining(model, x, y) as network, attached(network, sites, x) as found:
        total = torch.zeros(2, len(found), dtype=torch.float64)
        for images, labels, source in batches(network, x, y, batch_size=batch_size, seed=seed):
            _, g = Probe()(network, images, labels, criterion=loss, sites=found)
            start = losses(network, images, labels, loss)
            for index, (site, gradient) in enumerate(g.items()):
                along = gradient if direction == "adversarial" else rademacher(gradient, source, key=str(site))
                e = chain(sign(), scale(eta))(along)
                with found.perturb({site: e}):
                    change = losses(network, images, labels, loss) - start
                first = (gradient.double() * e.double()).flatten(1).sum(dim=1)
                total[0, index] += (change - first).abs().sum().cpu()
                total[1, index] += first.abs().sum().cpu()
        names = tuple(map(str, found))
    errors, first_order = (total / len(x)).tolist()
    return Linearity(names, tuple(errors), tuple(first_order), float(eta), direction, len(x))
