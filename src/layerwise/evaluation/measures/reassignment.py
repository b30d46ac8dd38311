"""What one layer's weights are worth: each in turn is replaced by another model's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from layerwise.attacks.base import is_correct
from layerwise.core.registry import register
from layerwise.core.sites import unwrap
from layerwise.core.tracing import trace
from layerwise.errors import ConfigError, did_you_mean
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import Look, Panels, PerSite
from layerwise.evaluation.measures.base import batches, examining, place

Measure: TypeAlias = Callable[[nn.Module, Tensor, Tensor], float]
"""`measure(network, x, y)` gives the accuracy to be compared, in [0, 1]: clean, under an attack, under a corruption."""


@final
@dataclass(frozen=True)
class Reassignment(PerSite):
    """Accuracy with one layer's weights replaced.

    Args:
        sites: the layers, in the order of the forward pass.
        accuracies: with each of them replaced, in [0, 1].
        original: accuracy of the model as it is.
        other: accuracy of the model that the weights come from.
        images: how many the accuracies are over.
    """

    title: ClassVar[str] = "Layer weight re-assignment"
    caption: ClassVar[str] = "The further to the left, the more the layer's own weights are worth."
    logarithmic: ClassVar[bool] = False

    sites: tuple[str, ...]
    accuracies: tuple[float, ...]
    original: float
    other: float
    images: int

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(100 * accuracy for accuracy in self.accuracies)

    @property
    def quantity(self) -> str:
        return "accuracy (%) with this layer replaced\n(thin line: none replaced)"

    def draw(self, panels: Panels, look: Look) -> None:
        """A value a layer, and the accuracy without replacement."""
        super().draw(panels, look)
        panels[0].axvline(100 * self.original, color=look["color"], linestyle=look["linestyle"], linewidth=0.8)

    def sentence(self) -> str:
        """The layer that matters most."""
        worst, layer = min(zip(self.accuracies, self.sites, strict=True))
        return (
            f"accuracy {100 * self.original:.1f} % falls to {100 * worst:.1f} % when {layer} is replaced, the most of {len(self.sites)} "
            f"layers; the other model has {100 * self.other:.1f} % ({self.images} images)."
        )


@register("measure", "reassignment", passes=lambda size: 25 * size.images, other=True)
def _measure(target: Target, *, images: int = 250) -> Reassignment:
    """Accuracy with one layer's weights replaced by another network's (ANP, figure 2)."""
    (other,) = target.others.values()
    model, x, y = target.first(images)
    return layer_reassignment(model, other, x, y)


def layer_reassignment(
    model: nn.Module,
    other: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    measure: Measure | None = None,
    layers: Sequence[str] | None = None,
    batch_size: int = 250,
) -> Reassignment:
    """Accuracy of `model` with one layer's weights and batch-norm statistics replaced by those of `other`, for each layer.

    Args:
        model: any classifier, for example one trained with ANP.
        other: one of the same architecture, for example trained without; unchanged.
        x: images, shape (N, ...), pixels in [0, 1].
        y: labels, shape (N,).
        measure: the accuracy to compare, called with the network in evaluation mode; None is clean accuracy.
        layers: module names, each with all that is below it; None is every convolution and linear layer, with what follows it.
        batch_size: images at a time, for clean accuracy.

    Raises:
        ConfigError: the architectures differ, or a layer does not exist.

    Reference: Liu et al. 2021 (ANP), figure 2b; whether the statistics move too is our choice: weights without them are of no use.

    >>> one, two = nn.Linear(4, 2), nn.Linear(4, 2)
    >>> found = layer_reassignment(one, two, torch.rand(8, 4), torch.zeros(8, dtype=torch.int64))
    >>> found.accuracies == (found.other,)
    True
    """
    accuracy = measure or (lambda network, images, labels: _accuracy(network, images, labels, batch_size))
    with examining(model, x, y) as network, examining(other, x, y) as source:
        _check_alike(network, source)
        # All rows stay where they are, so that a measure can count on getting every image at once.
        groups = layer_tensors(network, place(network, x[:2])) if layers is None else _below(network, layers)
        original = accuracy(network, x, y)
        accuracies = []
        for names in groups.values():
            with reassigned(network, source, names):
                accuracies.append(accuracy(network, x, y))
        return Reassignment(tuple(groups), tuple(accuracies), original, accuracy(source, x, y), len(x))


def _accuracy(network: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> float:
    correct = 0
    with torch.no_grad():
        for images, labels, _ in batches(network, x, y, batch_size=batch_size):
            correct += int(is_correct(network(images), labels).sum())
    return correct / len(x)


@contextmanager
def reassigned(model: nn.Module, other: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """`model` with the parameters and buffers of these names overwritten by those of `other`, for the duration."""
    mine, theirs = unwrap(model).state_dict(), unwrap(other).state_dict()
    kept = {name: mine[name].clone() for name in names}
    try:
        with torch.no_grad():
            for name in names:
                mine[name].copy_(theirs[name])
        yield
    finally:
        with torch.no_grad():
            for name in names:
                mine[name].copy_(kept[name])


def layer_tensors(model: nn.Module, example: Tensor) -> dict[str, list[str]]:
    """{layer: names of its parameters and buffers}, a layer for every convolution and linear layer, in the order of the calls.

    A batch norm, and any other module with tensors of its own, belongs to the last such layer called before it ends (to the first
    layer if there is none before): the statistics of a batch norm are those of what that layer put out, also where the batch norm is
    the first part of the next block.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    >>> {layer: len(names) for layer, names in layer_tensors(net, torch.rand(2, 1, 1, 1)).items()}
    {'0': 7, '3': 2}
    """
    last: dict[str, str] = {}
    layers: list[str] = []
    for candidate in trace(model, example):
        if candidate.site.side == "output":
            name = candidate.site.module
            if isinstance(candidate.module, _ConvNd | nn.Linear) and name not in layers:
                layers.append(name)
            last.setdefault(name, layers[-1] if layers else "")
    if not layers:
        raise ConfigError(
            "the network has no convolution and no linear layer; name its parts, for example layers=['block1']"
        )
    groups: dict[str, list[str]] = {layer: [] for layer in layers}
    for name in model.state_dict():
        owner = name.rpartition(".")[0]
        # A module that is never called (a container that uses its own parameters elsewhere) goes with the one around it.
        while owner not in last:
            owner = owner.rpartition(".")[0]
        groups[last[owner] or layers[0]].append(name)
    return {layer or "model": names for layer, names in groups.items()}


def _below(network: nn.Module, layers: Sequence[str]) -> dict[str, list[str]]:
    names = list(network.state_dict())
    groups = {layer: [name for name in names if name.startswith(layer + ".")] for layer in layers}
    if empty := [layer for layer, found in groups.items() if not found]:
        known = [name for name, module in network.named_modules() if name and module.state_dict()]
        raise ConfigError(f"the network has no layer {empty[0]!r} with weights; {did_you_mean(empty[0], known)}")
    return groups


def _check_alike(network: nn.Module, other: nn.Module) -> None:
    mine, theirs = ({k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (network, other))
    if mine != theirs:
        name = next(k for k in {**mine, **theirs} if mine.get(k) != theirs.get(k))
        raise ConfigError(
            f"the two networks differ at '{name}': {mine.get(name, 'absent')} and {theirs.get(name, 'absent')}; "
            "weights can be exchanged between networks of the same architecture"
        )
