"""The driver: whatever a method yields for a batch is back-propagated and stepped on here, in every loop.

A method is a generator of losses; how it has to be driven is a rule with corners: a `Partial` is no step, micro-batches advance in
lockstep, what a generator left open has to be closed. `step` does it for a loop of one's own, `drive` for one that has more to do.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, final

import torch
from torch import Tensor, nn

from layerwise.core.arguments import named
from layerwise.core.calling import Inputs, parts_of, rows, take
from layerwise.core.checks import of_kind
from layerwise.core.random import Source, repeatable
from layerwise.core.shards import local
from layerwise.errors import ConfigError, LayerwiseError


@dataclass(frozen=True)
class Partial:
    """A loss that is back-propagated only: its gradients add up until a plain loss is yielded and stepped on."""

    loss: Tensor


Losses: TypeAlias = Generator[Tensor | Partial, None, None]
"""What a mini-batch has to be descended on, one after the other."""


class Backward(Protocol):
    """The engine: `torch.Tensor.backward`, `fabric.backward` or `accelerator.backward`."""

    def __call__(self, loss: Tensor, /, *, inputs: Any = None) -> None:
        """Back-propagate `loss`; with `inputs`, accumulate gradients in these leaves only."""
        ...


AUTOGRAD: Backward = torch.Tensor.backward
"""The plain engine."""


@dataclass(frozen=True)
class Exact:
    """An engine that is known to back-propagate a loss as it is, undivided and unscaled: probes need not find out.

    Args:
        backward: the engine.
    """

    backward: Backward

    def __call__(self, loss: Tensor, /, *, inputs: Any = None) -> None:
        """Back-propagate."""
        self.backward(loss, inputs=inputs)


@dataclass(frozen=True)
class Step:
    """What one mini-batch is descended with, besides network and data.

    Args:
        backward: the engine.
        generator: where random numbers come from.
    """

    backward: Backward = AUTOGRAD
    generator: Source = None


PLAIN = Step()
"""Autograd, and PyTorch's own random numbers."""


class Descends(Protocol):
    """A training method, as far as a driver knows it."""

    def losses(
        self, model: nn.Module, x: Any, y: Any, *, backward: Backward = AUTOGRAD, generator: Source = None
    ) -> Losses:
        """What has to be descended for one mini-batch."""
        ...


class OptimizerLike(Protocol):
    """An optimiser of torch, or one that an engine has wrapped."""

    param_groups: list[dict[str, Any]]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        ...

    def step(self) -> Any:
        """Move the weights."""
        ...


class Scaler(Protocol):
    """`torch.amp.GradScaler`."""

    def scale(self, outputs: Tensor) -> Tensor:
        """Multiply a loss."""
        ...

    def unscale_(self, optimizer: Any) -> None:
        """Divide the gradients."""
        ...

    def step(self, optimizer: Any) -> Any:
        """Step, unless a gradient is not finite."""
        ...

    def update(self) -> None:
        """Choose the next factor."""
        ...


@dataclass(frozen=True)
class Part:
    """A micro-batch.

    Args:
        x: its examples.
        y: their labels, or what else the criterion takes.
        source: its random numbers.
        share: what its mean loss counts for in the batch's.
    """

    x: Any
    y: Any
    source: Source
    share: float


def cut(x: Inputs, y: Any, source: Source, count: int, share: Callable[[int], float]) -> list[Part]:
    """A batch in micro-batches of contiguous rows.

    Args:
        x: the batch.
        y: its labels.
        source: its random numbers; several micro-batches take a `Stream`, whose rows of noise they share out.
        count: how many, no more than there are rows.
        share: what so many rows count for.
    """
    size = rows(x)
    if count == 1:
        return [Part(x, y, source, share(size))]
    stream = repeatable(source)
    if stream.total is None:
        stream = replace(stream, total=size, own_total=size)
    return [
        Part(
            take(x, chosen),
            take(y, chosen),
            replace(stream, start=stream.start + chosen.start),
            share(chosen.stop - chosen.start),
        )
        for chosen in parts_of(size, count)
    ]


