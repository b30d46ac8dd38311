"""Sites: what can be perturbed in a network, found by watching one forward pass, and how a few of them are chosen."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from layerwise.errors import SiteError, did_you_mean

Side: TypeAlias = Literal["input", "output"]
Selection: TypeAlias = str | Sequence[str]
"""A regular expression or a phrase (`"input"`, `"affine outputs"`, `"first(4)"`, ...), or a list of names and phrases."""

SHORTCUTS = r"(.*\.)?(shortcut|downsample)(\..*)?"
"""Matches the modules on the skip path of a residual block, under the names that networks give them."""

_BLOCK_CLASSES = ("BasicBlock", "Bottleneck", "PreActBlock", "PreActBottleneck", "ResidualBlock")


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
        if self.module == "" and self.side == "input":
            return "input" + key
        call = "" if self.call is None else f"#{self.call}"
        side = "" if self.side == "output" and not key else f":{self.side}"
        return (self.module or "model") + call + side + key


INPUT = Site("", "input")
"""The network's only input tensor."""


@dataclass(frozen=True)
class Candidate:
    """A site with what one forward pass showed of it."""

    site: Site
    shape: torch.Size
    dtype: torch.dtype
    memory_format: torch.memory_format
    module: nn.Module
    key: int | str | None = None


@dataclass(frozen=True)
class Trace:
    """Every site that one forward pass reached, in the order of the calls."""

    candidates: tuple[Candidate, ...]
    calls: Mapping[str, int]
    batch: int

    def __iter__(self) -> Iterator[Candidate]:
        """Go through the candidates in the order of the calls, inputs before outputs."""
        return iter(self.candidates)


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


def trace(model: nn.Module, x: Tensor) -> Trace:
    """Watch one forward pass, in evaluation mode and without gradient; the model is left as it was.

    Args:
        model: the unwrapped network, called as `model(x)`.
        x: an example batch, shape (B, ...); at most two rows are used.

    >>> [str(c.site) for c in trace(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(2, 3))]
    ['input', '0:input', '0', '1:input', '1', 'model']
    """
    names = {module: name for name, module in model.named_modules()}
    calls: Counter[str] = Counter()
    open_calls: dict[str, list[int]] = {name: [] for name in names.values()}
    found: list[Candidate] = []

    def note(module: nn.Module, side: Side, call: int, values: Mapping[int | str | None, Tensor]) -> None:
        for key, value in values.items():
            site = Site(names[module], side, None if len(values) == 1 and side == "input" else key, call)
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
        with _undisturbed(model, x):
            model(x[:2])
    finally:
        for handle in handles:
            handle.remove()
    once = [c if calls[c.site.module] > 1 else replace(c, site=replace(c.site, call=None)) for c in found]
    return Trace(tuple(once), {name: calls[name] for name in names.values()}, len(x[:2]))


def _memory_format(value: Tensor) -> torch.memory_format:
    channels_last = value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not value.is_contiguous() else torch.contiguous_format


