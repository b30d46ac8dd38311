"""Ways to run a network for a while, each a context that leaves it as it was: batch norm, frozen, evaluation, exact arithmetic."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from layerwise.errors import ConfigError

BatchNormMode: TypeAlias = Literal["batch", "train", "eval"]
"""`"batch"`: batch statistics, running ones untouched; `"train"`: as in training; `"eval"`: running statistics."""
MODES = get_args(BatchNormMode)


def all_modules(model: nn.Module) -> list[nn.Module]:
    """Every module of the network once; several times faster than `modules()`, which names them, and asked for in every probe."""
    found, seen = [model], {model}
    for module in found:
        for child in module._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                found.append(child)
    return found


@contextmanager
def batch_norm(model: nn.Module, mode: BatchNormMode = "batch") -> Iterator[None]:
    """Run the batch (and instance) norms of `model` that are in training mode as `mode` says, for the duration.

    Norms in evaluation mode are left alone. With `"batch"`, `track_running_stats` is off meanwhile: the layer then normalises
    by the batch and touches no buffer. Saving and restoring the buffers instead would break the backward of an earlier pass,
    because it changes in place what that pass saved.

    Inside another mode each mode is its own, but what moves no running statistics outside moves none inside: `"train"` is
    then `"batch"`.

    Args:
        model: any module.
        mode: see `BatchNormMode`.

    Raises:
        ConfigError: unknown mode.
    """
    if mode not in MODES:
        raise ConfigError(f"batch-norm mode {mode!r} is unknown; type one of {', '.join(map(repr, MODES))}")
    outside = _outside.get()
    norms = [m for m in all_modules(model) if isinstance(m, _NormBase)]
    if mode == "train":
        norms, mode = [m for m in norms if m in outside], "batch"
    # Inside another mode a norm's own switches are covered: it begins with those, and then comes this mode.
    switched = {
        m: {**outside.get(m, {}), **_switches(m, mode)}
        for m in norms
        if m in outside or (m.training and m.track_running_stats)
    }
    kept = {m: {name: getattr(m, name) for name in names} for m, names in switched.items()}
    own = {"training": True, "track_running_stats": True}
    token = _outside.set({**outside, **{m: outside.get(m, {**own, **kept[m]}) for m in kept}})
    try:
        for module, attributes in switched.items():
            _set(module, attributes)
        yield
    finally:
        _outside.reset(token)
        for module, before in kept.items():
            _set(module, before)


_outside: ContextVar[dict[nn.Module, dict[str, object]]] = ContextVar("layerwise_norms", default={})  # noqa: B039 - never changed
"""What the norms were before the modes that are in force."""


def _switches(module: nn.Module, mode: BatchNormMode) -> dict[str, object]:
    """The attributes that a mode changes."""
    if mode == "eval":
        return {"training": False}
    # An instance norm in training moves the running statistics that it has, whether it should track them or not.
    hidden = {"running_mean": None, "running_var": None} if isinstance(module, _InstanceNorm) else {}
    return {"track_running_stats": False, **hidden}


def _set(module: nn.Module, attributes: dict[str, object]) -> None:
    for name, value in attributes.items():
        setattr(module, name, value)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Parameters without gradient for the duration, each restored to its own flag.

    A compiled backward ignores `inputs=` and would compute the weights' gradients; eager saves a quarter of the pass.
    """
    # A quarter of the time of `model.parameters()`, which names each of them.
    every = [p for module in all_modules(model) for p in module._parameters.values()]
    trainable = [p for p in every if p is not None and p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the duration, each module restored to its own.

    The flags are set one by one: `eval()` may do more in a user's module (merge adapters, say), and cannot be taken back. Modules
    that `torch.jit.freeze` made have none.
    """
    with _modes_kept(trained := [module for module in all_modules(model) if getattr(module, "training", False)]):
        for module in trained:
            module.training = False
        yield


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Training mode for the duration, unless the network is in it already: then parts in evaluation mode stay so."""
    with _modes_kept([] if model.training else all_modules(model)):
        if not model.training:
            model.train()  # which a user's module may overwrite, to keep some of its parts in evaluation mode
        yield


@contextmanager
def _modes_kept(modules: list[nn.Module]) -> Iterator[None]:
    before = [module.training for module in modules]
    try:
        yield
    finally:
        for module, mode in zip(modules, before, strict=True):
            module.training = mode


@contextmanager
def unmoved_buffers(model: nn.Module) -> Iterator[None]:
    """Whatever passes write into the network's buffers is forgotten.

    The buffers are exchanged for copies meanwhile: written back in place, they would break the backward of an earlier pass.
    """
    kept = [
        (module, name, buffer)
        for module in all_modules(model)
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer)
    ]
    for module, name, buffer in kept:
        module._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, name, buffer in kept:
            module._buffers[name] = buffer


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Passes inside move no buffer and no random number of PyTorch or Python."""
    devices = [device] if device.type == "cuda" else []
    state = random.getstate()
    try:
        with unmoved_buffers(model), torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(state)


@contextmanager
def twice_differentiable(device: torch.device) -> Iterator[None]:
    """Passes whose gradients can be differentiated: autocast off, and attention in plain products.

    The fused kernels of attention have no second derivative.
    """
    with torch.autocast(device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Float32 products without TF32 or bfloat16, autocast off, gradients on, for the duration."""
    backends: tuple[Any, ...] = (
        torch.backends.cuda.matmul,
        *(getattr(torch.backends.cudnn, part) for part in ("conv", "rnn")),
        *(getattr(torch.backends.mkldnn, part) for part in ("matmul", "conv", "rnn")),
    )
    # Not `allow_tf32`: that getter is an error for users who have set precision the new way.
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
