"""The training loop, on Lightning Fabric."""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from layerwise.core.arguments import named
from layerwise.core.checks import of_kind
from layerwise.core.contract import refuse_meta
from layerwise.core.driving import AUTOGRAD, Backward, Exact, Part, Partial, drive
from layerwise.core.layout import fastest, laid_out
from layerwise.core.modes import training_mode
from layerwise.core.shards import weights_of, whole
from layerwise.core.sites import unwrap
from layerwise.core.threat import ThreatModel
from layerwise.data import ImageData, rank_rows
from layerwise.data.custom import as_image_data
from layerwise.errors import ConfigError
from layerwise.methods.base import Method
from layerwise.models.weights import pack_tensors
from layerwise.training import fsdp
from layerwise.training.asked import asked
from layerwise.training.bare import Bare, suffices
from layerwise.training.canary import ENOUGH, check_hooks, compiling, eagerly
from layerwise.training.capture import Captured, capturing
from layerwise.training.engine import engine, quiet
from layerwise.training.epochs import end_epoch
from layerwise.training.first_batch import checked, first_images
from layerwise.training.metrics import Progress
from layerwise.training.monitor import DivergedError, NotFinite, explain, measured
from layerwise.training.phases import Phase, Phases
from layerwise.training.randomness import kept_random_states, seed_everything
from layerwise.training.ranks import survived, together, total
from layerwise.training.run import Run, nothing_half_made, plain, to_go_on
from layerwise.training.saving import keep, restore
from layerwise.training.session import FitResult, Place, Session, Watch
from layerwise.training.settings import Training
from layerwise.training.sync_norm import synchronised

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.utils.data import DataLoader, Dataset

logger = logging.getLogger("layerwise")


