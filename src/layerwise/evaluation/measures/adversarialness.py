"""How adversarial the FGSM images of one network are to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch
from torch import Tensor, nn

from layerwise.attacks.base import is_correct
from layerwise.core.checks import check_radius
from layerwise.core.registry import register
from layerwise.errors import ConfigError
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.measures.base import Pollute, batches, examining, fgsm, place
from layerwise.evaluation.style import canvas, describe, line, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RADII = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1)


@final
@dataclass(frozen=True)
class Adversarialness(Measurement):
    """Accuracy of one network on the images of others.

    Args:
        radii: pixel units.
        accuracies: {name of the network that the images are made on: accuracy at each radius, in [0, 1]}.
        images: how many the accuracies are over.
    """

    title: ClassVar[str] = "Degree of adversarialness"
    caption: ClassVar[str] = "Images that harm the network which they were not made on transfer."

    radii: tuple[float, ...]
    accuracies: dict[str, tuple[float, ...]]
    images: int

    def figure(self) -> Figure:
        """A curve for each network that images are made on."""
        with styled():
            figure, (axes,) = canvas()
            for index, (name, values) in enumerate(self.accuracies.items()):
                axes.plot(self.radii, [100 * value for value in values], label=f"made on {name}", **line(index))
            axes.set(
                xlabel="eps (l-infinity, pixels in [0, 1])", ylabel="accuracy of the network (%)", title=self.title
            )
            axes.set_ylim(0, 102)
            axes.set_xlim(left=0)
            figure.legend(loc="outside lower center", ncols=min(len(self.accuracies), 3))
        return describe(figure, f"{self.title}: {self.sentence()}")

    def sentence(self) -> str:
        """At the largest radius."""
        last = ", ".join(f"{100 * values[-1]:.1f} % on those made on {k}" for k, values in self.accuracies.items())
        return f"at eps {self.radii[-1]:.3g} the network is correct on {last} ({self.images} images)."


@register("measure", "adversarialness", passes=lambda size: 36 * size.images, other=True)
def _measure(target: Target, *, images: int = 250) -> Adversarialness:
    """Accuracy on FGSM images of another network (LAT, table 2)."""
    model, x, y = target.first(images)
    return degree_of_adversarialness(model, {target.name: model, **target.others}, x, y, seed=target.seed)


def degree_of_adversarialness(
    model: nn.Module,
    makers: Mapping[str, nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    radii: Sequence[float] = RADII,
    attack: Pollute = fgsm,
    seed: int = 0,
    batch_size: int = 250,
) -> Adversarialness:
    """Accuracy of `model` on images that were made adversarial on other networks.

    Args:
        model: any classifier.
        makers: {name: network that images are made on}; the network itself may be one of them.
        x: images, shape (N, ...), pixels in [0, 1].
        y: labels, shape (N,).
        radii: pixel units.
        attack: how images are made; FGSM in the paper.
        seed: of the attack's random numbers.
        batch_size: images at a time; the result does not depend on it.

    Raises:
        ConfigError: there is no maker, or a radius cannot be meant.

    Reference: Sankaranarayanan et al. 2018 (LAT), table 2.

    >>> net = nn.Linear(4, 2)
    >>> found = degree_of_adversarialness(net, {"itself": net}, torch.rand(8, 4), torch.zeros(8, dtype=torch.int64))
    >>> len(found.accuracies["itself"])
    6
    """
    if not makers or not radii:
        raise ConfigError("nothing to evaluate; give at least one network that images are made on, and one radius")
    for radius in radii:
        check_radius("radii", radius)
    correct = torch.zeros(len(makers), len(radii), dtype=torch.int64)
    with ExitStack() as stack:
        network = stack.enter_context(examining(model, x, y))
        sources = [stack.enter_context(examining(maker, x, y)) for maker in makers.values()]
        for i, source in enumerate(sources):
            for images, labels, stream in batches(source, x, y, batch_size=batch_size, seed=seed):
                for k, radius in enumerate(radii):
                    made = attack(source, images, labels, radius, stream)
                    with torch.no_grad():
                        correct[i, k] += is_correct(network(place(network, made)), place(network, labels)).sum().cpu()
    shares = (correct.double() / len(x)).tolist()
    return Adversarialness(
        tuple(map(float, radii)), {name: tuple(row) for name, row in zip(makers, shares, strict=True)}, len(x)
    )
