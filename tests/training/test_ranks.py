"""Two and four gloo processes against one."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from layerwise.methods import (
    ANP,
    AWP,
    FGSMCKPT,
    FGSMRS,
    LAD,
    LAT,
    MART,
    NAT,
    PGD,
    SLAT,
    TRADES,
    YOPO,
    DeepDefense,
    FreeAT,
    GradAlign,
    Method,
    Parseval,
)
from layerwise.training import checkpoint
from tests.networks import TinyConv
from tests.training.fakes import apart, cheap, pictures, same, train, weights

METHODS: dict[str, Callable[[], Method]] = {
    "slat": lambda: SLAT(sites=["conv1", "conv2"], eta=0.05, base=FGSMRS(eps=0.05)),
    "lat": lambda: LAT(eps=2.0),
    "lat-parts": lambda: LAT(eps=2.0),
    "free-parts": lambda: FreeAT(eps=0.05, m=2),
    "yopo-parts": lambda: YOPO(eps=0.05, alpha=0.02, m=2, n=2),
    "awp-parts": lambda: AWP(base=SLAT(sites=["conv1"], eta=0.05), gamma=0.1),
    "grad-align": lambda: GradAlign(eps=0.05, base=FGSMRS(eps=0.05)),
    "anp": lambda: ANP(k=2, layers=2),
    "lad": lambda: LAD(sites=["conv1", "conv2"], base=TRADES(steps=2), noise_std=0.1),
    "mart": lambda: MART(steps=2),
    "nat": lambda: NAT(std=0.05),
    "ckpt": lambda: FGSMCKPT(eps=0.1),
    "parseval": lambda: Parseval(base=PGD(steps=2)),
    "deep-defense": lambda: DeepDefense(num_steps=1, weight=0.1, d=0.1),
}
FOUR = ("lat", "free-parts", "awp-parts", "lad", "parseval")
"""What four processes train: noise that is carried over, weights that move, parts, draws of every kind."""


def run(name: str, **options: Any) -> tuple[nn.Module, Any]:
    """SLAT with batches of 8, 8, 8 and 3 images, so that one rank has one row of the last and the other two.

    The others with full batches only: each rank keeps its own noise, so that row i meets row i only where the rows are cut alike.
    """
    net = TinyConv(batch_norm=False)
    usual: dict[str, Any] = {"precision": "64-true", "eval_every": 1, "keep": 9, "checkpoint_every": 0.01}
    usual |= {"accumulate": 2 if name.endswith("parts") else 1, "drop_last": name != "slat"}
    folder, resume = options.pop("run", None), options.pop("resume", False)
    result = train(net, METHODS[name](), cheap(**{**usual, **options}), pictures(27), run=folder, resume=resume)
    return net, result


def rank(index: int, port: int, folder: Path, world: int, names: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": f"{world}",
        "LOCAL_WORLD_SIZE": f"{world}",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    for name in names:
        net, result = run(name, strategy="ddp", devices=world, run=folder / name)
        torch.save({"weights": weights(net), "history": result.history}, folder / f"{name}-{index}.pt")
    torch.distributed.destroy_process_group()


def trained(path: Path, world: int, names: tuple[str, ...]) -> Path:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn: Any = torch.multiprocessing.spawn  # type: ignore[attr-defined]
    spawn(rank, args=(port, path, world, names), nprocs=world)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("ranks"), 2, tuple(METHODS))


@pytest.mark.slow
def test_four_ranks_give_the_result_of_one(tmp_path: Path) -> None:
    trained(tmp_path, 4, FOUR)
    for name in FOUR:
        found = [torch.load(tmp_path / f"{name}-{index}.pt", weights_only=True)["weights"] for index in range(4)]
        net, _ = run(name)
        assert all(same(found[0], other) for other in found[1:]), name
        assert apart(found[0], weights(net)) < 1e-6, name


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_give_the_result_of_one(name: str, folder: Path) -> None:
    found = [torch.load(folder / f"{name}-{index}.pt", weights_only=True) for index in range(2)]
    net, result = run(name)
    assert apart(weights(TinyConv(batch_norm=False)), weights(net)) > 1e-2
    assert same(found[0]["weights"], found[1]["weights"])
    assert apart(found[0]["weights"], weights(net)) < 1e-6
    for ours, theirs in zip(result.history, found[0]["history"], strict=True):
        for key in ("loss", "accuracy", "clean", "robust"):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_one_process_goes_on_with_the_run_of_two(name: str, folder: Path) -> None:
    for path in checkpoint.found(folder / name / "checkpoints")[2:]:
        shutil.rmtree(path)
    contents, _ = checkpoint.load_latest(folder / name / "checkpoints")
    assert contents is not None
    assert (contents.step, contents.world) == (2, 2)
    net, result = run(name, run=folder / name, resume=True)
    assert result.steps > 2
    assert apart(torch.load(folder / f"{name}-0.pt", weights_only=True)["weights"], weights(net)) < 1e-6


def test_what_other_processes_trained_comes_back() -> None:
    # Forking costs a third of the time, and does not go with CUDA.
    forks = "fork" in torch.multiprocessing.get_all_start_methods() and not torch.cuda.is_available()
    strategy = "ddp_fork" if forks else "ddp_spawn"
    (net, result), (alone, wanted) = (
        run("slat", strategy=strategy, devices=2, ema_decay=0.9),
        run("slat", ema_decay=0.9),
    )
    assert apart(weights(net), weights(alone)) < 1e-6
    assert result.steps == wanted.steps
    assert apart(result.average, wanted.average) < 1e-6
