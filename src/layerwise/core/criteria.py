"""Criteria: the loss of each example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch.nn.functional as F
from torch import Tensor

from layerwise.core.registry import register


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


@register("criterion")
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
