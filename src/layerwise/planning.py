"""What an experiment would do, without doing it: sites, passes, memory and estimated time."""

from __future__ import annotations

import time
from contextlib import closing
from itertools import islice

import torch

from layerwise.data import batches, num_batches
from layerwise.experiment import Experiment, build_model, load_data, make_phases
from layerwise.methods import Method, Partial
from layerwise.probe import AUTOGRAD
from layerwise.random import Stream
from layerwise.tracing import trace

TIMED_BATCHES = 2


def plan(experiment: Experiment) -> str:
    """A text that says what would happen; two batches are run on a copy of the network to time them.

    The time is measured on this machine's processor or, if there is one, its accelerator, in float32 and eagerly.
    """
    data = load_data(experiment.data)
    settings = experiment.training
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(experiment.model, data).to(device)
    size = min(settings.batch_size, len(data.train))
    pairs = [(x, y) for x, y in islice(batches(data.train, size, device=device), TIMED_BATCHES)]
    x = pairs[0][0]
    parameters = sum(p.numel() for p in model.parameters())
    activations = sum(
        c.shape[1:].numel() for c in trace(model, x) if c.site.side == "output" and not list(c.module.children())
    )
    steps = num_batches(data.train, settings.batch_size, drop_last=settings.drop_last) * settings.epochs
    if settings.max_steps is not None:
        steps = min(steps, settings.max_steps)
    lines = [
        f"data      {data.name}: {len(data.train):,} to train on, {len(data.validation):,} to choose by, {len(data.test):,} to judge",
        f"model     {experiment.model.name}: {parameters:,} parameters, {activations:,} activations an image",
        f"training  {settings.epochs} epochs, {steps:,} batches of {size}",
    ]
    for title, method in _methods(experiment):
        lines.append(f"\n{title}: {type(method).__name__}, {method.passes.total} passes a batch ({method.passes})")
        seconds = _seconds(method, model, pairs)
        noise = 0
        for sites in method.attached_sites():
            lines.append(str(sites))
            noise += 2 * sum(sites.shape(site).numel() for site in sites) * size
        # Weights, gradients and momentum; every activation saved once in the widest pass; a leaf and a perturbation a site.
        total = 4 * (3 * parameters + activations * size + noise)
        lines.append(f"memory    about {total / 2**20:,.0f} MiB, of which sites {4 * noise / 2**20:,.1f} MiB")
        lines.append(
            f"time      {seconds:.3g} s a batch here, about {_duration(seconds * steps)} for {steps:,} batches"
        )
        method.detach()
    return "\n".join(lines)


def _methods(experiment: Experiment) -> list[tuple[str, Method]]:
    """The method, and those that phases put in its place."""
    others = [
        (f"phase {i}", phase.method) for i, phase in enumerate(make_phases(experiment)) if phase.method is not None
    ]
    return [("method", experiment.method), *others]


def _seconds(method: Method, model: torch.nn.Module, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Median-free but honest: the fastest of the timed batches, gradients included, no optimiser step."""
    model.train()
    times = []
    for step, (x, y) in enumerate(pairs):
        start = time.perf_counter()
        with closing(iter(method.losses(model, x, y, generator=Stream(0, step)))) as losses:  # type: ignore[type-var]
            for loss in losses:
                AUTOGRAD(loss.loss if isinstance(loss, Partial) else loss)
        model.zero_grad()
        times.append(time.perf_counter() - start)
    return min(times)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
