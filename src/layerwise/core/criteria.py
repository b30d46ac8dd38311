"""Criteria: the loss of each example."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.core.registry import register
from layerwise.errors import ConfigError


class Criterion(ABC):
    """Each example's loss; subclass it for your own, or give a method any callable that `as_criterion` takes.

    Where every example has several losses, one a position (a token, a pixel, an output), its own loss is their mean.
    """

    @abstractmethod
    def __call__(self, output: Tensor, y: Tensor, /) -> Tensor:
        """Give the losses, shape (B,) or one for each position (B, ...), of what the network gives and what it should."""

    def mean(self, output: Tensor, y: Tensor, /) -> Tensor:
        """Their mean, which is descended."""
        return self(output, y).mean()

    def sum(self, output: Tensor, y: Tensor, /) -> Tensor:
        """The sum of the examples' losses, whose gradients a probe takes: rows times the mean."""
        losses = self(output, y)
        return losses.sum() if losses.ndim == 1 else losses.flatten(1).mean(1).sum()


@register("criterion")
@final
@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Criterion):
    """Cross entropy of each example, -sum_k q_k log p_k; of each position where logits are (B, C, ...) and labels (B, ...).

    Labels of -100 have no part in the loss.

    Args:
        label_smoothing: s in [0, 1]; the target is q = (1 - s) onehot(y) + s / C.

    >>> import torch
    >>> CrossEntropy()(torch.zeros(1, 2), torch.tensor([0]))
    tensor([0.6931])
    """

    label_smoothing: float = 0.0

    def __call__(self, output: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`."""
        return F.cross_entropy(output, y, reduction="none", label_smoothing=self.label_smoothing)

    def mean(self, output: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`; a kernel less in each direction, the same gradients (rounded otherwise if smoothed, so not then)."""
        if output.ndim > 2:
            return F.cross_entropy(output, y, label_smoothing=self.label_smoothing)
        return super().mean(output, y) if self.label_smoothing else F.cross_entropy(output, y)

    def sum(self, output: Tensor, y: Tensor, /) -> Tensor:
        """See `mean`."""
        if output.ndim > 2:
            return self.mean(output, y) * len(output)
        return super().sum(output, y) if self.label_smoothing else F.cross_entropy(output, y, reduction="sum")


@register("criterion")
@final
@dataclass(frozen=True, kw_only=True)
class TokenCrossEntropy(Criterion):
    """Cross entropy of each token, logits (B, L, C) and labels (B, L), as networks of transformers give them.

    The mean is over the batch's tokens, so long examples count for more.

    Args:
        ignore_index: the label of tokens that have no part in the loss.

    >>> import torch
    >>> TokenCrossEntropy()(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]))
    tensor([[1.3863, 0.0000]])
    """

    ignore_index: int = -100

    def __call__(self, output: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`."""
        return self._entropy(output, y, "none").reshape(y.shape)

    def mean(self, output: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`."""
        return self._entropy(output, y, "mean")

    def sum(self, output: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`."""
        return self.mean(output, y) * len(output)

    def _entropy(self, output: Tensor, y: Tensor, reduction: str) -> Tensor:
        # In float32, as transformers does: the log-sum over a vocabulary is worth it.
        logits = output.reshape(-1, output.shape[-1])
        logits = logits if logits.dtype.itemsize >= 4 else logits.float()
        return F.cross_entropy(logits, y.reshape(-1), reduction=reduction, ignore_index=self.ignore_index)


@register("criterion")
@final
@dataclass(frozen=True, kw_only=True)
class NextToken(Criterion):
    """Cross entropy of each next token, for language models: logits (B, L, V), and the tokens themselves (B, L) as labels.

    The logits at a position are those of the token after it; the mean is over the batch's tokens.

    Args:
        ignore_index: the label of tokens that have no part in the loss: padding, a prompt.

    >>> import torch
    >>> NextToken()(torch.zeros(1, 3, 4), torch.tensor([[0, 1, -100]]))
    tensor([[1.3863, 0.0000]])
    """

    ignore_index: int = -100

    def __call__(self, output: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`; L - 1 losses an example."""
        return self._each(output[:, :-1], y[:, 1:])

    def mean(self, output: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`."""
        return self._each.mean(output[:, :-1], y[:, 1:])

    def sum(self, output: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`."""
        return self._each.sum(output[:, :-1], y[:, 1:])

    @property
    def _each(self) -> TokenCrossEntropy:
        return TokenCrossEntropy(ignore_index=self.ignore_index)


@register("criterion")
@final
@dataclass(frozen=True, kw_only=True)
class AuxiliaryHeads(Criterion):
    """The loss of the logits, and a share of that of every other output of their shape: L(z) + w sum_h L(z_h).

    Networks with auxiliary heads (GoogLeNet, Inception, segmentation networks of torchvision) give them in training mode. Without this
    criterion the heads are run, and not trained.

    Args:
        weight: w; 0.3 in GoogLeNet, 0.4 in Inception v3, 0.5 in torchvision's segmentation.
        criterion: L.

    >>> import torch
    >>> from layerwise.core.calling import logits_of
    >>> AuxiliaryHeads(weight=0.5)(logits_of((torch.zeros(1, 2), torch.zeros(1, 2))), torch.tensor([0]))
    tensor([1.0397])
    """

    weight: float = 0.3
    criterion: Criterion = CrossEntropy()

    def __post_init__(self) -> None:
        """Take any loss."""
        object.__setattr__(self, "criterion", as_criterion(self.criterion))

    def __call__(self, output: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`."""
        return self._of(self.criterion, output, y)

    def mean(self, output: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`."""
        return self._of(self.criterion.mean, output, y)

    def sum(self, output: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`."""
        return self._of(self.criterion.sum, output, y)

    def _of(self, loss: Callable[[Tensor, Tensor], Tensor], output: Tensor, y: Tensor) -> Tensor:
        found = loss(output, y)
        for head in getattr(output, "auxiliary", ()):
            found = found + self.weight * loss(head, y)
        return found


@final
@dataclass(frozen=True)
class FromFunction(Criterion):
    """A function of (output, y) as a criterion.

    Args:
        function: gives a loss for each row or position, by itself or with `reduction="none"`, as torch's own do; then
            `reduction="mean"` gives the mean that is descended, class weights and ignored labels included.
    """

    function: Callable[..., Any]

    def __call__(self, output: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`.

        Raises:
            ConfigError: the function gives something else than losses.
        """
        losses = reduced(self.function, "none")(output, y)
        if not isinstance(losses, Tensor) or losses.ndim == 0 or len(losses) != len(output):
            shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ConfigError(
                f"the criterion gives {shape} for {len(output)} examples; it has to give a loss for each of them, so leave out the mean"
            )
        return losses

    def mean(self, output: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`."""
        if not reduces(self.function):
            return super().mean(output, y)
        mean: Tensor = reduced(self.function, "mean")(output, y)
        return mean

    def sum(self, output: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`."""
        return self.mean(output, y) * len(output) if reduces(self.function) else super().sum(output, y)


def reduces(function: Callable[..., Any]) -> bool:
    """Whether a loss says by `reduction` what becomes of each example's, as torch's modules and functions do."""
    if isinstance(function, nn.Module):
        return hasattr(function, "reduction")
    try:
        return "reduction" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return False


def reduced(function: Callable[..., Any], reduction: str) -> Callable[..., Any]:
    """The same loss with another reduction, where it has one."""
    if not reduces(function):
        return function
    if not isinstance(function, nn.Module):
        return partial(function, reduction=reduction)
    changed = copy.copy(function)
    changed.reduction = reduction  # type: ignore[assignment]
    return changed


def as_criterion(value: object) -> Criterion:
    """What a user gives for a criterion as one.

    Args:
        value: a `Criterion`; a loss of torch, module or function; any callable of (output, y) that gives a loss for each row or position.

    >>> as_criterion(nn.CrossEntropyLoss(label_smoothing=0.1))
    CrossEntropy(label_smoothing=0.1)

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(value, Criterion):
        return value
    if isinstance(value, type) or not callable(value):
        found = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        hint = f"{value.__name__}()" if isinstance(value, type) else "CrossEntropy(), or a function of (output, y)"
        raise ConfigError(f"criterion={found} gives no losses; type {hint}")
    if isinstance(value, nn.CrossEntropyLoss) and value.weight is None and value.ignore_index == -100:
        return CrossEntropy(label_smoothing=value.label_smoothing)
    if value is F.cross_entropy:
        return CrossEntropy()
    return FromFunction(value)


def class_dim(criterion: Criterion, output: Tensor) -> int:
    """Which dimension of a network's output holds the classes: the last for tokens, else the second.

    >>> import torch
    >>> class_dim(NextToken(), torch.zeros(2, 7, 5)), class_dim(CrossEntropy(), torch.zeros(2, 5))
    (2, 1)
    """
    return output.ndim - 1 if isinstance(criterion, NextToken | TokenCrossEntropy) else 1


def class_logits(output: Tensor, y: object) -> bool:
    """Whether outputs are logits (B, C) of at least two classes and y labels (B,): what methods of class probabilities need.

    >>> import torch
    >>> class_logits(torch.zeros(2, 3), torch.tensor([0, 2])), class_logits(torch.zeros(2, 1), torch.zeros(2, 1))
    (True, False)
    """
    labels = isinstance(y, Tensor) and y.ndim == 1 and not y.is_floating_point()
    return labels and output.ndim == 2 and output.shape[1] >= 2
