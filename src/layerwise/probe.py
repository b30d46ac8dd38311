"""Probes: passes that find perturbations, with gradients at the sites (and the input) only, none for the parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.batchnorm import BatchNormMode, batch_norm
from layerwise.sites import Constraint, Gradients, Pass, Sites
from layerwise.tape import remembered
from layerwise.tracing import Site


class Criterion(ABC):
    """Each example's loss; subclass it for your own."""

    @abstractmethod
    def __call__(self, logits: Tensor, y: Tensor, /) -> Tensor:
        """Give the losses, shape (B,), of logits (B, C) and labels (B,)."""


class Backward(Protocol):
    """The engine: `torch.Tensor.backward`, `fabric.backward` or `accelerator.backward`."""

    def __call__(self, loss: Tensor, /, *, inputs: Any = None) -> None:
        """Back-propagate `loss`; with `inputs`, accumulate gradients in these leaves only."""
        ...


AUTOGRAD: Backward = torch.Tensor.backward
"""The plain engine."""


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
        with frozen(model), batch_norm(model, self.batch_norm), recorder as active:
            leaves = [x] * wrt_input + (active.leaves if active is not None else [])
            loss = (self.criterion or criterion)(model(x), y).sum()
            # A loss that no leaf reaches has no graph; the sites then say which of them was missed or is dead.
            if loss.requires_grad or active is None:
                backward(loss, inputs=leaves)
        gradient = x.grad if x.grad is not None else x.detach().new_zeros(()).expand_as(x)
        return gradient.detach(), active.gradients() if active is not None else {}


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Parameters without gradient for the duration, each restored to its own flag.

    A compiled backward ignores `inputs=` and would compute the weights' gradients; eager saves a quarter of the pass.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
