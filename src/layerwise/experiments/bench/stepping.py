"""The step of `fit`, opened for timing: the same loop, engine, sites, clipping and optimiser, on one batch that stays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from layerwise import models
from layerwise.core import registry
from layerwise.core.threat import ThreatModel
from layerwise.data import ImageData, from_tensors
from layerwise.errors import ConfigError, SiteError
from layerwise.experiments.bench.plain import STEPS, HandWritten
from layerwise.experiments.bench.timing import Run
from layerwise.methods import Method
from layerwise.training import SGD, Constant, Training
from layerwise.training.engine import engine
from layerwise.training.fit import Job, Loop, advance, prepared
from layerwise.training.phases import Phases, changed
from layerwise.trees import parse_yaml

WATCHED = 2
"""Batches at the beginning of a run whose perturbations are measured; what is timed comes after."""
FALLBACK = "first(2)"
"""Sites for a method whose own the network does not have."""


@final
@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is trained.

    Args:
        model: a network's name.
        options: its options.
        shape: of one image.
        classes: how many.
        batch: images.
        training: precision, compile, capture, device and what else `fit` takes.
    """

    model: str = "lenet"
    options: dict[str, Any]
    shape: tuple[int, ...] = (1, 28, 28)
    classes: int = 10
    batch: int = 128
    training: Training

    def network(self, seed: int = 0) -> nn.Module:
        """The network, always with the same weights for a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return models.build(self.model, num_classes=self.classes, shape=self.shape, **self.options)

    def data(self) -> tuple[Tensor, Tensor]:
        """One batch of random pixels and labels."""
        stream = torch.Generator().manual_seed(0)
        x = torch.rand(self.batch, *self.shape, generator=stream)
        return x, torch.arange(self.batch) % self.classes


def training(**options: Any) -> Training:
    """Settings of a run whose step is timed: a rate that leaves the weights where they are, so that no number becomes denormal."""
    usual: dict[str, Any] = {"epochs": 10**6, "optimizer": SGD(lr=1e-5), "schedule": Constant(), "log_every": 10**9}
    return Training(**{**usual, "eval_every": 0, **options})


def parse_method(text: str, setup: Setup) -> Method:
    """A method from its name and fields: `SLAT`, `PGD:steps=7`, `LAT:sites=first(2),eps=10`.

    Raises:
        ConfigError: there is no such method, or a field is none of it.
    """
    name, _, fields = text.partition(":")
    found = registry.find("method", name)
    given: dict[str, Any] = {}
    for part in filter(None, fields.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} does not fit; type NAME:field=value,field=value")
        given[key] = parse_yaml(value, text)
    others: dict[str, dict[str, Any]] = {
        "EAT": {"sources": [setup.network(1)]},
        "AdvTrainI": {"network": setup.network(1)},
    }
    return changed(found.thing(**others.get(found.name, {})), given)


@final
@dataclass(frozen=True)
class Contestant:
    """A step that can be timed.

    Args:
        run: does one.
        method: whose.
        operations: floating-point operations of one, in matrix products and convolutions.
        loop: of `fit`.
    """

    run: Run
    method: Method
    operations: int
    loop: Loop

    @property
    def captured(self) -> bool:
        """Whether the step is replayed."""
        return self.loop.captured is not None and self.loop.captured.recording is not None


@final
class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts floating-point operations of matrix products and convolutions; `FlopCounterMode` does not take second-order gradients."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See `TorchDispatchMode`."""
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.count += formula(*args, **(kwargs or {}), out_val=out)
        return out


def loop_of(net: nn.Module, method: Method, data: ImageData, settings: Training, stack: ExitStack) -> Loop:
    """`fit`'s own loop without a run folder, ready for its first batch; what it opens is closed with `stack`."""
    job = Job(
        raw=net,
        phases=Phases(method, (), settings.epochs),
        data=data,
        threat=ThreatModel(),
        settings=settings,
        run=None,
        resume=False,
        progress=False,
        config=None,
        process=os.getpid(),
    )
    return prepared(engine(settings), job, stack)


