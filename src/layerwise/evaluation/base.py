"""What an attack is, and what the attacks share: gradients, starts, steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any, ClassVar, Self, TypeAlias, final

import torch
from torch import Tensor, nn

from layerwise.evaluation.threat import ThreatModel
from layerwise.methods.pgd import iterate, random_start
from layerwise.probe import CrossEntropy, frozen
from layerwise.random import Source, Stream
from layerwise.units import check_radius, format_radius

Batch: TypeAlias = tuple[Tensor, Tensor, Source]
"""Images (B, C, H, W) in [0, 1], labels (B,), and the source of these rows' random numbers."""

BLOCK = 128
"""Random starts are drawn for blocks of so many images, so that they depend on an image's number and not on the batch size."""


class Attack(ABC):
    """What `evaluate` asks of an attack: which images of a data set stay right under it.

    A subclass is a frozen dataclass.
    """

    name: ClassVar[str]
    """What the attack is called on the command line."""
    numbers: ClassVar[tuple[str, ...]] = ()
    """The fields that follow the name there, `pgd-50-10`."""
    in_threat_model: ClassVar[bool] = True
    """Whether it keeps to the threat model, and so counts for the worst case."""

    @abstractmethod
    def outcomes(self, model: nn.Module, batches: Iterable[Batch], threat: ThreatModel) -> Iterator[Tensor]:
        """Attack batch after batch.

        Args:
            model: the network, unwrapped, in evaluation mode.
            batches: the data; may be gone through several times.
            threat: what is allowed.

        Yields:
            For each batch, which images are still right, bool (B,).
        """

    def resolved(self, threat: ThreatModel) -> Self:
        """The same attack with the defaults that depend on the threat model filled in."""
        del threat
        return self

    def __str__(self) -> str:
        """The name, its numbers, and every other field that is not the default; `parse_attack` reads it back."""
        values = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}  # type: ignore[arg-type]
        shown = list(self.numbers)
        while len(shown) > 1 and values[shown[-1]][0] == values[shown[-1]][1]:
            shown.pop()
        others = [f" {k}={_text(v)}" for k, (v, default) in values.items() if k not in self.numbers and v != default]
        return "-".join([self.name, *(str(values[k][0]) for k in shown)]) + "".join(others)


def _text(value: Any) -> str:
    return format_radius(value) if isinstance(value, float) else str(value)


class InputAttack(Attack):
    """An attack that perturbs the images."""

    @abstractmethod
    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """Find adversarial images.

        Args:
            model: the network, in the mode in which it is to be attacked.
            x: images, shape (B, ...), in [0, 1].
            y: labels, shape (B,).
            threat: what is allowed.
            generator: source of random numbers; with a `Stream`, row i draws what image `start + i` of the data set draws.

        Returns:
            x_adv of the shape of x, inside the ball and in [0, 1], detached.
        """

    def outcomes(self, model: nn.Module, batches: Iterable[Batch], threat: ThreatModel) -> Iterator[Tensor]:
        """See `Attack.outcomes`.

        Raises:
            ConfigError: the attack leaves the threat model.
        """
        for x, y, source in batches:
            x_adv = self(model, x, y, threat, generator=source)
            threat.check(x, x_adv, attack=str(self))
            with torch.no_grad():
                yield is_right(model(x_adv), y)


def is_right(logits: Tensor, y: Tensor) -> Tensor:
    """Which rows predict their label; a row with a number that is not finite predicts nothing."""
    return (logits.argmax(dim=1) == y) & logits.isfinite().all(dim=1)


@final
class Averaged(nn.Module):
    """A network with randomness as attacks see it: logits are means over several passes, `loss_gradient` averages gradients.

    Args:
        network: the network.
        passes: how many.
    """

    def __init__(self, network: nn.Module, passes: int) -> None:
        super().__init__()
        self.network, self.passes = network, passes

    def forward(self, x: Tensor) -> Tensor:
        """Mean logits, shape (B, C)."""
        return torch.stack([self.network(x) for _ in range(self.passes)]).mean(dim=0)


def loss_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """`raw_gradient` with zeros for the entries that are not finite: an attack stays where it is told nothing."""
    return raw_gradient(model, x, y).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def raw_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """dL/dx of each image's own cross entropy, shape of x; the parameters are frozen meanwhile.

    It is zero where no gradient reaches the images (a step function in the network), which `layerwise.evaluation.checks` tells.
    """
    network, passes = (model.network, model.passes) if isinstance(model, Averaged) else (model, 1)
    total = torch.zeros_like(x)
    with frozen(network):
        for _ in range(passes):
            leaf = x.detach().requires_grad_()
            loss = CrossEntropy()(network(leaf), y).sum()
            # Not a `Probe`: that is an error where the loss does not depend on the images, here a finding.
            if loss.requires_grad:
                (g,) = torch.autograd.grad(loss, leaf, allow_unused=True)
                total = total if g is None else total + g
    return total / passes


def starting_points(x: Tensor, threat: ThreatModel, source: Source, restart: int = 0) -> Tensor:
    """A point drawn uniformly from the ball around each image, clipped to [0, 1].

    With a `Stream`, the point depends on the seed, the image's number and the restart only (the price: up to two blocks are drawn
    in part for nothing).
    """
    if not isinstance(source, Stream):
        return random_start(x, threat.eps, threat.norm, source)
    parts, row = [], 0
    while row < len(x):
        block, offset = divmod(source.start + row, BLOCK)
        rows = x[row : row + BLOCK - offset]
        stream = Stream(source.seed, (restart << 32) | block, start=offset, total=BLOCK)
        parts.append(random_start(rows, threat.eps, threat.norm, stream))
        row += len(rows)
    return torch.cat(parts) if parts else x


def step_size(alpha: float | None, steps: int, threat: ThreatModel) -> float:
    """Alpha, by default eps / 4 (SLAT's 2/255 at 8/255), or eps / steps where fewer than four steps would not reach the sphere."""
    if alpha is None:
        return threat.eps / min(4, steps)
    if threat.norm == "linf":
        check_radius("alpha", alpha)
    return alpha


def ascend(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, start: Tensor, steps: int, alpha: float
) -> Tensor:
    """`layerwise.methods.pgd.iterate` on the loss of `model`."""
    return iterate(
        x,
        start,
        steps=steps,
        alpha=alpha,
        eps=threat.eps,
        norm=threat.norm,
        gradient=lambda x_adv, last: loss_gradient(model, x_adv, y),
    )
