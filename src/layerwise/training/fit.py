"""The training loop, on Lightning Fabric; no other file knows Fabric."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from layerwise.data import ImageData, batches, rank_rows
from layerwise.errors import ConfigError, LayerwiseError
from layerwise.methods.base import Method, Partial
from layerwise.methods.deep_defense import evaluation
from layerwise.sites import unwrap
from layerwise.training.canary import ENOUGH, check_hooks, compiling, eagerly
from layerwise.training.capture import Captured, capturing
from layerwise.training.checkpoint import pack_tensors
from layerwise.training.epochs import end_epoch
from layerwise.training.metrics import Progress
from layerwise.training.monitor import DivergedError, NotFinite, explain, measured
from layerwise.training.phases import Phase, Phases
from layerwise.training.randomness import kept_random_states, seed_everything
from layerwise.training.ranks import together
from layerwise.training.run import Run, nothing_half_made, plain
from layerwise.training.saving import keep, restore
from layerwise.training.session import FitResult, Place, Session
from layerwise.training.settings import Training

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fit(
    model: nn.Module,
    method: Method,
    data: ImageData,
    *,
    training: Training | None = None,
    run: str | os.PathLike[str] | None = None,
    phases: Sequence[Phase] = (),
    resume: bool = False,
    progress: Progress = True,
    config: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train a network with a method.

    The network is trained in place and left on the training device with the last weights, in the mode it came in; hooks, the method's
    fields and the global random states are then as before. Parts of a network in training mode that are in evaluation mode stay so
    (frozen batch norm). Only the training and the validation split are looked at.

    Args:
        model: pixels in [0, 1], shape (B, C, H, W), to logits (B, classes).
        method: one instance serves one network.
        data: what to train on.
        training: the settings; None is `Training()`.
        run: folder for metrics, checkpoints and weights; None writes nothing.
        phases: changes of the method over the epochs; their epochs add up to the run's.
        resume: go on with the run in `run`, or begin it.
        progress: a bar where a person watches (True), everywhere (`"force"`), or nowhere (False).
        config: what the run folder stores as its configuration, plain data; None describes the arguments.

    Returns:
        What happened; the weights are in `model` and in the run folder, see `load_weights`.

    Raises:
        ConfigError: settings that cannot work, or that differ from those of the run to resume.
        CheckpointError: the folder is taken, its checkpoints are damaged, or the disk is full.
        DivergedError: a loss is not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with everything saved.

    >>> from layerwise import data, methods, models
    >>> net = models.build("mlp", num_classes=10, shape=(1, 8, 8))
    >>> settings = Training(epochs=1, max_steps=3, eval_steps=2, accelerator="cpu")
    >>> fit(net, methods.FGSM(eps=0.1), data.load("digits"), training=settings, progress=False).steps
    3
    """
    settings, raw = training or Training(), unwrap(model)
    if resume and run is None:
        raise ConfigError("resume=True needs the folder of the run; give run=...")
    asked = {"model": type(raw).__name__, "data": data.name, "method": method, "training": settings, "phases": phases}
    job = Job(
        raw=raw,
        phases=Phases(method, phases, settings.epochs),
        data=data,
        settings=settings,
        run=None if run is None else Path(run),
        resume=resume,
        progress=progress,
        config=plain(asked if config is None else config),
        process=os.getpid(),
    )
    with nothing_half_made(job.run):
        found = engine(settings).launch(partial(_train, job=job))
    return found if isinstance(found, FitResult) else _brought_home(raw, *found)


@final
@dataclass(frozen=True, kw_only=True)
class Job:
    """The arguments of `fit` on their way into the processes, and the process they come from."""

    raw: nn.Module
    phases: Phases
    data: ImageData
    settings: Training
    run: Path | None
    resume: bool
    progress: Progress
    config: Any
    process: int


@final
@dataclass(frozen=True)
class Loop:
    """What a step needs: Fabric, the session, and the network and optimiser as Fabric wraps them."""

    fabric: Fabric
    session: Session
    model: Any
    optimizer: Any
    captured: Captured | None = None

    @property
    def sees(self) -> bool:
        """Whether looking at a number costs nothing: on the CPU, where no other rank has to look too and no step is recorded."""
        place = self.session.place
        return place.device.type == "cpu" and place.world == 1 and self.captured is None


def _train(fabric: Fabric, job: Job) -> FitResult | tuple[dict[str, Any], bytes, bytes | None]:
    """Train in one process; gives the result, or what can be carried to the process of the caller: fields, weights, average."""
    away = os.getpid() != job.process
    if away:
        for tensor in (*job.raw.parameters(), *job.raw.buffers()):
            tensor.data = tensor.data.clone()  # processes that were spawned share the memory of what they were given
    with ExitStack() as stack:
        loop = prepared(fabric, job, stack)
        try:
            _run(loop)
        except NotFinite as bad:
            raise _diverged(loop, bad.step) from None
        result = loop.session.result()
        if (by := loop.session.interrupt.requested) is not None:
            raise KeyboardInterrupt(f"stopped by {by} after the last batch; the training is complete")
        if not away:
            return result
        # Neither frozen dataclasses nor tensors outlive this process.
        average = None if result.average is None else pack_tensors(result.average)
        return {**vars(result), "average": None}, pack_tensors(job.raw.state_dict()), average


