"""Sites: what can be perturbed in a network, found by watching one forward pass."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from layerwise.core.calling import Inputs, call, each_tensor, examples, key_of, rows
from layerwise.core.modes import batch_norm, evaluation_mode, undisturbed
from layerwise.errors import SiteError

Side: TypeAlias = Literal["input", "output"]


@dataclass(frozen=True)
class Site:
    """One tensor that passes through one call of one module.

    Args:
        module: dotted path in the unwrapped network; `""` is the network itself.
        side: the module's input or output.
        key: which tensor, where several pass: a position or a name.
        call: which call, counted from 0 within a forward pass; None where the module is called once.
    """

    module: str
    side: Side = "output"
    key: int | str | None = None
    call: int | None = None

    def __str__(self) -> str:
        """Write the site the way that selections take it: `conv1`, `relu#1`, `enc:output[0]`, `enc:input["x"]`."""
        key = "" if self.key is None else f"[{self.key}]" if isinstance(self.key, int) else f'["{self.key}"]'
        if self.is_input:
            return "input" + key
        call = "" if self.call is None else f"#{self.call}"
        side = "" if self.side == "output" and not key else f":{self.side}"
        return (self.module or "model") + call + side + key

    @property
    def is_input(self) -> bool:
        """Whether it is an input of the network itself."""
        return self.module == "" and self.side == "input"


INPUT = Site("", "input")
"""The network's only input tensor."""


@dataclass(frozen=True)
class Layout:
    """How an activation lies in memory, for one example.

    Args:
        shape: of one example.
        dtype: of the activation; the leaf that records its gradient has at least float32.
        memory_format: channels last or contiguous.
    """

    shape: torch.Size
    dtype: torch.dtype
    memory_format: torch.memory_format

    @staticmethod
    def of(z: Tensor) -> Layout:
        """That of an activation (B, ...)."""
        return Layout(z.shape[1:], z.dtype, _memory_format(z))

    @property
    def precise(self) -> torch.dtype:
        """The leaf's type."""
        return torch.promote_types(self.dtype, torch.float32)

    def like(self, rows: int, device: torch.device) -> Tensor:
        """What has the activation's shape, type and device, and no memory."""
        return torch.zeros((), dtype=self.dtype, device=device).expand(rows, *self.shape)

    def leaf(self, rows: int, device: torch.device, r: Tensor | None = None) -> Tensor:
        """A leaf for so many rows: zeros, or the noise r itself."""
        if r is not None:
            return r.detach().contiguous(memory_format=self.memory_format).requires_grad_()
        options: dict[str, Any] = {"dtype": self.precise, "memory_format": self.memory_format}
        return torch.empty((rows, *self.shape), device=device, **options).zero_().requires_grad_()

    def fits(self, r: Tensor) -> bool:
        """Whether noise can be a leaf as it is."""
        return r.dtype == self.precise and r.shape[1:] == self.shape


@dataclass(frozen=True)
class Candidate:
    """A site with what one forward pass showed of it."""

    site: Site
    shape: torch.Size
    dtype: torch.dtype
    memory_format: torch.memory_format
    module: nn.Module
    key: int | str | None = None

    @property
    def layout(self) -> Layout:
        """How its values lie."""
        return Layout(self.shape[1:], self.dtype, self.memory_format)

    def refusal(self, batch: int) -> str | None:
        """Why it cannot be perturbed, if so, in a pass of so many rows."""
        shape = tuple(self.shape)
        if not self.dtype.is_floating_point:
            return f"carries {self.dtype} of shape {shape}; only floating-point values can be perturbed"
        if not shape or shape[0] != batch:
            return f"has shape {shape} for a batch of {batch}: its first dimension is not the batch"
        return None


@dataclass(frozen=True)
class Trace:
    """Every site that one forward pass reached, in the order of the calls.

    Args:
        candidates: the sites.
        calls: how often each module was called, 0 where it was not.
        batch: rows of the pass.
        input_key: which of the network's arguments holds the examples, see `layerwise.core.calling.key_of`.
        extra: modules that only training calls (auxiliary heads); names find them, phrases leave them out.
    """

    candidates: tuple[Candidate, ...]
    calls: Mapping[str, int]
    batch: int
    input_key: int | str | None = None
    extra: frozenset[str] = frozenset()

    def __iter__(self) -> Iterator[Candidate]:
        """Go through the candidates in the order of the calls, inputs before outputs."""
        return iter(self.candidates)

    @property
    def inputs(self) -> list[Candidate]:
        """The network's input; of several arguments the one that holds the examples."""
        inputs = [c for c in self if c.site.is_input]
        return [c for c in inputs if len(inputs) == 1 or c.site.key == self.input_key]

    def beside(self, evaluation: Trace) -> Trace:
        """This trace of training, with what only evaluation has called: blocks that training leaves out at random.

        Args:
            evaluation: of the same network and inputs.
        """
        merged, place = list(self.candidates), 0
        missing = {name for name, count in evaluation.calls.items() if count and not self.calls[name]}
        for c in evaluation if missing else ():
            if c.site.module in missing:
                merged.insert(place, c)
                place += 1
            else:  # what comes next in evaluation goes behind it
                place = next((i + 1 for i, own in enumerate(merged) if own.site == c.site), place)
        calls = {name: count or evaluation.calls[name] for name, count in self.calls.items()}
        extra = frozenset(name for name, count in self.calls.items() if count and not evaluation.calls[name])
        return Trace(tuple(merged), calls, self.batch, self.input_key, extra)