@named
def fit(
    model: nn.Module,
    method: Method,
    data: ImageData | Dataset[Any] | DataLoader[Any] | tuple[Tensor, Tensor],
    *,
    threat: ThreatModel | None = None,
    training: Training | None = None,
    run: str | os.PathLike[str] | None = None,
    phases: Sequence[Phase] = (),
    resume: bool = False,
    progress: Progress = True,
    config: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> FitResult:
    """Train a network with a method.

    The network is trained in place and left on the training device with the last weights, in the mode it came in; hooks, the method's
    fields and the global random states are then as before. Parts of a network in training mode that are in evaluation mode stay so
    (frozen batch norm). Only the training and the validation split are looked at.

    Args:
        model: pixels in [0, 1], shape (B, C, H, W), to logits (B, classes).
        method: one instance serves one network.
        data: what to train on: a data set, a torch Dataset or DataLoader (of which the dataset is taken), or images and labels.
        threat: what the network is trained against where the method names no radius, and looked at under on the validation images;
            None is what the method names, or the usual `ThreatModel()`.
        training: the settings; None is `Training()`.
        run: folder for metrics, checkpoints and weights; None writes nothing.
        phases: changes of the method over the epochs; their epochs add up to the run's.
        resume: go on with the run in `run`, or begin it.
        progress: a bar where a person watches (True), everywhere (`"force"`), or nowhere (False).
        config: what the run folder stores as its configuration, plain data; None describes the arguments, by which commands can
            evaluate and resume the run where `build_model` made the network and `load_data` the data.
        watch: gives numbers of your own about the network, which are logged after every look at the validation split.

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
    settings, raw, data = Training() if training is None else training, unwrap(model), as_image_data(data)
    refuse_meta(raw)
    of_kind("the method", method, Method, example="layerwise.SLAT()")
    of_kind("training", settings, Training, example="layerwise.Training(epochs=10)")
    of_kind("phases", phases, Sequence, example="[layerwise.Phase(epochs=5), layerwise.Phase(epochs=5, method=...)]")
    for phase in phases:
        of_kind("a phase", phase, Phase, example="layerwise.Phase(epochs=5)")
    if threat is not None:
        of_kind("threat", threat, ThreatModel, example="layerwise.ThreatModel(eps=8/255)")
    if run is not None:
        of_kind("run", os.fspath(run) if hasattr(run, "__fspath__") else run, str, example="'runs/mine'")
    against = threat or _only(method.threats().values())
    if threat is not None:
        method, phases = (
            method.under(threat),
            [p if p.method is None else replace(p, method=p.method.under(threat)) for p in phases],
        )
    if resume and run is None:
        raise ConfigError("resume=True needs the folder of the run; give run=...")
    job = Job(
        raw=raw,
        phases=Phases(method, phases, settings.epochs),
        data=data,
        settings=settings,
        threat=against,
        run=None if run is None else Path(run).expanduser(),
        resume=resume,
        progress=progress,
        config=asked(raw, data, method=method, threat=against, training=settings, phases=phases)
        if config is None
        else plain(config),
        process=os.getpid(),
        watch=watch,
    )
    with nothing_half_made(job.run), survived(partial(to_go_on, job.run)), quiet():
        found = engine(settings).launch(partial(_train, job=job))
    return found if isinstance(found, FitResult) else _brought_home(raw, *found)


def _only(threats: Iterable[ThreatModel]) -> ThreatModel:
    """The one threat model that a method names, or the usual one where it names none or several."""
    named = set(threats)
    return named.pop() if len(named) == 1 else ThreatModel()


@final
@dataclass(frozen=True, kw_only=True)
class Job:
    """The arguments of `fit` on their way into the processes, and the process they come from."""

    raw: nn.Module
    phases: Phases
    data: ImageData
    settings: Training
    threat: ThreatModel
    run: Path | None
    resume: bool
    progress: Progress
    config: Any
    process: int
    watch: Watch | None = None


@final
@dataclass(frozen=True)
class Loop:
    """What a step needs: Fabric, the session, and the network, optimiser and backward pass as Fabric has them."""

    fabric: Fabric
    session: Session
    model: Any
    optimizer: Any
    backward: Backward
    captured: Captured | None = None

    @property
    def sees(self) -> bool:
        """Whether looking at a number costs nothing: on the CPU, where no other rank has to look too and no step is recorded."""
        place = self.session.place
        return place.device.type == "cpu" and place.world == 1 and self.captured is None

    def unsynchronised(self, wanted: bool) -> AbstractContextManager[None]:
        """Where asked for, gradients are not reduced over ranks yet."""
        return self.fabric.no_backward_sync(self.model) if wanted and self.session.place.world > 1 else nullcontext()


def _train(fabric: Fabric, job: Job) -> FitResult | tuple[dict[str, Any], bytes, bytes | None]:
    """Train in one process; gives the result, or what can be carried to the process of the caller: fields, weights, average."""
    away = os.getpid() != job.process
    if away:
        for tensor in (*job.raw.parameters(), *job.raw.buffers()):
            tensor.data = tensor.data.clone()  # processes that were spawned share the memory of what they were given
    asked = job.raw
    if job.settings.strategy == fsdp.NAME:
        # There is no way back from a sharded network, and the caller's has to come out as one that can be used.
        job = replace(job, raw=copy.deepcopy(asked))
    with ExitStack() as stack:
        loop = prepared(fabric, job, stack)
        try:
            _run(loop)
        except NotFinite as bad:
            raise _diverged(loop, bad.step) from None
        result = loop.session.result()
        if (by := loop.session.interrupt.requested) is not None:
            raise KeyboardInterrupt(f"stopped by {by} after the last batch; the training is complete")
        if job.raw is not asked:
            _put_back(asked, weights_of(job.raw), fabric.device)
        if not away:
            return result
        # Neither frozen dataclasses nor tensors outlive this process.
        average = None if result.average is None else pack_tensors(result.average)
        return {**vars(result), "average": None}, pack_tensors(job.raw.state_dict()), average


def _brought_home(raw: nn.Module, fields: dict[str, Any], weights: bytes, average: bytes | None) -> FitResult:
    """The result and the weights of a network that was trained in other processes."""
    from safetensors.torch import load

    _put_back(raw, load(weights))
    return FitResult(**{**fields, "average": None if average is None else load(average)})


def _put_back(raw: nn.Module, state: dict[str, Tensor], device: torch.device | None = None) -> None:
    """The trained weights in the caller's network, which was not trained itself."""
    raw.to(device=device, dtype=next((v.dtype for v in state.values() if v.is_floating_point()), None))
    raw.load_state_dict(state)


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
    if not session.unusual:
        _descend(loop, method, x, y)
        return {}
    with (
        eagerly(session.settings.compile),
        measured(method.attached_sites(), wanted=session.measures) as sizes,
    ):
        _descend(loop, method, x, y)
    return sizes


def _descend(loop: Loop, method: Method, x: Tensor, y: Tensor) -> None:
    """One global batch."""
    session, sees = loop.session, loop.sees

    def seen(loss: Tensor, part: Part) -> None:
        session.observe(loss, part, later=sees)
        if sees and not math.isfinite(loss.item()):
            raise NotFinite(session.step)

    drive(
        method,
        loop.model,
        session.parts(x, y),
        step=partial(_step, loop),
        backward=loop.backward,
        seen=seen,
        within=loop.unsynchronised,
        settled=None if session.average is None else session.average.update,
    )


def _step(loop: Loop) -> None:
    """Clip and step."""
    session, limit = loop.session, loop.session.settings.clip_norm
    if limit is not None:
        session.grad_norm = whole(nn.utils.clip_grad_norm_(session.raw.parameters(), limit))
    elif session.logs or session.bank is not None:
        session.grad_norm = whole(
            nn.utils.get_total_norm(p.grad for p in session.raw.parameters() if p.grad is not None)
        )
    if not loop.sees and session.optimizer.defaults.get("fused"):
        # The fused kernels skip the step where this is 1: the weights then stay as they were before the loss went wrong.
        bad = session.totals.bad()
        session.optimizer.found_inf = total(bad) if session.shards.cut else bad  # type: ignore[attr-defined]
    if session.shards.cut:
        session.shards.take_gradients()
    loop.optimizer.step()
    session.shards.drop_gradients()


def _layout(settings: Training, raw: nn.Module, x: Tensor) -> torch.memory_format:
    """What `training.channels_last` means; shards of FSDP2 lie one after the other."""
    if settings.strategy == fsdp.NAME or not settings.channels_last:
        return torch.contiguous_format
    return torch.channels_last if settings.channels_last is True else fastest(raw, x)


def prepared(fabric: Fabric, job: Job, stack: ExitStack) -> Loop:
    """Put everything in its place, in the order that matters: device, sites, compile, wrapping."""
    settings, raw, device = job.settings, job.raw, fabric.device
    if job.data.value_range is None and (clipping := [m for m in job.phases.methods if m.perturbs_input]):
        raise ConfigError(
            f"{type(clipping[0]).__name__} moves inputs within [0, 1], and the values of {job.data.name} have no such range; scale "
            "them to [0, 1] first (layerwise.from_tensors), or train with a method that leaves the input alone, such as Standard"
        )
    if settings.strategy == fsdp.NAME:
        fsdp.check(job.phases.methods)
    dtype = torch.float64 if settings.precision == "64-true" else torch.float32
    place = Place(device, dtype, torch.contiguous_format, fabric.global_rank, fabric.world_size, fabric.autocast)
    run = None if job.run is None else Run(job.run, writes=place.rank == 0)
    if run is not None:
        begin = partial(run.begin, job.config, resume=job.resume, device=device)
        stack.callback(run.release)
        failure = together(begin, rank=place.rank, device=device, alone=True)
        if failure is not None:
            raise failure
    stack.enter_context(kept_random_states(device))
    seed_everything(settings.seed, place.rank)
    stack.enter_context(training_mode(raw))
    raw.to(device=device, dtype=dtype if settings.precision == "64-true" else None)
    data = job.data.to(device)
    x, y = first_images(raw, data, place)
    place = replace(place, layout=_layout(settings, raw, x))
    stack.enter_context(laid_out(raw, place.layout, keep=settings.channels_last is True))
    x = x.contiguous(memory_format=place.layout)
    with fabric.autocast():
        said, join = checked(raw, job.phases.methods, x, y, data=data, settings=settings, world=place.world)
    stack.enter_context(job.phases.attached(raw, x))
    if settings.batch_norm == "synchronised":
        stack.enter_context(synchronised(raw))
    stack.enter_context(compiling(settings.compile))
    model: Any = torch.compile(raw, backend=settings.compile_backend) if settings.compile else raw
    bare = suffices(fabric, settings)
    model, inner, optimizer, shards = _wrapped(fabric, Bare(model) if bare else model, raw, settings)
    session = Session(
        raw,
        job.phases,
        inner,
        settings=settings,
        threat=job.threat,
        data=data,
        place=place,
        run=run,
        shards=shards,
        join_last=join,
    )
    session.watch = job.watch
    stack.callback(session.close)
    model.register_forward_hook(session.note_logits)
    restore(session)
    if session.done and place.rank == 0:
        logger.info("%s is complete after %s batches: there is nothing left to train", job.run, session.step)
    for sentence in said:
        session.say(sentence)
    sites = [each for method in job.phases.methods for each in method.attached_sites()]
    if sites and not session.done:
        x, y = next(session.images(start=0))
        # Compiled for the shape that training has; the bare network is as good with a few images.
        first = rank_rows(len(x), (0, settings.accumulate)) if settings.compile else slice(0, ENOUGH)
        for sentence in check_hooks(model, raw, sites, x[first], y[first]):
            session.say(sentence)
    raw.zero_grad(set_to_none=True)
    session.show(job.progress)
    stack.enter_context(session.interrupt)
    return Loop(
        fabric,
        session,
        model,
        optimizer,
        AUTOGRAD if bare else Exact(fabric.backward),
        None if shards.cut else capturing(session),
    )


def _wrapped(
    fabric: Fabric, model: Any, raw: nn.Module, settings: Training
) -> tuple[Any, torch.optim.Optimizer, Any, fsdp.Shards]:
    """The network as Fabric wraps it, the optimiser, bare and wrapped, and what it moves."""
    if settings.strategy == fsdp.NAME:
        model = fsdp.set_up(fabric, model)
    shards = fsdp.Shards(raw)
    inner = settings.optimizer.build(shards.parts, fabric.device)
    # Fabric's wrapper wants the cut parameters themselves, for which torch has no fused kernels.
    as_they_are = shards.cut or isinstance(model, Bare)
    model, optimizer = (model, inner) if as_they_are else fabric.setup(model, inner)
    return model, inner, optimizer, shards


def _diverged(loop: Loop, step: int) -> DivergedError:
    """Make the passes of the bad batch again and say what went wrong first."""
    session, fabric = loop.session, loop.fabric
    method, raw = session.method, session.raw
    session.batch = step - session.epoch * session.per_epoch
    if not loop.sees and method.state_dict():
        # Found late: what the method carries over has been spoilt by the batches since.
        method.load_state_dict({})
    x, y = next(session.images())

    if session.place.world > 1 and (session.shards.cut or session.settings.batch_norm == "synchronised"):
        return _sentence(
            loop, "which layer was the first is not looked for where processes share their passes (devices=1 tells)"
        )

    def again() -> Iterator[Tensor]:
        for part in session.parts(x, y):
            for item in method.losses(raw, part.x, part.y, generator=part.source):
                yield item.loss if isinstance(item, Partial) else item

    with fabric.autocast():
        return _sentence(loop, explain(raw, x, method.attached_sites(), again()))


def _sentence(loop: Loop, reason: str) -> DivergedError:
    session = loop.session
    where = f"the loss is not finite at batch {session.batch + 1} of epoch {session.epoch + 1}"
    return DivergedError(
        f"{where}: {reason}; lower the learning rate (peak {session.settings.optimizer.lr:g}), set training.clip_norm, or check the "
        "method's step sizes"
    )