def _brought_home(raw: nn.Module, fields: dict[str, Any], weights: bytes, average: bytes | None) -> FitResult:
    """The result and the weights of a network that was trained in other processes."""
    from safetensors.torch import load

    state: dict[str, Tensor] = load(weights)
    raw.to(next((v.dtype for v in state.values() if v.is_floating_point()), None))
    raw.load_state_dict(state)
    return FitResult(**{**fields, "average": None if average is None else load(average)})


def _run(loop: Loop) -> None:
    """The loop."""
    session = loop.session
    while not session.done:
        method = session.begin_epoch()
        for x, y in session.images():
            session.end_batch(x, y, advance(loop, method, x, y))
            if session.inside:
                keep(session)
        end_epoch(session, method)
        keep(session)


def advance(loop: Loop, method: Method, x: Tensor, y: Tensor) -> dict[str, dict[str, Tensor]]:
    """One batch, replayed or eagerly; gives the sizes of the perturbations where they are measured."""
    session = loop.session
    session.set_rate()
    if loop.captured is not None and loop.captured(partial(_descend, loop, method), method, x, y):
        return {}
    with (
        eagerly(session.settings.compile and session.unusual),
        measured(method.attached_sites(), wanted=session.measures) as sizes,
    ):
        _descend(loop, method, x, y)
    return sizes


def _descend(loop: Loop, method: Method, x: Tensor, y: Tensor) -> None:
    """One global batch: its micro-batches' generators advance in lockstep, and a round of plain losses ends with a step."""
    fabric, session, model = loop.fabric, loop.session, loop.model
    parts = session.parts(x, y)
    sources = [method.losses(model, p.x, p.y, backward=fabric.backward, generator=p.source) for p in parts]
    pending = stepped = False
    try:
        while True:
            round_: set[type] = set()
            for index, (part, source) in enumerate(zip(parts, sources, strict=True)):
                with fabric.no_backward_sync(model, enabled=index + 1 < len(parts)):
                    item = next(source, None)
                    round_.add(Partial if isinstance(item, Partial) else type(item))
                    if item is None:
                        continue
                    loss = item.loss if isinstance(item, Partial) else item
                    session.observe(loss, part)
                    if loop.sees and not math.isfinite(session.totals.sums[0]):
                        raise NotFinite(session.step)
                    # Before the next generator moves: a recomputation in this backward has to find this one's noise.
                    fabric.backward(loss * part.share)
            if len(round_) > 1:
                raise LayerwiseError(f"{type(method).__name__}.losses yields differently for the parts of one batch")
            if stepped and session.average is not None:
                # Not right after the step: what a method does to the weights then belongs to them (Parseval's retraction, AWP's way back).
                session.average.update()
            if round_ == {type(None)}:
                break
            pending, stepped = round_ == {Partial}, round_ != {Partial}
            if stepped:
                _step(loop)
    finally:
        for source in sources:
            source.close()  # type: ignore[attr-defined]
    if pending:
        raise LayerwiseError(f"{type(method).__name__}.losses ends with a Partial; end with a loss to step on")


def _step(loop: Loop) -> None:
    """Clip and step."""
    fabric, session, limit = loop.fabric, loop.session, loop.session.settings.clip_norm
    if limit is not None:
        norm = fabric.clip_gradients(loop.model, loop.optimizer, max_norm=limit, error_if_nonfinite=False)
        session.grad_norm = session.grad_norm if norm is None else norm
    elif session.logs or session.bank is not None:
        session.grad_norm = nn.utils.get_total_norm(p.grad for p in session.raw.parameters() if p.grad is not None)
    if not loop.sees:
        # The fused kernels skip the step where this is 1: the weights then stay as they were before the loss went wrong.
        session.optimizer.found_inf = session.totals.bad()  # type: ignore[attr-defined]
    loop.optimizer.step()
    loop.optimizer.zero_grad(set_to_none=True)


