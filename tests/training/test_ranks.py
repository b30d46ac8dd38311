"""Two and four gloo processes against one: DDP, batch norm over all of them, and FSDP2."""

from __future__ import annotations

import functools
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerwise.core import registry
from layerwise.core.shards import local, sharded
from layerwise.methods import (
    ANP,
    AWP,
    EAT,
    FGSM,
    FGSMCKPT,
    FGSMRS,
    LAD,
    LAT,
    MART,
    NAT,
    NFGSM,
    PAT,
    PGD,
    PNI,
    R3F,
    SLAT,
    SMART,
    TRADES,
    VAT,
    YOPO,
    AdvTrainI,
    DeepDefense,
    FGSInter,
    FGSOrig,
    FreeAT,
    FreeLB,
    GaussianNoise,
    GradAlign,
    LatentPGD,
    Method,
    NEFTune,
    Parseval,
    Standard,
    TargetedLAT,
)
from layerwise.training import AdamW, FitResult, checkpoint, fsdp
from tests.forks import together
from tests.networks import TinyConv
from tests.training.fakes import Scripted, apart, cheap, pictures, same, train, weights

pytestmark = pytest.mark.slow

METHODS: dict[str, Callable[[], Method]] = {
    "standard": Standard,
    "fgsm": lambda: FGSM(eps=0.05),
    "fgsm-rs": lambda: FGSMRS(eps=0.05),
    "n-fgsm": lambda: NFGSM(eps=0.05),
    "grad-align": lambda: GradAlign(eps=0.05, base=FGSMRS(eps=0.05)),
    "ckpt": lambda: FGSMCKPT(attack=FGSMRS(eps=0.1)),
    "free-parts": lambda: FreeAT(eps=0.05, m=2),
    "yopo": lambda: YOPO(eps=0.05, step=0.4, m=2, n=2),
    "yopo-parts": lambda: YOPO(eps=0.05, step=0.4, m=2, n=2),
    "pgd": lambda: PGD(steps=2),
    "trades": lambda: TRADES(attack=PGD(steps=2)),
    "mart": lambda: MART(attack=PGD(steps=2)),
    "pat": lambda: PAT(attack=PGD(steps=2, random_start=False)),
    "nat": lambda: NAT(attack=FGSM(eps=0.05, step=2.0, std=1.0, target="least-likely")),
    "eat": lambda: EAT(sources=[TinyConv(1, batch_norm=False), TinyConv(2, batch_norm=False)]),
    "adv-train": lambda: AdvTrainI(network=TinyConv(1, batch_norm=False), num_steps=2),
    "parseval": lambda: Parseval(base=PGD(steps=2)),
    "awp-parts": lambda: AWP(base=SLAT(sites=["conv1"], eta=0.05), gamma=0.1),
    "slat": lambda: SLAT(sites=["conv1", "conv2"], eta=0.05, base=FGSMRS(eps=0.05)),
    "anp": lambda: ANP(k=2, layers=2),
    "lad": lambda: LAD(sites=["conv1", "conv2"], base=TRADES(attack=PGD(steps=2)), noise_std=0.1),
    "lat": lambda: LAT(eps=2.0),
    "lat-parts": lambda: LAT(eps=2.0),
    "fgs-inter": lambda: FGSInter(eps=2.0),
    "fgs-orig": lambda: FGSOrig(attack=FGSM(eps=0.05)),
    "noise": lambda: GaussianNoise(std=0.1),
    "deep-defense": lambda: DeepDefense(num_steps=1, weight=0.1, d=0.1),
}
LATENT: dict[str, Callable[[], Method]] = {
    "latent-pgd": lambda: LatentPGD(sites=["conv1", "conv2"], eps=0.5, steps=2),
    "targeted": lambda: TargetedLAT(sites=["conv1"], eps=0.5, steps=2),
    "freelb": lambda: FreeLB(sites=["conv1"]),
    "neftune": lambda: NEFTune(sites=["conv1"]),
    "smart": lambda: SMART(sites=["conv1"], std=0.1),
    "vat": lambda: VAT(sites=["conv1"]),
    "r3f": lambda: R3F(sites=["conv1"], eps=0.1),
    "pni": lambda: PNI(sites=["conv1"]),
}
"""Those that draw noise where its activation is seen; DDP alone, since FSDP2 does nothing else with them."""
ALL = METHODS | LATENT
MIXED = ("ManifoldMixup", "NFM")
"""Rows are mixed with those of the same process, so that two have other partners than one."""
KEPT = ("slat", "lat", "lat-parts", "free-parts", "awp-parts", "lad", "parseval", "anp")
"""What one process goes on with: state that is carried over, weights that move, parts, draws of every kind."""
FOUR = ("lat", "free-parts", "awp-parts", "lad", "parseval")
NORMED = ("slat", "lat", "anp", "lad", "pgd", "trades", "awp", "deep-defense", "grad-align")
SECOND_ORDER = ("grad-align", "deep-defense")
FIRST_ORDER = tuple(name for name in METHODS if name not in SECOND_ORDER)


