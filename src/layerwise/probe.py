"""Probes: passes that find perturbations, with gradients at the sites (and the input) only, none for the parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.batchnorm import BatchNormMode, all_modules, batch_norm
from layerwise.sites import Constraint, Gradients, Pass, Sites
from layerwise.tape import remembered
from layerwise.tracing import Site


class Criterion(ABC):
    """Each example's loss; subclass it for your own."""

    @abstractmethod
    def __call__(self, logits: Tensor, y: Tensor, /) -> Tensor:
        """Give the losses, shape (B,), of logits (B, C) and labels (B,)."""

    def mean(self, logits: Tensor, y: Tensor, /) -> Tensor:
        """Their mean, which is descended."""
        return self(logits, y).mean()

    def sum(self, logits: Tensor, y: Tensor, /) -> Tensor:
        """Their sum, whose gradients a probe takes."""
        return self(logits, y).sum()


class Backward(Protocol):
    """The engine: `torch.Tensor.backward`, `fabric.backward` or `accelerator.backward`."""

    def __call__(self, loss: Tensor, /, *, inputs: Any = None) -> None:
        """Back-propagate `loss`; with `inputs`, accumulate gradients in these leaves only."""
        ...


AUTOGRAD: Backward = torch.Tensor.backward
"""The plain engine."""


@final
@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Criterion):
    """Cross entropy of each example, -sum_k q_k log p_k.

    Args:
        label_smoothing: s in [0, 1]; the target is q = (1 - s) onehot(y) + s / C.

    >>> CrossEntropy()(torch.zeros(1, 2), torch.tensor([0]))
    tensor([0.6931])
    """

    label_smoothing: float = 0.0

    def __call__(self, logits: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`."""
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=self.label_smoothing)

    def mean(self, logits: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`; a kernel less in each direction, the same gradients (rounded otherwise if smoothed, so not then)."""
        return super().mean(logits, y) if self.label_smoothing else F.cross_entropy(logits, y)

    def sum(self, logits: Tensor, y: Tensor, /) -> Tensor:
        """See `mean`."""
        return super().sum(logits, y) if self.label_smoothing else F.cross_entropy(logits, y, reduction="sum")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How a probe is made.

    Args:
        batch_norm: what batch norm does meanwhile, see `layerwise.batchnorm`; the papers do not say, the default leaves no trace.
        criterion: another loss than the descent's; None is the same.
    """

    batch_norm: BatchNormMode = "batch"
    criterion: Criterion | None = None

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        criterion: Criterion,
        sites: Sites | None = None,
        noise: Mapping[Site, Tensor] | None = None,
        constraint: Constraint | None = None,
        wrt_input: bool = False,
        backward: Backward = AUTOGRAD,
    ) -> tuple[Tensor, Gradients]:
        """One forward and one backward to the activations.

        Args:
            model: the network, wrapped or not.
            x: inputs, shape (B, ...).
            y: what the criterion takes beside the logits, usually labels (B,).
            criterion: each example's loss, unless the probe has its own.
            sites: where to record; None records nowhere.
            noise: perturbations of the pass, {site: r}.
            constraint: see `layerwise.sites.Constraint`.
            wrt_input: also give dL/dx.
            backward: the engine.

        Returns:
            dL/dx of shape x (zeros without memory if not asked for) and {site: dL/dz}, of the sum of the examples' losses.
        """

        def find() -> tuple[Tensor, Gradients]:
            recorder = sites.record(x, noise, constraint=constraint) if sites is not None else nullcontext()
            return self._pass(model, x, y, criterion, recorder, wrt_input, backward)

        return remembered(find)

    def _pass(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        criterion: Criterion,
        recorder: Pass | nullcontext[None],
        wrt_input: bool,
        backward: Backward,
    ) -> tuple[Tensor, Gradients]:
        x = x.detach().requires_grad_(wrt_input)
        with self.around(model), recorder as active:
            leaves = [x] * wrt_input + (active.leaves if active is not None else [])
            loss = (self.criterion or criterion).sum(model(x), y)
            # A loss that no leaf reaches has no graph; the sites then say which of them was missed or is dead.
            if loss.requires_grad or active is None:
                backward(loss, inputs=leaves)
        gradient = x.grad if x.grad is not None else x.detach().new_zeros(()).expand_as(x)
        return gradient.detach(), active.gradients() if active is not None else {}

    @contextmanager
    def around(self, model: nn.Module) -> Iterator[None]:
        """Parameters frozen and batch norm as this probe has it, once for all of its passes inside."""
        if (key := (model, self.batch_norm)) == _around.get():
            yield
            return
        with frozen(model), batch_norm(model, self.batch_norm):
            token = _around.set(key)
            try:
                yield
            finally:
                _around.reset(token)


_around: ContextVar[tuple[nn.Module, BatchNormMode] | None] = ContextVar("layerwise_around", default=None)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Parameters without gradient for the duration, each restored to its own flag.

    A compiled backward ignores `inputs=` and would compute the weights' gradients; eager saves a quarter of the pass.
    """
    # A quarter of the time of `model.parameters()`, which names each of them.
    every = [p for module in all_modules(model) for p in module._parameters.values()]
    trainable = [p for p in every if p is not None and p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
