"""What an attack is, and what the attacks share: gradients, starts, steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from typing import Any, ClassVar, Self, TypeAlias, final

import torch
from torch import Tensor, nn

from layerwise.core import norms
from layerwise.core.arguments import Named
from layerwise.core.ascent import Ascent, iterate, random_start
from layerwise.core.calling import logits_of
from layerwise.core.checks import check_fields, check_radius, format_radius
from layerwise.core.criteria import CrossEntropy
from layerwise.core.modes import frozen
from layerwise.core.random import Source, Stream
from layerwise.core.registry import name_of
from layerwise.core.threat import ThreatModel

Batch: TypeAlias = tuple[Tensor, Tensor, Source]
"""Images (B, C, H, W) in [0, 1], labels (B,), and the source of these rows' random numbers."""

GRADIENT, EVALUATED = 2, 1
"""Passes of a gradient, one forward and one backward, and of looking at what the network says to the images that were made."""

BLOCK = 128
"""Random starts are drawn for blocks of so many images, so that they depend on an image's number and not on the batch size."""


class Attack(Named, ABC):
    """What `evaluate` asks of an attack: which images of a data set it leaves correct.

    A subclass is a frozen dataclass, and `@register("attack", "pgd")` gives it its name.
    """

    numbers: ClassVar[tuple[str, ...]] = ()
    """The fields that follow the name on the command line, `pgd-50-10`."""
    resumable: ClassVar[bool] = True
    """Whether each batch is attacked by itself, so that an interrupted evaluation can go on at any batch."""

    def __post_init__(self) -> None:
        """Check what the fields' types say; an attack that has more to check calls this first."""
        check_fields(self)

    @property
    def name(self) -> str:
        """What it is called on the command line: its name in the registry, else its import path."""
        return name_of("attack", type(self))

    @property
    def in_threat_model(self) -> bool:
        """Whether it keeps to the threat model, and so counts for the worst case."""
        return True

    def passes(self, classes: int = 10) -> int:
        """Forward and backward passes that it makes for an image at most; images that are fooled early cost less.

        Args:
            classes: of the data set.
        """
        del classes
        return GRADIENT + EVALUATED

    @abstractmethod
    def outcomes(self, model: nn.Module, batches: Iterable[Batch], threat: ThreatModel) -> Iterator[Tensor]:
        """Attack batch after batch.

        Args:
            model: the network, unwrapped, in evaluation mode.
            batches: the data; may be gone through several times.
            threat: what is allowed.

        Yields:
            For each batch, which images are still correct, bool (B,).
        """

    def check(self, x: Tensor, threat: ThreatModel) -> None:
        """Complain before anything is attacked about what cannot work: a package that is not there, a norm or a shape.

        Args:
            x: an image or more, shape (B, ...).
            threat: what will be allowed.

        Raises:
            ConfigError: saying what to type instead.
        """
        del x, threat

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
        """What is correct on the images that it makes.

        Raises:
            ConfigError: the attack leaves the threat model.
        """
        allowed = threat if self.in_threat_model else ThreatModel("linf", 1.0)
        for x, y, source in batches:
            x_adv = self(model, x, y, threat, generator=source)
            allowed.check(x, x_adv, attack=str(self))
            with torch.no_grad():
                yield is_correct(bare(model)(x_adv), y)


class Around(InputAttack):
    """An attack around another one: what it does not say itself, the one inside says."""

    form: ClassVar[str]
    """How it is written, for messages."""
    prefixed: ClassVar[bool] = True
    """Whether a word stands before the inner attack, `bpda:MODULE:ATTACK`."""

    attack: InputAttack

    @classmethod
    @abstractmethod
    def read(cls, attack: InputAttack, word: str, *numbers: int) -> Self:
        """Make one of what is written: the inner attack, the word before it, the numbers behind the own name."""

    @property
    def in_threat_model(self) -> bool:
        """As the attack inside."""
        return self.attack.in_threat_model

    def passes(self, classes: int = 10) -> int:
        """As the attack inside."""
        return self.attack.passes(classes)

    def check(self, x: Tensor, threat: ThreatModel) -> None:
        """As the attack inside."""
        self.attack.check(x, threat)

    def resolved(self, threat: ThreatModel) -> Self:
        """With the attack inside resolved."""
        return replace(self, attack=self.attack.resolved(threat))  # type: ignore[type-var]


