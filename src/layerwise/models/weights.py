"""Weights as safetensors, and those of others: nothing in them can run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.core.arguments import named
from layerwise.core.checks import of_kind
from layerwise.core.sites import unwrap
from layerwise.errors import CheckpointError
from layerwise.models.normalize import Normalize


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as safetensors; each its own copy, since the format takes neither shared nor strided memory."""
    from safetensors.torch import save

    own = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    data: bytes = save(own)
    return data


def unpack_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(path.read_bytes())
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"the weights {path} cannot be read ({error})") from error
    return tensors


HOLDERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
"""What checkpoints call the weights among other things, the first that is there."""


@named
def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Put weights from elsewhere into a network: every one of its tensors, by name and shape.

    Args:
        model: the network, wrapped or not; a checkpoint's names may have parts in front that the network's have not (`module.`,
            `model.`, `_orig_mod.`), or the other way round, as where the network stands in `Normalized`.
        path: safetensors, or what `torch.save` wrote of tensors alone; code in it is not run. Weights among other things are
            looked for under `state_dict` and the like, where RobustBench, timm and Lightning have them.

    Returns:
        The network.

    Raises:
        CheckpointError: the file cannot be read or holds no weights, or they are another network's: what is missing, left over or of
            another shape or kind of numbers.
    """
    of_kind("the path", path, str | Path, example="that of a file or a run folder, such as 'runs/slat-digits'")
    raw, file = unwrap(model), Path(path).expanduser()
    given = _weights_in(unpack_tensors(file) if file.suffix == ".safetensors" else _saved(file), file)
    wanted = raw.state_dict()
    ours = {name: value for name, value in wanted.items() if not _is_ours(raw, name)}
    inside, outside = _shared_start(given), _shared_start(ours)
    # Of the parts in front that all names share, as many go as make the names agree.
    pairs = [(a, b) for a in inside for b in outside]
    strip, add = max(
        pairs, key=lambda pair: len({name[len(pair[0]) :] for name in given} & {n[len(pair[1]) :] for n in ours})
    )
    found = {add + name[len(strip) :]: value for name, value in given.items()}
    optional = {name for name in ours if name.endswith("num_batches_tracked")}
    missing = [name for name in ours if name not in found and name not in optional]
    other = [name for name in ours if name in found and found[name].shape != ours[name].shape]
    over = [name for name in found if name not in wanted]
    coded = [name for name in ours if name in found and is_coded(found[name], ours[name])]
    for names, what in (
        (missing, "lacks"),
        (over, "has beside the network's"),
        (other, "has in another shape"),
        (coded, "has in codes, as a quantised network,"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{file.name} {what} '{names[0]}'{more}: these are the weights of another network")
    raw.load_state_dict({**wanted, **found})
    return model


def is_coded(given: Tensor, own: Tensor) -> bool:
    """Whether given numbers are no values of a network's tensor but codes for them (int8, float8), or of another kind altogether."""
    if given.is_floating_point() and own.is_floating_point():
        return given.element_size() == 1 < own.element_size()
    return given.is_floating_point() != own.is_floating_point() or given.is_complex() != own.is_complex()


def _saved(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # its unpickler raises many kinds
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"the weights {path} cannot be read ({reason}); give safetensors, or a file of tensors alone, without objects"
        ) from error


def _weights_in(value: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name, wherever they are in a checkpoint."""
    while isinstance(value, Mapping):
        tensors = {str(name): tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}
        inner = next((value[name] for name in HOLDERS if isinstance(value.get(name), Mapping)), None)
        if inner is None:
            if tensors:
                return tensors
            break
        value = inner
    raise CheckpointError(
        f"{path} holds no weights: no mapping of names to tensors, by itself or under {', '.join(HOLDERS)}"
    )


def _shared_start(names: Iterable[str]) -> list[str]:
    """The parts in front that all names share: none of them, the first, the first two ..."""
    start, split = [""], [name.split(".") for name in names]
    for part in zip(*split, strict=False):
        if len(set(part)) > 1 or any(len(parts) == len(start) for parts in split):
            break
        start.append(start[-1] + part[0] + ".")
    return start


def _is_ours(model: nn.Module, name: str) -> bool:
    """Whether a tensor belongs to the normalisation that `Normalized` puts first, which is given when the network is made."""
    return isinstance(model.get_submodule(name.rpartition(".")[0]), Normalize)
