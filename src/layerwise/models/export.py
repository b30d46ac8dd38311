"""Hand a trained network on: plain weights, ONNX, or a torch.export program of the bare model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from layerwise.core.modes import evaluation_mode
from layerwise.core.sites import has_sites, unwrap
from layerwise.errors import ConfigError
from layerwise.files import atomic
from layerwise.models.weights import pack_tensors

Format = Literal["state_dict", "onnx", "torch.export"]
SUFFIX: dict[Format, str] = {"state_dict": ".safetensors", "onnx": ".onnx", "torch.export": ".pt2"}


def export(model: nn.Module, path: str | Path, *, example: Tensor, format: Format | None = None) -> Path:
    """Write the bare network, in evaluation mode, without sites or wrappers; pixels in [0, 1] go in, logits come out.

    Args:
        model: the network, wrapped or not; it is left as it was.
        path: where to; the format's suffix (.safetensors, .onnx, .pt2) is added if it has none of these.
        example: images, shape (B, C, H, W); the batch size stays free.
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
        _write(bare, partial, example.detach(), chosen)
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


def _write(bare: nn.Module, path: Path, example: Tensor, format: Format) -> None:
    if format == "state_dict":
        path.write_bytes(pack_tensors(bare.state_dict()))
        return
    if format == "onnx":
        try:
            import onnxscript  # noqa: F401 - torch.onnx needs it, and says so less clearly
        except ModuleNotFoundError:
            raise ConfigError("ONNX needs two more packages; type: pip install layerwise[export]") from None
    home = next(chain(bare.parameters(), bare.buffers()), example).device
    # torch.export takes a size of 1 for a constant, so the example needs two rows for its batch to stay free.
    rows = (example if len(example) > 1 else example.repeat(2, *[1] * (example.ndim - 1))).to(home)
    try:
        program = torch.export.export(bare, (rows,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # its tracer raises a dozen kinds
        reason = str(error).strip().splitlines()
        raise ConfigError(f"the network cannot be exported: {reason[0] if reason else type(error).__name__}") from error
    if format == "onnx":
        torch.onnx.export(program, (rows,), path, verbose=False, external_data=False)
        return
    with path.open("wb") as file:
        torch.export.save(program, file)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporters tell about themselves: their own deprecations, and that torchvision is not there."""
    talk = logging.getLogger("torch.onnx")
    level = talk.level
    talk.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for kind in (FutureWarning, DeprecationWarning):
                warnings.filterwarnings("ignore", category=kind)
            yield
    finally:
        talk.setLevel(level)