def is_correct(logits: Tensor, y: Tensor) -> Tensor:
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


def bare(model: nn.Module) -> nn.Module:
    """The network as it is, in one pass, where attacks see an average."""
    return model.network if isinstance(model, Averaged) else model


def random_state(device: torch.device) -> Tensor:
    """What a network's random numbers come from: it moves where some are drawn."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def loss_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """`raw_gradient` with zeros for the entries that are not finite: an attack stays where it is told nothing."""
    return _finite(raw_gradient(model, x, y))


def _finite(g: Tensor) -> Tensor:
    return g.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def raw_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """dL/dx of each image's own cross entropy, shape of x; the parameters are frozen meanwhile.

    It is zero where no gradient reaches the images (a step function in the network), which `layerwise.evaluation.checks` tells.
    """
    return gradient_and_logits(model, x, y)[0]


def gradient_and_logits(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """`raw_gradient`, and the logits of the same passes (their mean, for `Averaged`)."""
    network, passes = (model.network, model.passes) if isinstance(model, Averaged) else (model, 1)
    gradient: Tensor | None = None
    total: Tensor | None = None
    with frozen(network):
        for _ in range(passes):
            leaf = x.detach().requires_grad_()
            logits = logits_of(network(leaf))
            loss = CrossEntropy()(logits, y).sum()
            # Not a `Probe`: that is an error where the loss does not depend on the images, here a finding.
            (g,) = torch.autograd.grad(loss, leaf, allow_unused=True) if loss.requires_grad else (None,)
            gradient = _plus(gradient, torch.zeros_like(x) if g is None else g)
            total = _plus(total, logits.detach())
    assert gradient is not None
    assert total is not None
    return (gradient, total) if passes == 1 else (gradient / passes, total / passes)


def _plus(total: Tensor | None, value: Tensor) -> Tensor:
    return value if total is None else total + value


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
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    start: Tensor,
    steps: int,
    alpha: float,
    stop: bool = False,
    rule: Ascent | None = None,
) -> Tensor:
    """`layerwise.methods.pgd.iterate` on the loss of `model`.

    Args:
        model: the network.
        x: images, the centres of the balls.
        y: labels.
        threat: the ball.
        start: first iterates.
        steps: how many.
        alpha: step size.
        stop: an image stays at its first iterate that fools the network, and costs nothing from there on. Never for `Averaged`, or
            where the first pass draws random numbers: such a network is fooled by chance now and then, and the steps after that are
            what fools it for good.
        rule: makes an update of the gradient and the update before (momentum).
    """
    stop = stop and not isinstance(model, Averaged)
    rows = torch.arange(len(x), device=x.device)
    fooled = torch.zeros_like(rows, dtype=torch.bool)
    stopped = x.clone()
    update: Tensor | None = None

    def gradient(x_adv: Tensor, last: bool) -> Tensor:
        nonlocal rows, stop, update
        g = _finite(raw_gradient(model, x_adv, y)) if not stop else torch.zeros_like(x_adv)
        if stop and len(rows):
            before = random_state(x.device)
            here, logits = gradient_and_logits(model, x_adv[rows], y[rows])
            stop = torch.equal(before, random_state(x.device))
            correct = is_correct(logits, y[rows]) if stop else torch.ones_like(rows, dtype=torch.bool)
            gone, rows = rows[~correct], rows[correct]
            fooled[gone], stopped[gone] = True, x_adv[gone]
            g[rows] = _finite(here[correct])
        update = g if rule is None else rule(g, update)
        return update

    options: dict[str, Any] = {"steps": steps, "alpha": alpha, "eps": threat.eps, "norm": threat.norm}
    found = iterate(x, start, gradient=gradient, **options)
    return torch.where(norms.rows(fooled, x), stopped, found)
