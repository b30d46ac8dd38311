"""A loop of one's own in two processes, with DDP, FSDP2 and Accelerate: the weights that the plain loop gives on whole batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import layerwise as lw
from layerwise.core.random import Stream
from layerwise.methods import Method
from tests.forks import together
from tests.integrations import test_loops as plain
from tests.integrations.test_loops import Net, data, optimizer_of

METHODS: dict[str, Callable[[], Method]] = plain.METHODS | {
    "PGD": lambda: lw.PGD(eps=0.1, steps=2),
    "TRADES": lambda: lw.TRADES(attack=lw.PGD(eps=0.1, steps=2)),
    "LAD": lambda: lw.LAD(base=lw.PGD(eps=0.1, steps=2), sites=["first", "second"]),
    "AWP around LAT": lambda: lw.AWP(base=lw.LAT(sites=["first"])),
    "DeepDefense": lambda: lw.DeepDefense(num_steps=1, weight=0.1, d=0.1),
}
SECOND_ORDER = "DeepDefense"


def trained(method: Method, model: nn.Module, rows: slice, optimizer: torch.optim.Optimizer, **options: object) -> None:
    """What a user writes, with random numbers that belong to the rows."""
    for number, (x, y) in enumerate(data()):
        source = Stream(0, number, rows.start, len(x), rows.start, rows.stop - rows.start)
        lw.step(method, model, x.double()[rows], y[rows], optimizer, generator=source, **options)  # type: ignore[arg-type]


def alone(make: Callable[[], Method]) -> dict[str, Tensor]:
    """The plain loop on whole batches."""
    model = Net().double().train()
    optimizer = optimizer_of(model)
    method = make()
    for number, (x, y) in enumerate(data()):
        for loss in method.losses(model, x.double(), y, generator=Stream(0, number)):
            if isinstance(loss, lw.Partial):
                loss.loss.backward()  # type: ignore[no-untyped-call]
                continue
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    return model.state_dict()


def ddp(method: Method, model: nn.Module, rows: slice) -> None:
    wrapped = nn.parallel.DistributedDataParallel(model)
    trained(method, wrapped, rows, optimizer_of(wrapped))


def fsdp2(method: Method, model: nn.Module, rows: slice) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    cut: Any = fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    trained(method, cut, rows, optimizer_of(cut))


def accelerate(method: Method, model: nn.Module, rows: slice) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    wrapped, optimizer = accelerator.prepare(model, optimizer_of(model))
    trained(method, wrapped, rows, optimizer, backward=accelerator.backward)


WRAPPERS = {"ddp": ddp, "fsdp2": fsdp2, "accelerate": accelerate}


def rank(index: int, folder: Path, wrapper: str) -> None:
    dist.init_process_group("gloo")
    for name, make in METHODS.items():
        model = Net().double().train()
        try:
            WRAPPERS[wrapper](make(), model, slice(2 * index, 2 * index + 2))
        except lw.LayerwiseError as error:
            torch.save(str(error), folder / f"{name}-{index}.pt")
            continue
        state = model.state_dict().items()
        whole = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in state}
        torch.save(whole, folder / f"{name}-{index}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_two_processes_give_the_weights_of_one(wrapper: str, tmp_path: Path) -> None:
    together(2, rank, tmp_path, wrapper)
    for name, make in METHODS.items():
        expected = alone(make)
        for index in range(2):
            found = torch.load(tmp_path / f"{name}-{index}.pt", weights_only=True)
            if wrapper == "fsdp2" and name == SECOND_ORDER:
                assert found.startswith("DeepDefense differentiates gradients, which FSDP2 cannot")
                continue
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-13, msg=f"{name}: {key}")