@dataclass(frozen=True)
class Case:
    """A run: what trains, the network, and the settings that several processes have and one has not."""

    name: str
    make: Callable[[], Method]
    options: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    norm: bool = False
    kept: bool = False

    def train(self, *, together: bool, **options: Any) -> tuple[nn.Module, FitResult]:
        net = TinyConv(batch_norm=self.norm)
        usual: dict[str, Any] = {"precision": "64-true", "eval_every": 1, "keep": 9, "checkpoint_every": 0.01}
        usual["epochs"] = 2 if self.kept else 1
        settings = {**usual, **self.options, **(self.shared if together else {})}
        folder, resume = options.pop("run", None), options.pop("resume", False)
        result = train(net, self.make(), cheap(**{**settings, **options}), pictures(27), run=folder, resume=resume)
        return net, result


def ddp(name: str) -> Case:
    """SLAT with batches of 8, 8, 8 and 3 images, so that one rank has one row of the last and the other two.

    The others with full batches only: each rank keeps its own noise, so that row i meets row i only where the rows are cut alike.
    """
    options = {"accumulate": 2 if name.endswith("parts") else 1, "drop_last": name != "slat"}
    return Case(f"ddp-{name}", ALL[name], options, {"strategy": "ddp"}, kept=name in KEPT)


def normed(name: str) -> Case:
    """Batch norm in training mode, its statistics taken over both; a batch of one row and two among them."""
    make = METHODS.get(name) or METHODS[f"{name}-parts"]
    shared = {"strategy": "ddp", "batch_norm": "synchronised"}
    return Case(f"norm-{name}", make, {"drop_last": name != "slat"}, shared, norm=True)


def cut(name: str) -> Case:
    """FSDP2, which for YOPO gathers the whole network at once, for the others layer by layer; LAD and SLAT with everything at once."""
    options = dict(ddp(name).options)
    if name == "slat":
        options |= {"optimizer": AdamW(lr=0.01, decay_norms=False), "ema_decay": 0.9, "clip_norm": 0.1}
    norm = name in ("slat", "lad", "parseval")
    shared = {"strategy": "fsdp2", **({"batch_norm": "synchronised"} if norm else {})}
    return Case(f"fsdp2-{name}", METHODS[name], options, shared, norm=norm, kept=name in KEPT)


CASES = {case.name: case for case in (*map(ddp, ALL), *map(normed, NORMED), *map(cut, FIRST_ORDER))}


@functools.cache
def alone(name: str) -> tuple[dict[str, Tensor], FitResult]:
    """Weights and result of one process."""
    net, result = CASES[name].train(together=False)
    return weights(net), result


def rank(
    index: int, folder: Path, world: int, names: tuple[str, ...], each: dict[str, Any], options: dict[str, Any]
) -> None:
    for name in names:
        case = CASES[name]
        fsdp.UNIT = 1_000_000 if "yopo" in name else 100
        own = {**options, **each.get(name, {})}
        run = folder / name if case.kept or own else None
        net, result = case.train(together=True, devices=world, run=run, **own)
        found = {"weights": weights(net), "history": result.history, "average": result.average}
        torch.save(found, folder / f"{name}-{index}.pt")


def shares(index: int, folder: Path) -> None:
    """Write down what this rank holds."""
    torch.save(shares_of(index), folder / f"shares-{index}.pt")


def shares_of(index: int) -> dict[str, Any]:
    """What lies on this rank in the middle of a training, and after it."""
    seen: list[dict[str, Any]] = []

    def look(model: nn.Module, number: int) -> None:
        del number
        cut_ = [(p.numel(), local(p).numel()) for p in model.parameters() if sharded(p)]
        seen.append({"all": sum(p.numel() for p in model.parameters()), "cut": sum(a for a, _ in cut_)})
        seen[-1]["here"] = sum(b for _, b in cut_)

    net = TinyConv()
    train(net, Scripted(hook=look), cheap(max_steps=1, strategy="fsdp2", devices=2), pictures(8))
    return {**seen[0], "left": sum(sharded(p) for p in net.parameters())}


