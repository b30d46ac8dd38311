"""Every method through a wrapper of the network: DistributedDataParallel in one process, and torch.compile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.utils import counters

from layerwise.methods import PGD, Standard
from tests.methods.cases import METHODS, data, differing, distance, hooks_of, make, train
from tests.networks import TinyMLP, TinyResNet

NAMES = pytest.mark.parametrize("name", METHODS)
STEPS = 4


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def dynamo() -> Iterator[Any]:
    """What `fit` sets, and no graphs of earlier tests."""
    torch.compiler.reset()
    config: Any = torch._dynamo.config
    with config.patch(skip_nnmodule_hook_guards=False, recompile_limit=64):
        yield config
    torch.compiler.reset()


def bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("module.").removeprefix("_orig_mod."): value for name, value in state.items()}


@NAMES
@pytest.mark.usefixtures("group")
def test_through_ddp_it_is_the_same(name: str) -> None:
    model = TinyResNet().double()
    method, wrapped = make(name), nn.parallel.DistributedDataParallel(model)
    method.attach(model, data(1)[0][0])
    found = bare(train(method, wrapped, data(3)))
    method.detach()
    assert hooks_of(model) == 0
    assert differing(found, train(make(name), TinyResNet().double(), data(3))) == []


FIELDS: dict[str, dict[str, Any]] = {
    "SLAT": {"sites": ("fc1", "fc2")},
    "ANP": {"layers": 2},
    "LAD": {"sites": ("fc1", "fc2"), "base": Standard()},
    "PGD": {"steps": 1},
    "TRADES": {"attack": PGD(steps=1)},
    "MART": {"attack": PGD(steps=1)},
    "AWP": {"base": Standard()},
    "FreeAT": {"m": 2},
    "YOPO": {"m": 2, "n": 1},
}
"""For a small network without residual blocks: its graphs take little time to make."""


MADE_ANEW = dict.fromkeys(
    ("FreeLB", "LatentPGD", "NEFTune", "PNI", "R3F", "SMART", "TargetedLAT", "VAT"),
    "its noise is drawn when its activation is seen, in the middle of the network's graph, which has no way to seed a generator",
) | dict.fromkeys(
    ("ManifoldMixup", "NFM"), "how much is mixed is a number of the batch, for which the graph is made anew"
)
"""What torch.compile gives up on, and why."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xfail(reason=MADE_ANEW[name], strict=True) if name in MADE_ANEW else ())
        for name in METHODS
    ],
)
def test_compiled_it_is_the_same_and_nothing_is_compiled_again_after_the_first_steps(name: str, dynamo: Any) -> None:
    """Two steps, since LAT has noise from the second on."""
    expected = train(make(name, **FIELDS.get(name, {})), TinyMLP().double(), data(STEPS))
    model, method = TinyMLP().double(), make(name, **FIELDS.get(name, {}))
    method.attach(model, data(1)[0][0])
    compiled: Any = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    first = 2 if name == "LAT" else 1
    counters.clear()
    train(method, compiled, data(first), optimizer=optimizer)
    with dynamo.patch(error_on_recompile=True):
        found = train(method, compiled, data(STEPS)[first:], optimizer=optimizer, first=first)
    assert distance(bare(found), expected) < 1e-12
    assert 1 <= counters["stats"]["unique_graphs"] <= 3
    assert not counters["graph_break"]
    method.detach()