@contextmanager
def _undisturbed(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Evaluation mode, no gradient, random states kept; every module's own mode restored."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [x.device] if x.device.type == "cuda" else []
    try:
        for module, _ in modes:
            module.training = False
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def select(found: Trace, selection: Selection, *, first: int | None = None, exclude: Selection = ()) -> list[Candidate]:
    """Choose sites.

    Args:
        found: what one forward pass reached.
        selection: a string is a phrase or a regular expression that has to match a site's whole name; a list holds phrases,
            exact names, and dotted suffixes of names (used only where no name is exactly that). Phrases: `"input"`,
            `"affine outputs"` (convolutions and linear layers), `"convolution outputs"`, `"batch-norm outputs"`,
            `"residual-block outputs"`, `"residual-block states"` (the first block's input x_0 and the outputs
            x_1..x_N), and `"first(m)"`: the first m affine outputs counted from the input, shortcuts left out.
        first: keep only the first so many, in the order of the calls (the network's input is not counted).
        exclude: the same grammar; what it matches is left out. A string may match nothing, a list may not.

    Raises:
        SiteError: nothing matched, a name is ambiguous or never called, an exclusion names nothing or leaves nothing.
    """
    chosen = _match(found, selection)
    if exclude:
        # A pattern may match nothing (not every network has shortcuts); a name in a list is meant.
        excluded = {c.site for c in _match(found, exclude, optional=isinstance(exclude, str))}
        kept = [c for c in chosen if c.site not in excluded]
        if not kept:
            raise SiteError(f"exclude={exclude!r} leaves none of the {len(chosen)} sites that {selection!r} chose")
        chosen = kept
    if first is not None:
        inputs = [c for c in chosen if c.site.module == ""]
        layers = [c for c in chosen if c.site.module != ""]
        if not 1 <= first <= len(layers):
            raise SiteError(f"first={first} of {selection!r} is not possible: type a number from 1 to {len(layers)}")
        chosen = inputs + layers[:first]
    return [_checked(c, found.batch) for c in chosen]


def _match(found: Trace, selection: Selection, *, optional: bool = False) -> list[Candidate]:
    entries = [selection] if isinstance(selection, str) else list(selection)
    if not entries:
        raise SiteError("no site is chosen; name some, for example sites=['input', 'conv1'], or 'batch-norm outputs'")
    by_name = not isinstance(selection, str)
    hits: dict[Site, Candidate] = {}
    for entry in entries:
        matched = _phrase(found, entry)
        if matched is None:
            matched = _named(found, entry) if by_name else _regular(found, entry)
        if not matched and not optional:
            raise SiteError(_nothing(found, entry))
        hits.update({c.site: c for c in matched})
    return [c for c in found if c.site in hits]


def _phrase(found: Trace, entry: str) -> list[Candidate] | None:
    """What a phrase stands for; None where `entry` is none."""
    outputs = [c for c in found if c.site.side == "output" and c.site.key is None]
    if entry == "input":
        return [c for c in found if c.site.module == "" and c.site.side == "input"]
    if entry == "affine outputs":
        return [c for c in outputs if isinstance(c.module, _ConvNd | nn.Linear)]
    if entry == "convolution outputs":
        return [c for c in outputs if isinstance(c.module, _ConvNd)]
    if entry == "batch-norm outputs":
        return [c for c in outputs if isinstance(c.module, _NormBase)]
    if entry == "residual-block outputs":
        return [c for c in outputs if is_residual_block(c.module)]
    if entry == "residual-block states":
        blocks = [c for c in found if is_residual_block(c.module)]
        return [c for c in blocks if c.site.side == "output" and c.site.key is None] + blocks[:1]
    if counted := re.fullmatch(r"first\((\d+)\)", entry):
        return select(found, "affine outputs", first=int(counted[1]), exclude=SHORTCUTS)
    return None


def is_residual_block(module: nn.Module) -> bool:
    """Whether a module says so (`is_residual_block = True`) or has one of the usual class names."""
    return bool(getattr(module, "is_residual_block", False)) or type(module).__name__ in _BLOCK_CLASSES


def _aliases(candidate: Candidate) -> set[str]:
    """Every name that a selection may use for this one site."""
    return {str(replace(candidate.site, key=key)) for key in (candidate.site.key, candidate.key, None)}


def _regular(found: Trace, pattern: str) -> list[Candidate]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SiteError(f"the site pattern {pattern!r} is not a regular expression: {error}") from error
    return [c for c in found if c.site.module and compiled.fullmatch(str(c.site))]


def _named(found: Trace, name: str) -> list[Candidate]:
    exact = [c for c in found if name in _aliases(c)]
    if not exact and (
        calls := [c for c in found if c.site.call is not None and str(replace(c.site, call=None)) == name]
    ):
        listed = ", ".join(str(c.site) for c in calls)
        raise SiteError(f"site {name!r} is called {len(calls)} times in one forward pass; name the call: {listed}")
    if len(exact) > 1:
        listed = ", ".join(str(c.site) for c in exact)
        raise SiteError(f"site {name!r} is ambiguous: {len(exact)} tensors pass there; name one: {listed}")
    return exact or [c for c in found if any(alias.endswith("." + name) for alias in _aliases(c))]


def _nothing(found: Trace, entry: str) -> str:
    if found.calls.get(entry) == 0:
        return f"site {entry!r} is registered in the network but never called in a forward pass"
    if entry.startswith("residual-block"):
        return "no module calls itself a residual block; name the blocks, for example sites=['layer1.0', 'layer1.1']"
    if entry.endswith("outputs"):
        return f"the network has no {entry}; list its sites with `layerwise sites MODEL`"
    names = [str(c.site) for c in found]
    return f"no site matches {entry!r}; {did_you_mean(entry, names)} (`layerwise sites MODEL` lists all)"


def _checked(candidate: Candidate, batch: int) -> Candidate:
    site, shape = candidate.site, tuple(candidate.shape)
    if not candidate.dtype.is_floating_point:
        raise SiteError(
            f"site '{site}' carries {candidate.dtype} of shape {shape}; only floating-point values can be perturbed"
        )
    if not shape or shape[0] != batch:
        raise SiteError(f"site '{site}' has shape {shape} for a batch of {batch}: its first dimension is not the batch")
    return candidate
