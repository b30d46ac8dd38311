"""What the tables of methods x properties share: every method with settings for a small network, and a training loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layerwise.core import registry
from layerwise.core.driving import Partial
from layerwise.core.random import Stream
from layerwise.methods import FGSMRS, NFGSM, PGD, TRADES, Method
from tests.networks import TinyResNet, batch

METHODS: dict[str, type[Method]] = {name: entry.thing for name, entry in registry.entries("method").items()}
"""Every method that is registered: a new one is in every table by itself."""

SETTINGS: dict[str, dict[str, Any]] = {
    "PGD": {"steps": 2},
    "TRADES": {"attack": PGD(steps=2)},
    "MART": {"attack": PGD(steps=2)},
    "PAT": {"attack": PGD(steps=2, random_start=False)},
    "EAT": {"sources": [TinyResNet(seed=7)]},
    "AdvTrainI": {"network": TinyResNet(seed=7), "num_steps": 2},
    "AWP": {"base": PGD(steps=2)},
    "FreeAT": {"m": 3},
    "YOPO": {"m": 2, "n": 2},
    "SLAT": {"sites": ("conv1", "blocks.block2")},
    "ANP": {"k": 2},
    "LAD": {"base": PGD(steps=2)},
    "LatentPGD": {"eps": 0.5, "steps": 2},
    "FreeLB": {"sites": ["conv1", "bn"]},
    "NEFTune": {"sites": ["conv1", "bn"]},
    "SMART": {"sites": ["conv1", "bn"], "size": 0.1},
    "VAT": {"sites": ["conv1", "bn"], "eps": 0.5},
    "R3F": {"sites": ["conv1", "bn"], "eps": 0.1},
    "TargetedLAT": {"steps": 2, "descents": 2},
    "DeepDefense": {"num_steps": 2, "weight": 0.1, "d": 0.1},
}
"""Only what the small networks ask for; a method that is not named here has its defaults."""

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "SLAT": {"from a noisy start": {"base": NFGSM()}, "with two probes": {"num_probes": 2}},
    "ANP": {"after probes": {"update": "after-probes"}, "shifted": {"descend_at": "shifted"}},
    "LAD": {"SM on TRADES": {"base": TRADES(attack=PGD(steps=1)), "splitting": "strang-marchuk"}},
    "FreeLB": {"in a ball on FGSM": {"steps": 3, "eps": 0.15, "base": FGSMRS()}},
    "LAT": {"joint": {"joint": True}},
    "LatentPGD": {"relative on PGD": {"eps": 0.1, "relative": True, "base": PGD(steps=1)}},
    "YOPO": {"twice": {"adjoint_update": True}},
    "GradAlign": {"on a base": {"base": FGSMRS()}},
}
"""What a method's other paths through its code ask for; `make("ANP shifted")`."""

ROWS = [f"{name} {variant}".strip() for name in METHODS for variant in ("", *VARIANTS.get(name, {}))]

Batch = tuple[Tensor, Tensor]
M = TypeVar("M", bound=Method)


def make(row: str, **more: Any) -> Method:
    """A method by its name, or by name and variant."""
    name, _, variant = row.partition(" ")
    chosen = VARIANTS[name][variant] if variant else {}
    return METHODS[name](**{**SETTINGS.get(name, {}), **chosen, **more})


def unchecked(method: M) -> M:
    """Without the check of the first batch, for tests that count passes or give what it refuses."""
    method.check_inputs = False
    return method


def data(count: int, size: int = 6, dtype: torch.dtype = torch.float64) -> list[Batch]:
    return [batch(size, seed=seed, dtype=dtype) for seed in range(count)]


def optimizer_of(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def train(
    method: Method,
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    first: int = 0,
    parts: Sequence[int] = (),
) -> dict[str, Tensor]:
    """Train, each batch in `parts` micro-batches (sizes; none is one), their generators in lockstep; gives the state."""
    optimizer = optimizer or optimizer_of(model)
    for step, (x, y) in enumerate(batches, first):
        lockstep(method, model, optimizer, x, y, step, parts or (len(x),))
    return {name: value.clone() for name, value in model.state_dict().items()}


def lockstep(
    method: Method,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    step: int,
    parts: Sequence[int],
) -> None:
    """One batch: every generator gives a loss, all losses go backward, then one optimiser step."""
    total, start, running = len(x), 0, []
    for size in parts:
        rows = slice(start, start + size)
        stream = Stream(0, step, start=start, total=total, own_total=total)
        running.append((size / total, iter(method.losses(model, x[rows], y[rows], generator=stream))))
        start += size
    optimizer.zero_grad()
    while losses := [loss for share, losses in running if (loss := backward_next(losses, share)) is not None]:
        if not isinstance(losses[0], Partial):
            optimizer.step()
            optimizer.zero_grad()


def backward_next(losses: Iterator[Tensor | Partial], share: float) -> Tensor | Partial | None:
    """The next loss of one micro-batch, back-propagated; None at the end."""
    loss = next(losses, None)
    if loss is not None:
        torch.autograd.backward((loss.loss if isinstance(loss, Partial) else loss) * share)
    return loss


class CheckpointedResNet(TinyResNet):
    """Every block is run again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x)
        for block in self.blocks:
            h = checkpoint(block, h, use_reentrant=False)
        out: Tensor = self.fc(torch.relu(self.bn(h)).mean((2, 3)))
        return out


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert list(a) == list(b)
    return [name for name, value in a.items() if not torch.equal(value, b[name])]


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert list(a) == list(b)
    return max(float((value - b[name]).abs().max()) for name, value in a.items())


def hooks_of(model: nn.Module) -> int:
    tables = [name for name in vars(nn.Module()) if "hooks" in name]
    return sum(len(getattr(m, table)) for m in model.modules() for table in tables if hasattr(m, table))


def resnet() -> TinyResNet:
    """A residual network in float64."""
    return TinyResNet(batch_norm=False).double()


def backward(loss: Tensor | Partial) -> None:
    """Back-propagate what a method yields."""
    torch.autograd.backward(loss.loss if isinstance(loss, Partial) else loss)