def spawned(
    path: Path,
    world: int,
    names: tuple[str, ...],
    *,
    join: bool = True,
    each: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """So many ranks train the cases, with other settings for all of them or for each."""
    return together(world, rank, path, world, names, each or {}, options, join=join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    # FSDP2 makes groups of processes for every training, whose threads last as long as the process:
    # each case has a pair of its own.
    shared = tuple(name for name in CASES if not name.startswith("fsdp2"))
    for names in (shared, *((name,) for name in CASES if name not in shared)):
        spawned(path, 2, names)
    together(2, shares, path)
    return path


def found_in(folder: Path, name: str, index: int = 0) -> Any:
    return torch.load(folder / f"{name}-{index}.pt", weights_only=True)


def test_every_method_is_here() -> None:
    assert {type(make()).__name__ for make in ALL.values()} | set(MIXED) == set(registry.names("method"))


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_give_the_result_of_one(name: str, folder: Path) -> None:
    found = [found_in(folder, name, index) for index in range(2)]
    wanted, result = alone(name)
    assert apart(weights(TinyConv(batch_norm=CASES[name].norm)), wanted) > 1e-2
    assert same(found[0]["weights"], found[1]["weights"])
    assert apart(found[0]["weights"], wanted) < 1e-6
    assert (result.average is None) == (found[0]["average"] is None)
    assert result.average is None or apart(found[0]["average"], result.average) < 1e-6
    for ours, theirs in zip(result.history, found[0]["history"], strict=True):
        for key in ("loss", "accuracy", "clean", "robust"):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-6)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.kept])
def test_one_process_goes_on_with_the_run_of_two(name: str, folder: Path) -> None:
    for path in checkpoint.found(folder / name / "checkpoints")[2:]:
        shutil.rmtree(path)
    contents, _ = checkpoint.load_latest(folder / name / "checkpoints")
    assert contents is not None
    assert (contents.step, contents.world) == (2, 2)
    shared = {"batch_norm": "synchronised"} if CASES[name].norm else {}
    net, result = CASES[name].train(together=False, run=folder / name, resume=True, **shared)
    assert result.steps > 2
    assert apart(found_in(folder, name)["weights"], weights(net)) < 1e-6


def test_a_rank_of_fsdp2_holds_its_shard_only(folder: Path) -> None:
    first, second = (torch.load(folder / f"shares-{index}.pt", weights_only=True) for index in range(2))
    assert first["all"] == first["cut"] == first["here"] + second["here"]
    assert abs(first["here"] - second["here"]) < 0.2 * first["all"]
    assert first["left"] == second["left"] == 0


def test_four_ranks_give_the_result_of_one(tmp_path: Path) -> None:
    names = tuple(f"ddp-{name}" for name in FOUR)
    spawned(tmp_path, 4, names)
    for name in names:
        found = [found_in(tmp_path, name, index)["weights"] for index in range(4)]
        assert all(same(found[0], other) for other in found[1:]), name
        assert apart(found[0], alone(name)[0]) < 1e-6, name


LONG: dict[str, Any] = {"epochs": 8, "log_every": 100, "drop_last": True, "keep": 24, "ema_decay": 0.9}
KILLED = {"norm-lat": "fsdp2", "fsdp2-slat": "ddp"}
"""Runs of two ranks that are killed, and the strategy of the four that go on: noise, AdamW's moments, an average, running statistics."""


def killed(folder: Path, name: str, steps: int) -> None:
    """Two ranks train, and are killed at some moment after so many batches."""
    context = spawned(folder, 2, (name,), join=False, **LONG)
    try:
        while len(checkpoint.found(folder / name / "checkpoints")) < steps:
            assert all(process.is_alive() for process in context.processes)
            time.sleep(0.002)
    finally:
        for process in context.processes:
            process.kill()
            process.join()


def test_killed_runs_of_two_ranks_are_continued_by_four_and_by_one(tmp_path: Path) -> None:
    for name in KILLED:
        steps = random.Random().randint(1, 8)
        killed(tmp_path, name, steps)
        done, _ = checkpoint.load_latest(tmp_path / name / "checkpoints")
        assert done is not None
        assert steps <= done.step < 24
        assert done.world == 2
        shutil.copytree(tmp_path / name, tmp_path / f"{name}-alone")
    options = {name: {"strategy": strategy, "resume": True, **LONG} for name, strategy in KILLED.items()}
    spawned(tmp_path, 4, tuple(KILLED), each=options)
    for name in KILLED:
        case = CASES[name]
        net, wanted = case.train(together=False, **LONG)
        shared = {"batch_norm": "synchronised"}
        single, result = case.train(together=False, run=tmp_path / f"{name}-alone", resume=True, **shared, **LONG)
        assert result.steps == 24
        assert wanted.average is not None
        four = found_in(tmp_path, name, 3)
        for found, average in [(weights(single), result.average), (four["weights"], four["average"])]:
            assert apart(found, weights(net)) < 1e-6, name
            assert apart(average, wanted.average) < 1e-6, name
        contents, _ = checkpoint.load_latest(tmp_path / name / "checkpoints")
        assert contents is not None
        assert (contents.step, contents.world) == (24, 4)
