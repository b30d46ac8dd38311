"""Every method through a wrapper of the network: DistributedDataParallel in one process, and torch.compile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.utils import counters

import layerwise as lw
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


FIELDS |= {name: {"sites": ("fc1", "fc2")} for name in ("FreeLB", "NEFTune", "SMART", "VAT", "R3F")}
FIELDS |= {name: {"sites": ["fc1"]} for name in ("ManifoldMixup", "NFM")}  # one of its sites a batch, a graph for each


@NAMES
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
    # Probes without noise and with it, and descents; of targeted latent training clean ones too.
    assert 1 <= counters["stats"]["unique_graphs"] <= (4 if name == "TargetedLAT" else 3)
    assert not counters["graph_break"]
    method.detach()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by dynamo, at a break
@pytest.mark.parametrize("name", ["LatentPGD", "NEFTune", "PNI", "VAT", "NFM"])
def test_noise_that_is_drawn_inside_a_compiled_network_is_the_same(name: str, dynamo: Any) -> None:
    """Numbers of a plain generator come in the order of the activations: the graph breaks there, and is not made anew."""
    fields, weights = {**FIELDS.get(name, {}), "sites": ["fc1"]}, []
    for compiled in (False, True):
        model, method = TinyMLP().double(), make(name, **fields)
        method.attach(model, data(1)[0][0])
        network: Any = torch.compile(model, backend="aot_eager") if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        generator = torch.Generator().manual_seed(0)
        for step, (x, y) in enumerate(data(STEPS)):
            with dynamo.patch(error_on_recompile=step > 1):
                lw.step(method, network, x, y, optimizer, generator=generator)
        weights.append(model.state_dict())
    assert differing(*weights) == []


def test_a_mixup_of_several_sites_has_a_graph_for_each(dynamo: Any) -> None:
    model, method = TinyMLP().double(), make("NFM", sites=["fc1", "fc2"])
    method.attach(model, data(1)[0][0])
    compiled: Any = torch.compile(model, backend="aot_eager")
    counters.clear()
    found = bare(train(method, compiled, data(12)))
    assert counters["stats"]["unique_graphs"] == 2
    assert differing(found, train(make("NFM", sites=["fc1", "fc2"]), TinyMLP().double(), data(12))) == []
