"""Captured steps: a whole training step recorded once on the device and replayed, so that no kernel waits for Python.

What is recorded is what a step launches, with the memory that it uses. So the batch is copied into tensors that stay, whatever a method
keeps from batch to batch is copied back into tensors that stay, rates and counts are tensors, and every draw has a generator of its own
that gets the step's seed before each replay. What decides on the host - numbers read back, fields that change, Python's random numbers -
cannot be recorded; a rehearsal finds it out, says so once, and the method runs eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from layerwise.core.random import Bank
from layerwise.errors import CaptureError, ConfigError
from layerwise.methods.base import Method
from layerwise.training.canary import eagerly
from layerwise.training.randomness import kept_random_states, random_states
from layerwise.training.session import Session

WARM_UP = 2
"""Steps on a side stream that must not wait for the device, after one that may (it compiles)."""

Step = Callable[[Tensor, Tensor], None]
"""Descends one batch."""


class Recorder(Protocol):
    """What records a step."""

    def warm_up(self, step: Callable[[], None]) -> None:
        """Run the step a few times.

        Raises:
            CaptureError: it waits for the device.
        """

    def record(self, step: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        """Record the step, whose random numbers come from `generators` and PyTorch's own; gives what replays it."""


@final
class CudaGraphs:
    """CUDA's own recorder."""

    def warm_up(self, step: Callable[[], None]) -> None:
        """See `Recorder.warm_up`."""
        mode = torch.cuda.get_sync_debug_mode()
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side):
                step()
                torch.cuda.set_sync_debug_mode("error")
                for _ in range(WARM_UP):
                    step()
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            raise CaptureError("it waits for the device") from error
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            current.wait_stream(side)

    def record(self, step: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        """See `Recorder.record`."""
        torch.cuda.empty_cache()  # the graph has memory of its own
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        # Threads that read data may allocate pinned memory meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
        return graph.replay


def recorder_on(device: torch.device) -> Recorder | None:
    """What records steps on a device, if anything does."""
    return CudaGraphs() if device.type == "cuda" else None


def capturing(session: Session) -> Captured | None:
    """Captured steps as the settings say, or None.

    Raises:
        ConfigError: they are asked for where there are none.
    """
    wanted, place = session.settings.capture, session.place
    recorder = recorder_on(place.device) if wanted else None
    if not wanted or (recorder is not None and place.world == 1):
        return None if recorder is None else Captured(session, recorder)
    why = f"on {place.device.type}" if recorder is None else f"in {place.world} processes"
    if wanted != "auto":
        raise ConfigError(f"steps are captured on one CUDA device, and this run is {why}; type training.capture=auto")
    if recorder is not None:
        session.say(f"steps are not captured: they are on one device, and this run is {why}")
    return None


@final
@dataclass(frozen=True)
class _Recording:
    """A recorded step: what it took as constant, its memory, and what the host does at a replay."""

    key: Any
    x: Tensor
    y: Tensor
    bank: Bank
    registers: dict[str, Tensor]
    grad_norm: Tensor
    rows: int
    replay: Callable[[], None]


@final
class Captured:
    """Replays steps, recording them where they are new; the newest recording is kept.

    Args:
        session: of the run.
        recorder: of its device.
    """

    def __init__(self, session: Session, recorder: Recorder) -> None:
        self.session, self.recorder = session, recorder
        self.recording: _Recording | None = None
        self.refused: set[type[Method]] = set()

    def __call__(self, step: Step, method: Method, x: Tensor, y: Tensor) -> bool:
        """Do a batch by replay, if it can be; False leaves it to be done eagerly.

        Args:
            step: does a batch with this method.
            method: what trains.
            x: images, shape (B, ...).
            y: labels, shape (B,).
        """
        session = self.session
        if session.unusual or type(method) in self.refused:
            return False
        key = (settings_of(method), x.shape, x.dtype, x.stride(), y.shape, y.dtype)
        if self.recording is None or self.recording.key != key:
            self.recording = None  # its memory is free for the next one
            try:
                self.recording = self._recorded(step, method, x, y, key)
            except CaptureError as error:
                self.refused.add(type(method))
                session.say(f"steps of {type(method).__name__} are not captured: {error}; they run eagerly")
                return False
        if not _put_back(method, self.recording.registers):
            return False
        self._replay(self.recording, x, y)
        return True

    def _replay(self, recording: _Recording, x: Tensor, y: Tensor) -> None:
        session = self.session
        recording.x.copy_(x)
        recording.y.copy_(y)
        recording.bank.seed(session.settings.seed, session.step)
        recording.replay()
        session.totals.rows += recording.rows
        session.grad_norm = recording.grad_norm

    def _recorded(self, step: Step, method: Method, x: Tensor, y: Tensor, key: Any) -> _Recording:
        """Rehearse, warm up and record; everything is then as before.

        Raises:
            CaptureError: the step cannot be recorded.
        """
        if method.second_order:
            raise CaptureError("it differentiates gradients")
        session, bank = self.session, Bank()
        x, y = x.clone(), y.clone()
        method.load_state_dict({name: value.clone() for name, value in method.state_dict().items()})
        registers = method.state_dict()
        rows = session.totals.rows

        def whole() -> None:
            bank.seed(session.settings.seed, session.step)
            step(x, y)
            if not _put_back(method, registers):
                raise CaptureError("what it keeps from batch to batch changes its shape")

        def recorded() -> None:
            step(x, y)
            _put_back(method, registers)

        session.bank = bank
        try:
            with kept_random_states(session.place.device), _kept(session, method, registers) as restore:
                with _rehearsal(session, method):
                    whole()
                rows = session.totals.rows - rows
                self.recorder.warm_up(whole)
                restore()
                bank.seed(session.settings.seed, session.step)
                with _capturable(session.optimizer):
                    replay = self.recorder.record(recorded, bank.generators)
                norm = session.grad_norm
        finally:
            session.bank = None
        return _Recording(key, x, y, bank, registers, norm, rows, replay)


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Adam refuses to be recorded without this flag, and complains about eager steps with it; its fused kernels do not need it."""
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    try:
        for group in groups:
            group["capturable"] = True
        yield
    finally:
        for group in groups:
            group["capturable"] = False


def _put_back(method: Method, registers: Mapping[str, Tensor]) -> bool:
    """What the method keeps now, in the tensors that stay; False if it does not fit in them."""
    now = method.state_dict()
    if now.keys() != registers.keys():
        return False
    moved = [(registers[name], value) for name, value in now.items() if value is not registers[name]]
    moved = [(ours, value) for ours, value in moved if value.data_ptr() != ours.data_ptr()]
    if any(ours.shape != value.shape or ours.dtype != value.dtype for ours, value in moved):
        return False
    for ours, value in moved:
        ours.copy_(value)
    if moved:
        method.load_state_dict(dict(registers))
        return all(value.data_ptr() == registers[name].data_ptr() for name, value in method.state_dict().items())
    return True


@contextmanager
def _kept(session: Session, method: Method, registers: Mapping[str, Tensor]) -> Iterator[Callable[[], None]]:
    """All that a step changes, put back afterwards, in place; gives what puts it back in between."""
    live, fields = _changing(session, registers), [(vars(part), _numbers(part)) for part in _nested(method)]
    values = [v.detach().clone() for v in live]
    rows, norm, logits = session.totals.rows, session.grad_norm, session.logits

    @torch.no_grad()
    def restore() -> None:
        if len(_changing(session, registers)) != len(live):
            raise CaptureError("the optimiser makes new state in it")
        for v, value in zip(live, values, strict=True):
            v.copy_(value)
        session.totals.rows = rows
        session.optimizer.zero_grad(set_to_none=True)
        for now, before in fields:
            now.update(before)

    try:
        yield restore
    finally:
        session.grad_norm, session.logits = norm, logits
        with torch.no_grad():
            restore()


def _nested(method: Method | None) -> Iterator[Method]:
    """The method, its base, that one's base, ..."""
    while isinstance(method, Method):
        yield method
        method = getattr(method, "base", None)


def _numbers(method: Method) -> dict[str, Any]:
    """Attributes that are no tensors, modules or containers."""
    return {k: v for k, v in vars(method).items() if v is None or isinstance(v, bool | int | float | str)}


def _changing(session: Session, registers: Mapping[str, Tensor]) -> list[Tensor]:
    """The tensors that a step changes."""
    optimizer = [v for state in session.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    average = [] if session.average is None else [*session.average.values.values(), session.average.count]
    own = [*session.raw.parameters(), *session.raw.buffers(), session.totals.sums, session.totals.good]
    return [*own, *optimizer, *average, *registers.values()]


@contextmanager
def _rehearsal(session: Session, method: Method) -> Iterator[None]:
    """A step inside is watched for what the host decides.

    Raises:
        CaptureError: it decides something.
    """
    device = session.place.device
    before, states = settings_of(method), random_states(device)
    handle = register_module_forward_pre_hook(_no_recomputation)
    try:
        with eagerly(session.settings.compile), _Watch():  # type: ignore[no-untyped-call]
            yield
    finally:
        handle.remove()
    if settings_of(method) != before:
        raise CaptureError(f"a field of {type(method).__name__} changes from step to step")
    own = "cuda" if device.type == "cuda" else "torch"
    if changed := [k for k, v in random_states(device).items() if k != own and not torch.equal(v, states[k])]:
        raise CaptureError(f"it draws from the random numbers of {changed[0].partition('_')[0]} on the CPU")


def _no_recomputation(module: nn.Module, args: object) -> None:
    if torch._C._current_graph_task_id() != -1:
        raise CaptureError("the network has activation checkpoints")


@final
class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Complains about operations whose result the host has to see."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1]
        )
        if name in READ or masks:
            raise CaptureError(f"it reads values back from the device ({name})")
        return func(*args, **(kwargs or {}))


READ = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount")
"""Operations that end in a number or a shape on the host."""


def settings_of(value: Any) -> Any:
    """What a recorded step has taken as constant: numbers, texts and switches of a method and its parts, comparable.

    >>> from layerwise.methods import FGSM, LAT
    >>> settings_of(FGSM(eps=0.1)) == settings_of(FGSM(eps=0.1)), settings_of(LAT(eps=1)) == settings_of(LAT(eps=2))
    (True, False)
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return tuple((k, settings_of(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(settings_of, value))
    if not is_dataclass(value):
        return id(value) if isinstance(value, Tensor | nn.Module) else type(value)
    # What is private may be a register, which moves.
    seen = [(k, v) for k, v in vars(value).items() if k[0] != "_" or isinstance(v, bool | int | float | str)]
    return type(value), tuple((k, settings_of(v)) for k, v in seen)
