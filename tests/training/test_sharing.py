"""What processes share, in pieces: batch norm over all rows, shards of a network, and what goes wrong in one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.modes import batch_norm
from layerwise.errors import ConfigError
from layerwise.methods import AWP, DeepDefense, GradAlign, Parseval, Standard
from layerwise.training import DivergedError, Training, fsdp
from layerwise.training.sync_norm import synchronised
from tests.forks import together
from tests.networks import TinyConv
from tests.training.fakes import Scripted, apart, cheap, pictures, same, train, weights

ROWS = 7
CUT = 4
"""The first process has four rows, the second three."""
NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "usual": (lambda: nn.BatchNorm2d(3), (3, 2, 2), {}),
    "vectors": (lambda: nn.BatchNorm1d(3, eps=0.1), (3,), {}),
    "volumes": (lambda: nn.BatchNorm3d(2, momentum=None), (2, 2, 1, 2), {}),
    "bare": (lambda: nn.BatchNorm2d(3, affine=False, momentum=0.3), (3, 2, 2), {}),
    "no-running": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (3, 2, 2), {}),
    "evaluation": (lambda: nn.BatchNorm2d(3), (3, 2, 2), {"eval": True}),
    "probe": (lambda: nn.BatchNorm2d(3), (3, 2, 2), {"mode": "batch"}),
    "frozen": (lambda: nn.BatchNorm2d(3), (3, 2, 2), {"mode": "eval"}),
    "half": (lambda: nn.BatchNorm2d(3), (3, 2, 2), {"dtype": torch.bfloat16}),
}


def passed(name: str, rows: slice) -> dict[str, Tensor]:
    """Two passes over these rows of a batch: the output, the gradients of the input and of its gradient's square, the module's state."""
    make, shape, options = NORMS[name]
    torch.manual_seed(1)
    norm = make()
    for value in (*norm.parameters(), *norm.buffers()):
        if value.is_floating_point():
            value.data = torch.rand_like(value) + 0.5
    dtype = options.get("dtype", torch.float64)
    if dtype == torch.float64:
        norm.double()
    norm.train(not options.get("eval", False))
    whole = torch.randn(ROWS, *shape, dtype=torch.float64)
    weight = torch.randn_like(whole)[rows]
    x = whole[rows].to(dtype).requires_grad_()
    with synchronised(norm), batch_norm(norm, options.get("mode", "train")):
        norm(x.detach() + 1)
        y = norm(x)
        (first,) = torch.autograd.grad((y.double() ** 2 * weight).sum(), x, create_graph=dtype == torch.float64)
        found = {"y": y.detach(), "first": first.detach()}
        if dtype == torch.float64:
            found["second"] = torch.autograd.grad((first**2).sum(), x)[0]
    assert "forward" not in norm.__dict__
    return {**found, **{f"state {k}": v.clone() for k, v in norm.state_dict().items()}}


@dataclass(frozen=True, kw_only=True)
class Broken(Criterion):
    """Not finite in the second process."""

    def __call__(self, logits: Tensor, y: Tensor, /) -> Tensor:
        return CrossEntropy()(logits, y) / (1 - dist.get_rank())


def diverging(**options: Any) -> str:
    """What is told when a loss is not finite."""
    options |= {"devices": 2, "log_every": 1, "max_steps": 2}
    try:
        train(TinyConv(), Standard(criterion=Broken()), cheap(**options), pictures(8))
    except DivergedError as error:
        return str(error)
    return "nothing"


def rank(index: int, folder: Path) -> None:
    said = [diverging(strategy="fsdp2"), diverging(strategy="ddp", batch_norm="synchronised")]
    own = TinyConv()
    train(own, Standard(), cheap(devices=2, strategy="fsdp2", eval_every=1), pictures(24))
    with pytest.raises(
        ConfigError, match=r"torchrun has started 2 processes, .* is set to 1; type --training.devices 2"
    ):
        train(TinyConv(), Scripted(), cheap(), pictures(8))
    rows = slice(0, CUT) if index == 0 else slice(CUT, ROWS)
    torch.save(
        {name: passed(name, rows) for name in NORMS} | {"said": said, "own": weights(own)}, folder / f"{index}.pt"
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("sharing")
    together(2, rank, folder)
    return [torch.load(folder / f"{index}.pt", weights_only=True) for index in range(2)]


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_over_two_processes_is_that_of_the_whole_batch(name: str, found: list[Any]) -> None:
    wanted, parts = passed(name, slice(0, ROWS)), [each[name] for each in found]
    # Torch rounds the pass itself to bfloat16, and its statistics to float32 as we do.
    bound = 2**-6 if name == "half" else 1e-9
    for key, value in wanted.items():
        if key.startswith("state"):
            assert torch.equal(parts[0][key], parts[1][key])
            closeness = 1e-6 if name == "half" else bound
            torch.testing.assert_close(parts[0][key], value, rtol=closeness, atol=closeness)
        else:
            torch.testing.assert_close(torch.cat([part[key] for part in parts]), value, rtol=bound, atol=bound)


def test_a_loss_that_is_not_finite_ends_all_processes(found: list[Any]) -> None:
    for each in found:
        for sentence in each["said"]:
            assert "the loss is not finite at batch 1 of epoch 1" in sentence
            assert "which layer was the first is not looked for" in sentence


def test_running_statistics_of_sharded_ranks_are_those_of_the_first(found: list[Any]) -> None:
    assert same(found[0]["own"], found[1]["own"])
    assert not same(found[0]["own"], weights(TinyConv()))


def test_one_process_synchronises_nothing() -> None:
    first, second = TinyConv(), TinyConv()
    train(first, Scripted(), cheap(max_steps=2), pictures(8))
    train(second, Scripted(), cheap(max_steps=2, batch_norm="synchronised"), pictures(8))
    assert apart(weights(first), weights(second)) == 0


@pytest.mark.parametrize("method", [GradAlign(), DeepDefense(), AWP(base=GradAlign()), Parseval(base=DeepDefense())])
def test_what_differentiates_gradients_is_not_sharded(method: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{type(method).__name__} differentiates .* type training.strategy=ddp"):
        fsdp.check([method])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "fsdp"}, "strategy='fsdp' is not supported; type strategy=fsdp2"),
        ({"strategy": "deepspeed_stage_2"}, "strategy='deepspeed_stage_2' is not supported"),
        ({"strategy": "fsdp2", "capture": True}, "steps are not captured with strategy=fsdp2; type capture=auto"),
        ({"batch_norm": "sync"}, "batch_norm='sync'"),
    ],
)
def test_settings_that_cannot_work_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Training(**options)


class Blocks(nn.Module):
    """A list, which is never called, of blocks with an attention, whose parts are not."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2)) for _ in range(2))
        self.head = nn.Linear(8, 2)


def test_units_are_called_modules_of_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Blocks()
    names = {module: name for name, module in net.named_modules()}
    for size, wanted in [
        (1_000_000, []),
        (340, ["blocks.0", "blocks.1"]),
        (100, ["blocks.0.1", "blocks.1.1"]),
        (60, ["blocks.0.0", "blocks.0.1", "blocks.1.0", "blocks.1.1"]),
    ]:
        monkeypatch.setattr(fsdp, "UNIT", size)
        assert [names[unit] for unit in fsdp.units(net)] == wanted
