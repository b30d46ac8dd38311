"""What a trainer is given: losses to step on, losses to back-propagate only, and what a method needs besides the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from layerwise.core.random import Source


@dataclass(frozen=True)
class Partial:
    """A loss that is back-propagated only: its gradients add up until a plain loss is yielded and stepped on."""

    loss: Tensor


class Backward(Protocol):
    """The engine: `torch.Tensor.backward`, `fabric.backward` or `accelerator.backward`."""

    def __call__(self, loss: Tensor, /, *, inputs: Any = None) -> None:
        """Back-propagate `loss`; with `inputs`, accumulate gradients in these leaves only."""
        ...


AUTOGRAD: Backward = torch.Tensor.backward
"""The plain engine."""


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