def prepared(fabric: Fabric, job: Job, stack: ExitStack) -> Loop:
    """Put everything in its place, in the order that matters: device, sites, compile, wrapping."""
    settings, raw, device = job.settings, job.raw, fabric.device
    if job.data.value_range is None and (clipping := [m for m in job.phases.methods if m.perturbs_input]):
        raise ConfigError(
            f"{type(clipping[0]).__name__} moves inputs within [0, 1], and the values of {job.data.name} have no such range; scale "
            "them to [0, 1] first (layerwise.from_tensors), or train with a method that leaves the input alone, such as Standard"
        )
    dtype = torch.float64 if settings.precision == "64-true" else torch.float32
    place = Place(device, dtype, fabric.global_rank, fabric.world_size, fabric.autocast)
    run = None if job.run is None else Run(job.run, writes=place.rank == 0)
    if run is not None:
        begin = partial(run.begin, job.config, resume=job.resume, device=device)
        stack.callback(run.release)
        failure = together(begin, rank=place.rank, device=device, alone=True)
        if failure is not None:
            raise failure
    stack.enter_context(kept_random_states(device))
    seed_everything(settings.seed, place.rank)
    stack.enter_context(_training(raw))
    raw.to(device=device, dtype=dtype if settings.precision == "64-true" else None)
    if settings.channels_last:
        raw.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = job.data.to(device)
    stack.enter_context(job.phases.attached(raw, _example(raw, data, place, settings)))
    stack.enter_context(compiling(settings.compile))
    model: Any = torch.compile(raw, backend=settings.compile_backend) if settings.compile else raw
    inner = settings.optimizer.build(raw.parameters(), device)
    model, optimizer = fabric.setup(model, inner)
    session = Session(raw, job.phases, inner, settings=settings, data=data, place=place, run=run)
    stack.callback(session.close)
    model.register_forward_hook(session.note_logits)
    restore(session)
    sites = [each for method in job.phases.methods for each in method.attached_sites()]
    if sites and not session.done:
        x, y = next(session.images(start=0))
        # Compiled for the shape that training has; the bare network is as good with a few images.
        first = rank_rows(len(x), (0, settings.accumulate)) if settings.compile else slice(0, ENOUGH)
        for sentence in check_hooks(model, raw, sites, x[first], y[first]):
            session.say(sentence)
    inner.zero_grad(set_to_none=True)
    session.show(job.progress)
    stack.enter_context(session.interrupt)
    return Loop(fabric, session, model, optimizer, capturing(session))


def _example(raw: nn.Module, data: ImageData, place: Place, settings: Training) -> Tensor:
    """Two training images that the network has been seen to take."""
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    found = next(batches(data.train, 2, device=place.device, memory_format=layout), None)
    if found is None:
        raise ConfigError(f"the data set {data.name} has no training images")
    x = found[0].to(place.dtype)
    try:
        with evaluation(raw), torch.no_grad():
            logits = raw(x)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the network does not take images of shape {data.shape}: {reason}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < data.num_classes:
        found_shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"the network gives {found_shape} for {len(x)} images; for the {data.num_classes} classes of {data.name} it has to give "
            f"logits of shape ({len(x)}, {data.num_classes})"
        )
    return x


@contextmanager
def _training(raw: nn.Module) -> Iterator[None]:
    """Training mode, unless the network is in it already: then each module keeps its own. All modes restored."""
    modes = [(module, module.training) for module in raw.modules()]
    if not raw.training:
        raw.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _diverged(loop: Loop, step: int) -> DivergedError:
    """Make the passes of the bad batch again and say what went wrong first."""
    session, fabric = loop.session, loop.fabric
    method, raw = session.method, session.raw
    session.batch = step - session.epoch * session.per_epoch
    if not loop.sees and method.state_dict():
        # Found late: what the method carries over has been spoilt by the batches since.
        method.load_state_dict({})
    x, y = next(session.images())

    def again() -> Iterator[Tensor]:
        for part in session.parts(x, y):
            for item in method.losses(raw, part.x, part.y, generator=part.source):
                yield item.loss if isinstance(item, Partial) else item

    with fabric.autocast():
        reason = explain(raw, x, method.attached_sites(), again())
    where = f"the loss is not finite at batch {session.batch + 1} of epoch {session.epoch + 1}"
    return DivergedError(
        f"{where}: {reason}; lower the learning rate (peak {session.settings.optimizer.lr:g}), set training.clip_norm, or check the "
        "method's step sizes"
    )


def engine(settings: Training) -> Fabric:
    """Fabric as the settings say.

    Raises:
        ConfigError: this machine does not have what they ask for.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    talk = logging.getLogger("lightning_fabric.utilities.rank_zero")
    level = talk.level
    try:
        talk.setLevel(logging.WARNING)  # it announces the precision that was asked for
        with warnings.catch_warnings():
            # Training on the CPU of a machine with a GPU is the user's choice.
            warnings.filterwarnings("ignore", message=".*available but not used.*")
            fabric = Fabric(
                accelerator=settings.accelerator,
                devices=settings.devices,
                num_nodes=settings.num_nodes,
                strategy=settings.strategy,
                precision=settings.precision,
            )
    except (ImportError, ValueError, RuntimeError, TypeError, MisconfigurationException) as error:
        raise ConfigError(f"training cannot start as asked: {str(error).splitlines()[0]}") from error
    finally:
        talk.setLevel(level)
    # Fabric rounds the inputs of a mixed-precision model to bf16, whose steps near white are a whole grey level wide, and the outputs of
    # a double-precision one to float32; ours have the right type already.
    precision: Any = fabric.strategy.precision
    precision.convert_input = _unchanged
    if settings.precision == "64-true":
        precision.convert_output = _unchanged
    return fabric


def _unchanged(value: Any) -> Any:
    return value