@named
def step(
    method: Descends,
    model: nn.Module,
    x: Inputs,
    y: Any,
    optimizer: OptimizerLike,
    *,
    backward: Backward | None = None,
    scaler: Scaler | None = None,
    clip_norm: float | None = None,
    parts: int = 1,
    generator: Source = None,
) -> Tensor:
    """Train on one batch: all that the method wants to have descended, with as many steps of the optimiser as it takes.

    Args:
        method: what to train with.
        model: the network in training mode, wrapped or not.
        x: the batch; images (B, C, H, W) in [0, 1], or what else the network takes.
        y: labels (B,), or what else the criterion takes.
        optimizer: of the network's parameters; gradients that are there before are dropped.
        backward: `fabric.backward` or `accelerator.backward`; None is autograd's.
        scaler: scales the losses that are descended, not those of probes.
        clip_norm: largest l2 norm of the gradient; None does not clip.
        parts: micro-batches that the batch is cut into; the result is the whole batch's, batch norm excepted.
        generator: source of random numbers; None is PyTorch's own.

    Returns:
        The mean of the losses, detached, on the network's device: reading it waits for the device, nothing else here does.

    Raises:
        LayerwiseError: the method breaks the rules of its losses.

    >>> from layerwise.methods import FGSM
    >>> torch.manual_seed(0).initial_seed()
    0
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> x, y = torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    >>> losses = [step(FGSM(eps=0.1), net, x, y, optimizer).item() for _ in range(20)]
    >>> losses[-1] < losses[0]
    True
    """
    of_kind("the method", method, "losses", example="layerwise.SLAT()")
    of_kind("the optimizer", optimizer, "zero_grad", example="torch.optim.SGD(model.parameters(), lr=0.1)")
    engine = backward or AUTOGRAD
    size = rows(x)
    if not size:
        raise ConfigError("the batch is empty")
    _check_moves(optimizer, model)
    micro = cut(x, y, generator, max(1, min(parts, size)), lambda count: count / size)
    sum_of: list[Tensor] = []

    def note(loss: Tensor, part: Part) -> None:
        sum_of.append(loss.detach() if part.share == 1 else loss.detach() * part.share)

    def descend(loss: Tensor) -> None:
        engine(loss if scaler is None else scaler.scale(loss))

    def move() -> None:
        _clip(optimizer, scaler, clip_norm)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()

    def alone(later: bool) -> AbstractContextManager[Any]:
        # DDP would reduce the gradients of every micro-batch, where those of the last one are the sum.
        silent = getattr(model, "no_sync", None) if later else None
        return nullcontext() if silent is None else silent()

    optimizer.zero_grad()
    drive(method, model, micro, step=move, backward=engine, descend=descend, seen=note, within=alone)
    rounds = len(sum_of) // len(micro)
    return sum_of[0] if len(sum_of) == 1 else torch.stack(sum_of).sum() / rounds


def _check_moves(optimizer: OptimizerLike, model: nn.Module) -> None:
    """Complain about an optimiser that moves nothing of the network."""
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in moved for p in model.parameters()):
        raise ConfigError(
            "the optimizer moves none of the network's weights, but those of another (or of a copy); make it of these: "
            "torch.optim.SGD(model.parameters(), lr=0.1)"
        )


def _clip(optimizer: OptimizerLike, scaler: Scaler | None, limit: float | None) -> None:
    if limit is None:
        return
    if scaler is not None:
        scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], limit)


