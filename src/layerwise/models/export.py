"""Hand a trained network on: plain weights, ONNX, or a torch.export program of the bare model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from layerwise.core.arguments import named
from layerwise.core.calling import Inputs, each_tensor, examples
from layerwise.core.modes import evaluation_mode
from layerwise.core.sites import has_sites, unwrap
from layerwise.errors import ConfigError
from layerwise.files import atomic
from layerwise.models.weights import pack_tensors

Format = Literal["state_dict", "onnx", "torch.export"]
SUFFIX: dict[Format, str] = {"state_dict": ".safetensors", "onnx": ".onnx", "torch.export": ".pt2"}


@named
def export(model: nn.Module, path: str | Path, *, example: Inputs, format: Format | None = None) -> Path:
    """Write the bare network, in evaluation mode, without sites or wrappers; pixels in [0, 1] go in, logits come out.

    In ONNX the input is called `pixels`, the arguments of a network that is called by name as they are, the output `logits`; the size
    `batch` stays free.

    Args:
        model: the network, wrapped or not; it is left as it was.
        path: where to; the format's suffix (.safetensors, .onnx, .pt2) is added if it has none of these.
        example: images, shape (B, C, H, W), or what else the network takes.
        format: `"state_dict"`, plain weights as safetensors; `"onnx"` (needs `pip install layerwise[export]`); `"torch.export"`; None
            goes by the path's suffix, and without one writes plain weights.

    Returns:
        The file.

    Raises:
        ConfigError: unknown format, or one that the suffix contradicts; sites still attached; a package missing; a network whose
            passes depend on values, which neither ONNX nor torch.export can hold.
    """
    target, chosen = _target(Path(path), format)
    bare = unwrap(model)
    if has_sites(bare):
        raise ConfigError(
            "sites are still attached to the network; call detach() of the method (or remove() of the sites) first"
        )
    with evaluation_mode(bare), torch.no_grad(), _quiet(), atomic(target) as partial:
        _write(bare, partial, each_tensor(example, Tensor.detach), chosen)
    return target


def _target(path: Path, format: Format | None) -> tuple[Path, Format]:
    """The file with its suffix, and the format."""
    by_suffix = {suffix: name for name, suffix in SUFFIX.items()}
    found = by_suffix.get(path.suffix)
    chosen = format or found or "state_dict"
    if chosen not in SUFFIX:
        raise ConfigError(f"format {chosen!r} is unknown; type one of {', '.join(SUFFIX)}")
    if found is not None and found != chosen:
        raise ConfigError(f"{path} ends like {found}, the format is {chosen}; type {path.with_suffix(SUFFIX[chosen])}")
    return path if found is not None else path.with_name(path.name + SUFFIX[chosen]), chosen


def _write(bare: nn.Module, path: Path, example: Inputs, format: Format) -> None:
    if format == "state_dict":
        path.write_bytes(pack_tensors(bare.state_dict()))
        return
    if format == "onnx":
        try:
            import onnxscript  # noqa: F401 - torch.onnx needs it, and says so less clearly
        except ModuleNotFoundError:
            raise ConfigError("ONNX needs two more packages; type: pip install layerwise[export]") from None
    home = next(chain(bare.parameters(), bare.buffers()), examples(example)).device
    # torch.export takes a size of 1 for a constant, so the example needs two rows for its batch to stay free.
    few = len(examples(example)) == 1
    rows = each_tensor(example, lambda v: (v.repeat_interleave(2, 0) if few and len(v) == 1 else v).to(home))
    args, named = _arguments(rows)
    try:
        program = torch.export.export(bare, args, named, dynamic_shapes=_shapes(rows, torch.export.Dim("batch")))
    except Exception as error:  # its tracer raises a dozen kinds
        reason = str(error).strip().splitlines()
        raise ConfigError(f"the network cannot be exported: {reason[0] if reason else type(error).__name__}") from error
    if format == "onnx":
        inputs = list(named) or ["pixels", *(f"input_{i}" for i in range(1, len(args)))]
        names: dict[str, Any] = {
            "input_names": inputs,
            "output_names": ["logits"],
            "dynamic_shapes": _shapes(rows, "batch"),
        }
        torch.onnx.export(program, args, path, kwargs=named, verbose=False, external_data=False, **names)
        return
    with path.open("wb") as file:
        torch.export.save(program, file)


def _arguments(x: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """By position and by name."""
    if isinstance(x, Tensor):
        return (x,), {}
    return ((), dict(x)) if isinstance(x, Mapping) else (tuple(x), {})


def _shapes(x: Inputs, size: Any) -> Any:
    """That the first size of every tensor is the batch's."""
    args, named = _arguments(x)
    return {key: {0: size} for key in named} if named else tuple({0: size} for _ in args)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporters tell about themselves: deprecations, no torchvision, constants that are not folded."""
    levels = {talk: talk.level for talk in map(logging.getLogger, ("torch.onnx", "onnxscript"))}
    for talk in levels:
        talk.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for kind in (FutureWarning, DeprecationWarning):
                warnings.filterwarnings("ignore", category=kind)
            # Every input has the same batch, so that all but the first of its names say nothing new.
            warnings.filterwarnings("ignore", message=".*axis name: batch will not be used", category=UserWarning)
            yield
    finally:
        for talk, level in levels.items():
            talk.setLevel(level)
