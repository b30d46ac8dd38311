"""Small things to train: a data set of `tests.networks.batch`, cheap settings, a method that writes down what happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.core.cost import Passes
from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Partial, Step
from layerwise.data import ImageData, from_tensors
from layerwise.methods import Losses, Method
from layerwise.training import SGD, Constant, FitResult, Training, fit
from tests.networks import batch


def pictures(train: int = 40, *, validation: int = 8) -> ImageData:
    """Float images (3, 8, 8) of 5 classes."""
    x, y = batch(train + validation, seed=1, dtype=torch.float32)
    test = batch(4, seed=2, dtype=torch.float32)
    return from_tensors(x, y, test=test, validation=validation, name="pictures", classes=list("abcde"))


def cheap(**options: Any) -> Training:
    """Settings of a run of a second."""
    usual: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 8,
        "optimizer": SGD(lr=0.05),
        "schedule": Constant(),
        "eval_steps": 1,
        "eval_every": 0,
        "accelerator": "cpu",
        "log_every": 2,
    }
    return Training(**{**usual, **options})


def train(
    net: nn.Module, method: Method, settings: Training, data: ImageData | None = None, **options: Any
) -> FitResult:
    """`fit` in silence."""
    return fit(net, method, data or pictures(), training=settings, progress=False, **options)


def weights(net: nn.Module) -> dict[str, Tensor]:
    """A copy of the state."""
    return {k: v.detach().clone() for k, v in net.state_dict().items()}


def apart(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference between two states."""
    return max(float((first[k].double() - second[k].double()).abs().max()) for k in first)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two states are equal, bit by bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@dataclass(kw_only=True)
class Scripted(Method):
    """Yields what `script` says ("loss" or "partial"), and writes down each event."""

    script: tuple[str, ...] = ("loss",)
    criterion: Criterion = field(default_factory=CrossEntropy)
    scale: float = 1.0
    events: list[str] = field(default_factory=list)
    hook: Callable[[nn.Module, int], None] | None = None

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise ValueError(self.scale)
        self.calls = 0

    def batch_losses(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
        number, self.calls = self.calls, self.calls + 1
        name = chr(ord("a") + number % 26)
        try:
            for kind in self.script:
                self.events.append(f"{name}:{kind}")
                loss = self.scale * self.criterion(model(x), y).mean()
                loss.register_hook(lambda g, name=name: self.events.append(f"{name}:backward"))  # type: ignore[no-untyped-call]
                yield Partial(loss) if kind == "partial" else loss
                self.events.append(f"{name}:after")
                if self.hook is not None:
                    self.hook(model, number)
        finally:
            self.events.append(f"{name}:closed")

    def state_dict(self) -> dict[str, Tensor]:
        return {"calls": torch.tensor([self.calls])}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.calls = int(state["calls"][0])

    @property
    def passes(self) -> Passes:
        return Passes()


__all__ = ["Scripted", "apart", "cheap", "pictures", "replace", "same", "train", "weights"]