def tensors_of(value: Any) -> dict[int | str | None, Tensor]:
    """The tensors of a value that passes through a module: {None: the tensor} or {position or name: tensor}."""
    if isinstance(value, Tensor):
        return {None: value}
    if isinstance(value, Mapping):
        return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if isinstance(value, tuple | list):
        return {i: v for i, v in enumerate(value) if isinstance(v, Tensor)}
    return {}


def arguments_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[int | str | None, Tensor]:
    """The tensors among a call's arguments, by position or keyword."""
    return {**tensors_of(args), **tensors_of(kwargs)}


ROWS = 2
"""Rows of a trace: with one, a tensor whose first dimension is not the batch could not be told from one whose it is."""


def trace(model: nn.Module, x: Inputs) -> Trace:
    """Watch one forward pass, in the mode that the network is in and without gradient; the model is left as it was.

    The mode matters: some networks run other modules in training, or the same ones more often (auxiliary heads).

    Args:
        model: the unwrapped network.
        x: an example batch; two rows are used, the only one twice.

    >>> [str(c.site) for c in trace(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(2, 3))]
    ['input', '0:input', '0', '1:input', '1', 'model']
    """
    names = {module: name for name, module in model.named_modules()}
    if scripted := [
        name or "the network" for module, name in names.items() if isinstance(module, torch.jit.ScriptModule)
    ]:
        raise SiteError(
            f"{scripted[0]} is a scripted module, which takes no hooks; give the network as it was before torch.jit"
        )
    calls: Counter[str] = Counter()
    open_calls: dict[str, list[int]] = {name: [] for name in names.values()}
    found: list[Candidate] = []

    def note(module: nn.Module, side: Side, turn: int, values: Mapping[int | str | None, Tensor]) -> None:
        for key, value in values.items():
            site = Site(names[module], side, None if len(values) == 1 and side == "input" else key, turn)
            found.append(Candidate(site, value.shape, value.dtype, _memory_format(value), module, key))

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = names[module]
        open_calls[name].append(calls[name])
        calls[name] += 1
        note(module, "input", open_calls[name][-1], arguments_of(args, kwargs))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        note(module, "output", open_calls[names[module]].pop(), tensors_of(output))

    handles: list[Any] = []
    try:
        for module in names:
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after))
        # Batch norms take their running statistics, since two rows may be too few for those of a batch.
        with undisturbed(model, examples(x).device), batch_norm(model, "eval"), torch.no_grad():
            call(model, two_rows(x))
    finally:
        for handle in handles:
            handle.remove()
    once = [c if calls[c.site.module] > 1 else replace(c, site=replace(c.site, call=None)) for c in found]
    return Trace(tuple(once), {name: calls[name] for name in names.values()}, ROWS, key_of(x))


def trace_both(model: nn.Module, x: Inputs) -> Trace:
    """Watch a pass in the network's mode, and for training one of evaluation beside it: see `Trace.beside`."""
    found = trace(model, x)
    if model.training:
        # A network that cannot be evaluated, or gives something else there, is known from its training alone.
        with suppress(Exception), evaluation_mode(model):
            found = found.beside(trace(model, x))
    return found


def skips(modules: set[str], model: nn.Module, x: Inputs | None) -> bool:
    """Whether a pass leaves out one of these modules by chance: seen in passes with other random numbers."""
    if x is None:
        return False
    with undisturbed(model, examples(x).device):
        for _ in range(64):
            torch.rand((), device=examples(x).device)
            random.random()
            if not all(trace(model, x).calls[name] for name in modules):
                return True
    return False


def two_rows(x: Inputs) -> Inputs:
    """The first two examples, the only one twice."""
    count = rows(x)

    def cut(value: Tensor) -> Tensor:
        if not value.ndim or len(value) != count:
            return value
        return value[:ROWS] if count > 1 else value.repeat_interleave(ROWS, 0)

    return each_tensor(x, cut)


def _memory_format(value: Tensor) -> torch.memory_format:
    """How its values lie: channels last, or one after the other."""
    channels_last = value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not value.is_contiguous() else torch.contiguous_format