@contextmanager
def opened(method: Method, setup: Setup) -> Iterator[Contestant]:
    """The step of a method as `fit` does it, past the batches that it measures.

    Raises:
        SiteError: the network does not have the method's sites.
    """
    with stepping(setup.network(), method, *setup.data(), setup.training) as contestant:
        yield contestant


@contextmanager
def stepping(net: nn.Module, method: Method, x: Tensor, y: Tensor, settings: Training) -> Iterator[Contestant]:
    """The same of any network, on a batch that is given."""
    images = torch.cat([x] * (WATCHED + 2))
    data = from_tensors(images, torch.cat([y] * (WATCHED + 2)), test=(x[:1], y[:1]), validation=0)
    settings = replace(settings, batch_size=len(x))
    with ExitStack() as stack:
        loop = loop_of(net, method, data, settings, stack)
        session = loop.session
        place = session.place
        x, y = x.to(place.device, place.dtype).contiguous(memory_format=place.layout), y.to(place.device)

        def run() -> None:
            advance(loop, method, x, y)
            if session.interrupt.requested is not None:
                raise KeyboardInterrupt("stopped by Ctrl-C")

        with Operations() as counter:  # type: ignore[no-untyped-call]
            run()
        for _ in range(WATCHED):
            session.batch += 1
            run()
        yield Contestant(run, method, counter.count, loop)


@contextmanager
def somewhere(text: str, setup: Setup) -> Iterator[Contestant]:
    """`opened`, at other sites where the network does not have the method's own."""
    with ExitStack() as stack:
        method = parse_method(text, setup)
        try:
            contestant = stack.enter_context(opened(method, setup))
        except SiteError:
            if not hasattr(method, "sites") or "sites=" in text:
                raise
            contestant = stack.enter_context(opened(changed(method, {"sites": FALLBACK}), setup))
        yield contestant


def by_hand(contestant: Contestant, text: str, setup: Setup) -> Run | None:
    """The plain step that does the same, where there is one: for the default settings, and the number of steps.

    Its images and weights lie as PyTorch makes them, unless `channels_last` is asked for by name.
    """
    name, _, fields = text.partition(":")
    method, place = contestant.method, contestant.loop.session.place
    if name not in STEPS or any(
        part.split("=")[0] not in ("steps", "attack.steps", "m", "sites") for part in fields.split(",") if part
    ):
        return None
    net = setup.network().to(place.device, place.dtype if place.dtype == torch.float64 else None).train()
    layout = torch.channels_last if setup.training.channels_last is True else torch.contiguous_format
    net.to(memory_format=layout)  # type: ignore[call-overload]
    parts: list[nn.Module] = []
    if name in ("SLAT", "LatentPGD"):
        names = [site.module for sites in method.attached_sites() for site in sites]
        if not isinstance(net, nn.Sequential) or any(n not in dict(net.named_children()) for n in names):
            return None
        parts = cut(net, names)
    optimizer = setup.training.optimizer.build(net.parameters(), place.device)
    plain = HandWritten(model=net, optimizer=optimizer, parts=parts)
    step = STEPS[name](plain, method)
    x, y = setup.data()
    x, y = x.to(place.device, place.dtype).contiguous(memory_format=layout), y.to(place.device)
    # One context around the whole step, so that weights are rounded once for all its passes.
    mixed = setup.training.precision == "bf16-mixed"

    def run() -> None:
        with torch.autocast(place.device.type, torch.bfloat16, enabled=mixed):
            step(x, y)

    return run


def cut(net: nn.Sequential, names: list[str]) -> list[nn.Module]:
    """The network in parts that end with the named children, and the rest.

    >>> [len(part) for part in cut(nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU()), ["1"])]
    [2, 1]
    """
    parts: list[list[nn.Module]] = [[]]
    for name, child in net.named_children():
        parts[-1].append(child)
        if name in names:
            parts.append([])
    return [nn.Sequential(*part) for part in parts]
