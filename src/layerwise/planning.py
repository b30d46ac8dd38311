"""What an experiment would do, without doing it: sites, passes, memory and estimated time."""

from __future__ import annotations

import time
from contextlib import closing
from itertools import accumulate, islice

import torch
from torch import Tensor, nn

from layerwise.data import ImageData, batches, num_batches
from layerwise.experiment import Experiment, build_model, load_data, make_phases
from layerwise.methods import Method, Partial
from layerwise.probe import AUTOGRAD
from layerwise.random import Stream
from layerwise.tracing import trace
from layerwise.training.phases import Phases

TIMED_BATCHES = 2
LONG = 5.0
"""Seconds of a batch that is timed only once."""


def plan(experiment: Experiment, *, trust: bool = True) -> str:
    """A text that says what would happen; a batch or two of each phase are run on a copy of the network to time them.

    The time is measured on this machine's accelerator if there is one, else on its processor, in float32 and eagerly; the looks at the
    validation split and the judgement come on top.
    """
    data, settings = load_data(experiment.data), experiment.training
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(experiment.model, data, trust=trust).to(device)
    size = min(settings.batch_size, len(data.train))
    pairs = list(islice(batches(data.train, size, device=device), TIMED_BATCHES))
    phases = Phases(experiment.method, make_phases(experiment), settings.epochs)
    steps = _steps(experiment, data, phases)
    lines = [
        f"data      {data.name}: {len(data.train):,} to train on, {len(data.validation):,} to choose by, {len(data.test):,} to judge",
        f"model     {experiment.model.name}: {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{_activations(model, pairs[0][0]):,} activations an image",
        f"training  {settings.epochs} epochs, {sum(steps):,} batches of {size}",
    ]
    if experiment.model.start is not None:
        lines.append(f"start     {experiment.model.start}")
    total, epoch = 0.0, 0
    for index, (phase, count) in enumerate(zip(phases.phases, steps, strict=True)):
        method = phases.enter(epoch)
        epoch += phase.epochs
        title = f"phase {index + 1}   {phase.epochs} epochs, " if len(phases.phases) > 1 else "method    "
        text, seconds = _phase(method, model, pairs)
        lines += ["", f"{title}{text}"]
        total += seconds * count
    lines += ["", f"time      about {_duration(total)} in all"]
    return "\n".join(lines)


def _steps(experiment: Experiment, data: ImageData, phases: Phases) -> list[int]:
    """Batches of each phase."""
    settings = experiment.training
    an_epoch = num_batches(data.train, settings.batch_size, drop_last=settings.drop_last)
    ends = [an_epoch * epochs for epochs in accumulate(p.epochs for p in phases.phases)]
    limit = ends[-1] if settings.max_steps is None else min(ends[-1], settings.max_steps)
    return [min(end, limit) - min(begin, limit) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def _activations(model: nn.Module, x: Tensor) -> int:
    outputs = [c for c in trace(model, x) if c.site.side == "output" and not list(c.module.children())]
    return sum(c.shape[1:].numel() for c in outputs)


def _phase(method: Method, model: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> tuple[str, float]:
    """What a method costs, as text, and the seconds of a batch."""
    seconds = _seconds(method, model, pairs)
    x = pairs[0][0]
    passes = method.passes
    descents = f", {passes.steps} of them steps" if passes.steps > 1 else ""
    lines = [
        f"{type(method).__name__}, {passes.total} passes a batch ({passes.forward} forward{descents}; standard: 3)"
    ]
    noise = 0
    for sites in method.attached_sites():
        lines.append(str(sites))
        noise += 2 * sum(sites.shape(site).numel() for site in sites) * len(x)
    method.detach()
    # Weights, gradients and momentum; every activation saved once in the widest pass; a leaf and a perturbation a site.
    parameters = sum(p.numel() for p in model.parameters())
    held = 4 * (3 * parameters + _activations(model, x) * len(x) + noise)
    lines.append(f"memory    about {held / 2**20:,.0f} MiB, of which sites {4 * noise / 2**20:,.1f} MiB")
    lines.append(f"time      {seconds:.3g} s a batch here")
    return "\n".join(lines), seconds


def _seconds(method: Method, model: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> float:
    """The fastest of the timed batches, gradients included, no optimiser step."""
    model.train()
    times: list[float] = []
    for step, (x, y) in enumerate(pairs):
        if times and times[-1] > LONG:
            break
        start = time.perf_counter()
        with closing(iter(method.losses(model, x, y, generator=Stream(0, step)))) as losses:  # type: ignore[type-var]
            for loss in losses:
                AUTOGRAD(loss.loss if isinstance(loss, Partial) else loss)
        if x.is_cuda:
            torch.cuda.synchronize()
        model.zero_grad()
        times.append(time.perf_counter() - start)
    return min(times)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
