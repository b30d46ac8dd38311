"""Optimisers as settings: what to build once the parameters are on their device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layerwise.core.arguments import Named
from layerwise.core.checks import NonNegative, check_fields
from layerwise.core.registry import register
from layerwise.errors import ConfigError

FUSED = ("cpu", "cuda", "mps")
"""Devices that have fused kernels: one launch a step, and the only ones that take a tensor rate inside a captured step."""


class Optimizer(Named, ABC):
    """An optimiser and its peak learning rate; a subclass is a frozen dataclass."""

    lr: float

    def __post_init__(self) -> None:
        """Check the rates."""
        check_fields(self)

    @abstractmethod
    def build(self, params: Iterable[nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
        """Make it.

        Args:
            params: the network's parameters; those without gradient are left out.
            device: where they live.

        Returns:
            The optimiser; its rate is a 0-dim tensor in each of `param_groups`, to be filled in place.

        Raises:
            ConfigError: no parameter is trainable.
        """


def _options(lr: float, device: torch.device) -> dict[str, Any]:
    # CUDA's kernels read the rate as float32; float64 elsewhere, so that double-precision runs get it unrounded.
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    rate = torch.tensor(lr, dtype=dtype, device=device)
    return {"lr": rate, "fused": True} if device.type in FUSED else {"lr": rate, "foreach": False}


def _groups(params: Iterable[nn.Parameter], decay: float, everywhere: bool) -> list[dict[str, Any]]:
    trainable = [p for p in params if p.requires_grad]
    if not trainable:
        raise ConfigError("the network has no trainable parameter; set requires_grad_(True) on those to train")
    if everywhere:
        return [{"params": trainable, "weight_decay": decay}]
    split = {decay: [p for p in trainable if p.ndim > 1], 0.0: [p for p in trainable if p.ndim <= 1]}
    return [{"params": chosen, "weight_decay": share} for share, chosen in split.items() if chosen]


@register("optimizer")
@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum; the defaults are the papers' for CIFAR-10.

    Args:
        lr: peak rate.
        momentum: in [0, 1).
        weight_decay: l2 penalty.
        nesterov: Nesterov's momentum.
        decay_norms: weight decay on batch norms and biases too, as the papers have it.

    >>> net = nn.Linear(2, 2)
    >>> SGD(lr=0.1).build(net.parameters(), torch.device("cpu")).param_groups[0]["momentum"]
    0.9
    """

    lr: NonNegative = 0.2
    momentum: NonNegative = 0.9
    weight_decay: NonNegative = 5e-4
    nesterov: bool = False
    decay_norms: bool = True

    def __post_init__(self) -> None:
        """Check the rates."""
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise ConfigError("nesterov=True needs momentum above 0; type momentum=0.9")

    def build(self, params: Iterable[nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
        """See `Optimizer.build`."""
        groups = _groups(params, self.weight_decay, self.decay_norms)
        made = torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.nesterov, **_options(self.lr, device))
        if self.momentum:
            made.register_step_post_hook(_complete_momentum)
        return made


def _complete_momentum(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Momentum of 0 for weights that have had no gradient yet: torch's fused SGD fails where some have none and some have."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)


@register("optimizer")
@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam, with an l2 penalty inside the gradient.

    Args:
        lr: peak rate.
        betas: decays of the two moments.
        weight_decay: l2 penalty.
        decay_norms: weight decay on batch norms and biases too.
    """

    lr: NonNegative = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    decay_norms: bool = True

    def build(self, params: Iterable[nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
        """See `Optimizer.build`."""
        groups = _groups(params, self.weight_decay, self.decay_norms)
        return torch.optim.Adam(groups, betas=self.betas, **_options(self.lr, device))


@register("optimizer")
@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    Args:
        lr: peak rate.
        betas: decays of the two moments.
        weight_decay: share of a weight taken away in a step, times the rate.
        decay_norms: weight decay on batch norms and biases too.
    """

    lr: NonNegative = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegative = 1e-2
    decay_norms: bool = True

    def build(self, params: Iterable[nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
        """See `Optimizer.build`."""
        groups = _groups(params, self.weight_decay, self.decay_norms)
        return torch.optim.AdamW(groups, betas=self.betas, **_options(self.lr, device))
