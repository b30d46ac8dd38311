"""Hand a trained network on: plain weights, ONNX, or a torch.export program of the bare model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from layerwise.errors import ConfigError
from layerwise.files import atomic
from layerwise.sites import has_sites, unwrap

Format = Literal["state_dict", "onnx", "torch.export"]
SUFFIX: dict[str, str] = {"state_dict": ".safetensors", "onnx": ".onnx", "torch.export": ".pt2"}


def export(model: nn.Module, path: str | Path, *, example: Tensor, format: Format = "state_dict") -> Path:
    """Write the bare network, in evaluation mode, without sites or wrappers; pixels in [0, 1] go in, logits come out.

    Args:
        model: the network, wrapped or not.
        path: where to; the format's suffix (.safetensors, .onnx, .pt2) is added if it has none.
        example: images, shape (B, C, H, W); the batch size stays free.
        format: `"state_dict"` plain weights as safetensors; `"onnx"` (needs `pip install layerwise[export]`); `"torch.export"`.

    Returns:
        The file.

    Raises:
        ConfigError: unknown format, sites still attached, or a package missing.
    """
    if format not in SUFFIX:
        raise ConfigError(f"format {format!r} is unknown; type one of {', '.join(SUFFIX)}")
    bare = unwrap(model)
    if has_sites(bare):
        raise ConfigError(
            "sites are still attached to the network; call detach() of the method (or remove() of the sites) first"
        )
    target = Path(path)
    target = target if target.suffix else target.with_suffix(SUFFIX[format])
    training = [m for m in bare.modules() if m.training]
    bare.eval()
    try:
        with atomic(target) as partial:
            _write(bare, partial, example.detach(), format)
    finally:
        for module in training:
            module.training = True
    return target


def _write(bare: nn.Module, path: Path, example: Tensor, format: Format) -> None:
    if format == "state_dict":
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in bare.state_dict().items()}, path)
        return
    # torch.export takes a size of 1 for a constant, so the example needs two rows for its batch to stay free.
    rows = example if len(example) > 1 else example.repeat(2, *[1] * (example.ndim - 1))
    batch = torch.export.Dim("batch")
    program = torch.export.export(bare, (rows,), dynamic_shapes=({0: batch},))
    if format == "torch.export":
        torch.export.save(program, path)
        return
    try:
        import onnxscript  # noqa: F401 - torch.onnx needs it, and says so less clearly
    except ModuleNotFoundError:
        raise ConfigError("ONNX needs two more packages; type: pip install layerwise[export]") from None
    torch.onnx.export(program, (rows,), path, verbose=False, external_data=False)