def drive(
    method: Descends,
    model: nn.Module,
    parts: Sequence[Part],
    *,
    step: Callable[[], None],
    backward: Backward = AUTOGRAD,
    descend: Callable[[Tensor], None] | None = None,
    seen: Callable[[Tensor, Part], None] | None = None,
    within: Callable[[bool], AbstractContextManager[Any]] | None = None,
    settled: Callable[[], None] | None = None,
) -> None:
    """Drive a method's generators, one a micro-batch, to their end in lockstep; a round of plain losses ends with a step.

    Args:
        method: what to train with.
        model: the network in training mode, wrapped or not.
        parts: the micro-batches.
        step: clips, steps, and drops the gradients.
        backward: the engine.
        descend: back-propagates what the method yields; None is the engine.
        seen: is shown every loss before it is back-propagated, and its micro-batch.
        within: a context for each advance and its backward pass, told whether more micro-batches follow.
        settled: called when the generators have gone on after a step: what a method then does to the weights belongs to them
            (Parseval's retraction, AWP's way back).

    Raises:
        LayerwiseError: the micro-batches' losses differ in kind, or end with a `Partial`.
    """
    sources = [method.losses(model, p.x, p.y, backward=backward, generator=p.source) for p in parts]
    pending = stepped = False
    try:
        while True:
            kinds = set()
            for index, (part, source) in enumerate(zip(parts, sources, strict=True)):
                with nullcontext() if within is None else within(index + 1 < len(parts)):
                    # Backward before the next generator moves: a recomputation in it has to find this one's noise.
                    kinds.add(_advance(source, part, descend or backward, seen))
            if len(kinds) > 1:
                raise LayerwiseError(f"{type(method).__name__}.losses yields differently for the parts of one batch")
            if stepped and settled is not None:
                settled()
            (kind,) = kinds
            if kind is None:
                break
            pending, stepped = kind is Partial, kind is not Partial
            if stepped:
                step()
    finally:
        for source in sources:
            source.close()
    if pending:
        raise LayerwiseError(f"{type(method).__name__}.losses ends with a Partial; end with a loss to step on")


@final
class Pace:
    """Whether the weights move after the losses of a method that counts on it, in a loop that is not ours.

    A few entries of every weight are compared: `Tensor._version` stays as it is under fused optimisers. Weights that stand still once are
    no proof (a rate of 0 in a warm-up, a step that a scaler skips); gradients that nobody has dropped from one loss to the next are one.

    Args:
        network: whose weights.
    """

    ENOUGH = 20
    """Losses without a step that are a proof by themselves."""

    def __init__(self, network: nn.Module) -> None:
        self._weights = [p for p in network.parameters() if p.requires_grad]
        self._looks = 0
        self._entries: list[Tensor] = []
        self._gradients: list[Tensor | None] = []

    def begin(self) -> None:
        """A loss is handed out."""
        self._entries = [entries.clone() for entries in map(_few, self._weights)]

    def stands_still(self) -> bool | None:
        """After the caller's turn: whether no weight moves while gradients are there; None as long as that is not known."""
        if not all(map(torch.equal, self._entries, map(_few, self._weights))):
            return False
        before, self._gradients = self._gradients, [p.grad for p in self._weights]
        self._looks += 1
        kept = [a is b for a, b in zip(before, self._gradients, strict=False) if b is not None]
        return True if kept and (all(kept) or self._looks == self.ENOUGH) else None

    def __reduce__(self) -> tuple[type[Pace], tuple[nn.Module]]:
        """Watch nothing, where a method is copied or sent to another process."""
        return Pace, (nn.Module(),)


def _few(weight: Tensor) -> Tensor:
    return local(weight).detach().reshape(-1)[:8]


def _advance(
    source: Losses,
    part: Part,
    descend: Callable[[Tensor], None],
    seen: Callable[[Tensor, Part], None] | None,
) -> type | None:
    """Back-propagate the next loss of a micro-batch; gives its kind, None at the end."""
    item = next(source, None)
    if item is None:
        return None
    loss = item.loss if isinstance(item, Partial) else item
    if seen is not None:
        seen(loss, part)
    descend(loss if part.share == 1 else loss * part.share)
    return Partial if isinstance(item, Partial) else Tensor
