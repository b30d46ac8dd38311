"""Memory stays flat over many steps, and the same measurement sees a small leak."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerwise.core.cost import Passes
from layerwise.core.criteria import CrossEntropy
from layerwise.core.driving import Step
from layerwise.methods import Losses, Method
from tests.forks import exit_code
from tests.methods.cases import METHODS, make
from tests.networks import TinyResNet
from tests.torture.memory import KNOWN, resident
from tests.torture.size import TORTURE, sized
from tests.training.fakes import cheap, pictures, train

STEPS = sized(200, 2000)
ALLOWED = sized(2, 4)
"""Megabytes between the second quarter of the steps and the last; seen were 0.1 in 200 steps and 1.6 in 2,000, the records of epochs."""
CHOSEN = ("LAT", "SLAT")
LEAK = 100 * 200 // STEPS
"""Kilobytes that the planted leak keeps of a step: 10 MB over the same steps that the methods make, of which half are seen."""


@dataclass(kw_only=True)
class Leaky(Method):
    """Keeps something small of each step: a tensor, or the loss with everything that its graph holds."""

    kept: list[Tensor] = field(default_factory=list)
    criterion: CrossEntropy = field(default_factory=CrossEntropy)
    graph: bool = False

    def batch_losses(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
        loss = self.criterion(model(x), y).mean()
        self.kept.append(loss if self.graph else torch.zeros(LEAK * 250))
        yield loss

    @property
    def passes(self) -> Passes:
        return Passes()


def growth(method: Method, run: Path | None, steps: int) -> float:
    """Megabytes more at the peak of the last quarter of the steps than at that of the second."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seen: list[float] = []
    net, count = TinyResNet(), 0

    def look(model: nn.Module, args: object, output: object) -> None:
        nonlocal count
        count += 1
        if model.training and count % 10 == 0:
            seen.append(torch.cuda.memory_allocated() / 1e6 if device.type == "cuda" else resident())

    net.register_forward_hook(look)
    settings = cheap(
        epochs=steps, max_steps=steps, ema_decay=0.9, log_every=10, checkpoint_every=10, accelerator=device.type
    )
    gc.collect()
    train(net, method, settings, pictures(20), run=run)
    quarter = len(seen) // 4
    return max(seen[-quarter:]) - max(seen[quarter : 2 * quarter])


def measured(name: str, folder: str, steps: int, found: str) -> None:
    """The growth with a method, into a file; in a process of its own, whose heap has no holes that a leak could hide in."""
    torch.set_num_threads(1)
    method = Leaky(graph=name == "loss") if name in LEAKS else make(name)
    Path(found).write_text(str(growth(method, Path(folder) if name == "LAT" else None, steps)))


def grown(place: Path, name: str, steps: int) -> float:
    assert exit_code(measured, name, str(place / "run"), steps, str(place / "found")) == 0
    return float((place / "found").read_text())


LEAKS = ("tensor", "loss")
needs_linux = pytest.mark.skipif(not KNOWN, reason="the resident memory is read from Linux's /proc")


@needs_linux
@pytest.mark.parametrize("name", sorted(METHODS) if TORTURE else CHOSEN)
def test_memory_is_flat(tmp_path: Path, figures: dict[str, Any], name: str) -> None:
    # LAT with checkpoints and metrics, which on a disk cost more than the steps of all others.
    more = grown(tmp_path, name, STEPS)
    soak = figures.setdefault(f"soak_{STEPS}_steps", {"allowed_megabytes": ALLOWED, "grown_megabytes": {}})
    soak["grown_megabytes"][name] = round(more, 2)
    assert more < ALLOWED


@needs_linux
@pytest.mark.parametrize("kind", LEAKS)
def test_a_leak_is_seen(tmp_path: Path, figures: dict[str, Any], kind: str) -> None:
    more = grown(tmp_path, kind, STEPS)
    figures.setdefault("planted_leak_megabytes", {})[kind] = round(more, 2)
    assert more > ALLOWED
