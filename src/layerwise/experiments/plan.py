"""What an experiment would do, without doing it: sites, passes, memory and estimated time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from itertools import accumulate, chain, islice

import torch
from torch import Tensor, nn

from layerwise.core.cost import duration
from layerwise.core.driving import Part, drive
from layerwise.core.random import Stream
from layerwise.data import ImageData, batches, num_batches
from layerwise.experiments.experiment import (
    Experiment,
    best_device,
    build_model,
    check_source,
    load_data,
    make_phases,
)
from layerwise.methods import Method
from layerwise.methods.sources import with_networks
from layerwise.training.phases import Phases

TIMED_BATCHES = 2
LONG = 5.0
"""Seconds of a batch that is timed only once."""

FEW = 4
"""Images whose memory is counted; it grows with their number."""


def plan(experiment: Experiment) -> str:
    """A text that says what would happen; a batch or two of each phase are run on a copy of the network to time them.

    The time is measured on this machine's accelerator if there is one, else on its processor, in float32 and eagerly; the looks at the
    validation split and the evaluation come on top.
    """
    data, settings = load_data(experiment.data), experiment.training
    device = best_device()
    model = build_model(experiment.model, data).to(device)
    size = min(settings.batch_size, len(data.train))
    pairs = list(islice(batches(data.train, size, device=device), TIMED_BATCHES))
    method = experiment.method.under(experiment.threat).among(data.num_classes)
    if experiment.model.start is not None:
        check_source(experiment.model.start, "model.start")

    def network(source: str) -> nn.Module:
        check_source(source, "method")
        return model  # taken to cost what that one costs: a plan trains and loads nothing

    phases = Phases(with_networks(method, network), make_phases(experiment), settings.epochs)
    steps = _steps(experiment, data, phases)
    lines = [
        f"data      {data.name}: {len(data.train):,} to train on, {len(data.validation):,} to choose by, {len(data.test):,} to evaluate on",
        f"model     {experiment.model.name}: {sum(p.numel() for p in model.parameters()):,} parameters",
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
    lines += ["", f"time      about {duration(total)} in all"]
    return "\n".join(lines)


def _steps(experiment: Experiment, data: ImageData, phases: Phases) -> list[int]:
    """Batches of each phase."""
    settings = experiment.training
    an_epoch = num_batches(data.train, settings.batch_size, drop_last=settings.drop_last)
    ends = [an_epoch * epochs for epochs in accumulate(p.epochs for p in phases.phases)]
    limit = ends[-1] if settings.max_steps is None else min(ends[-1], settings.max_steps)
    return [min(end, limit) - min(begin, limit) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def _phase(method: Method, model: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> tuple[str, float]:
    """What a method costs, as text, and the seconds of a batch."""
    seconds = _seconds(method, model, pairs)
    x, y = pairs[0]
    rows = min(FEW, len(x))
    kept = kept_bytes(model, lambda: _train(method, model, x[:rows], y[:rows]))
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
    # Weights, gradients and momentum; what backward passes keep; a leaf and a perturbation a site.
    weights = 4 * 3 * sum(p.numel() for p in model.parameters())
    held = weights + kept * len(x) // rows + 4 * noise
    lines.append(f"memory    about {held / 2**20:,.0f} MiB, of which sites {4 * noise / 2**20:,.1f} MiB")
    lines.append(f"time      {seconds:.3g} s a batch here")
    return "\n".join(lines), seconds


def _seconds(method: Method, model: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> float:
    """The fastest of the timed batches, gradients included, no optimiser step."""
    times: list[float] = []
    for step, (x, y) in enumerate(pairs):
        if times and times[-1] > LONG:
            break
        start = time.perf_counter()
        _train(method, model, x, y, step=step)
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def _train(method: Method, model: nn.Module, x: Tensor, y: Tensor, *, step: int = 0) -> None:
    """A batch without the optimiser's step."""
    model.train()
    drive(method, model, [Part(x, y, Stream(0, step), 1.0)], step=model.zero_grad)


def kept_bytes(model: nn.Module, run: Callable[[], None]) -> int:
    """The most bytes that autograd keeps for backward passes at any time while `run` runs, the model's own tensors left out."""
    own = {t.untyped_storage().data_ptr() for t in chain(model.parameters(), model.buffers())}
    count: Counter[int] = Counter()
    now = peak = 0

    def pack(value: Tensor) -> Tensor | _Kept:
        nonlocal now, peak
        storage = value.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key in own:
            return value
        now += 0 if count[key] else size
        count[key] += 1
        peak = max(peak, now)
        return _Kept(value, lambda: free(key, size))

    def free(key: int, size: int) -> None:
        nonlocal now
        count[key] -= 1
        now -= 0 if count[key] else size

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.value if isinstance(kept, _Kept) else kept):
        run()
    return peak


class _Kept:
    """A tensor that autograd keeps; tells when it is let go."""

    def __init__(self, value: Tensor, freed: Callable[[], None]) -> None:
        self.value, self.freed = value, freed

    def __del__(self) -> None:
        self.freed()
