"""Checkpoints that are whole or not there: written aside, checksummed, renamed into place; nothing in them is executed.

checkpoints/step-00000780/
    model.safetensors    weights            ema.safetensors   their moving average, if there is one
    state.safetensors    optimiser, position, sums, best score            (nested state: see layerwise.training.nested)
    rank-0.safetensors   that rank's random states and the method's noise
    manifest.json        format version, step, sha256 and size of every file, and sha256 of all that
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from layerwise.errors import CheckpointError
from layerwise.files import atomic, own_folder, refusal, writing
from layerwise.models.weights import pack_tensors, unpack_tensors
from layerwise.training import nested
from layerwise.training.ranks import together

FORMAT = 2
MANIFEST = "manifest.json"
MODEL, AVERAGE, STATE, RANK = "model.safetensors", "ema.safetensors", "state.safetensors", "rank-{}.safetensors"


@final
@dataclass(frozen=True)
class Contents:
    """What one checkpoint holds.

    Args:
        step: batches done.
        weights: the network's `state_dict`.
        average: the moving average's, if there is one.
        state: what all ranks share; tensors, numbers, strings and containers of them.
        ranks: one of the same for each rank, or the reader's own only, where as many ranks read as wrote.
        world: how many ranks wrote.
    """

    step: int
    weights: dict[str, Tensor]
    average: dict[str, Tensor] | None
    state: dict[str, Any]
    ranks: list[dict[str, Any]]
    world: int = 1


def write_file(path: Path, data: bytes) -> None:
    """Write and force to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that at every moment either the old or the new one is there, whole.

    Raises:
        CheckpointError: the disk refused.
    """
    with writing(path):
        with atomic(path) as partial:
            write_file(partial, data)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # Windows cannot open folders, and needs no sync of them.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _packed(state: Mapping[str, Any]) -> bytes:
    return pack_tensors(nested.flatten(dict(state)))


def save(
    folder: Path,
    *,
    step: int,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    own: Mapping[str, Any],
    average: Mapping[str, Tensor] | None = None,
    keep: int = 2,
    rank: int = 0,
    device: torch.device | None = None,
) -> Path:
    """Write one checkpoint and remove all but the newest `keep`; called by every rank.

    Args:
        folder: of all checkpoints of the run.
        step: batches done; names the checkpoint.
        weights: see `Contents`; used on rank 0 only, as `state` and `average` are.
        state: see `Contents`.
        own: this rank's entry of `Contents.ranks`.
        average: see `Contents`.
        keep: how many stay.
        rank: of this process.
        device: where ranks agree.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: the disk refused; the earlier checkpoints are untouched.
    """
    device = device or torch.device("cpu")
    final, aside = folder / f"step-{step:08d}", folder / f".step-{step:08d}.writing"

    def prepare() -> None:
        # Not its parents: a run folder that was moved away must not come back without the rest.
        own_folder(folder)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()

    def finish() -> None:
        write_file(aside / MODEL, pack_tensors(weights))
        if average is not None:
            write_file(aside / AVERAGE, pack_tensors(average))
        write_file(aside / STATE, _packed(state))
        sums = {path.name: _checksum(path) for path in sorted(aside.iterdir())}
        write_file(aside / MANIFEST, _rendered({"format": FORMAT, "step": step, "files": sums}))
        _sync_folder(aside)
        if final.exists():  # the same step of the same run again, after a damaged one was passed over
            shutil.rmtree(final)
        aside.rename(final)
        _sync_folder(folder)
        _rotate(folder, keep, final)

    failure = together(prepare, alone=True, rank=rank, device=device)
    if failure is None:
        path = aside / RANK.format(rank)
        failure = together(lambda: write_file(path, _packed(own)), alone=False, rank=rank, device=device)
    if failure is None:
        failure = together(finish, alone=True, rank=rank, device=device)
    if failure is not None:
        if rank == 0 and not folder.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
        last = max((p.name for p in found(folder)), default=None)
        safe = f"the last good one is {last}" if last else "there is no earlier one"
        raise CheckpointError(f"cannot write the checkpoint {final}; {safe}: {refusal(failure)}") from failure
    return final


def found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first, damaged ones included."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _rotate(folder: Path, keep: int, newest: Path) -> None:
    """Leave `keep` checkpoints up to the newest; later ones are damaged and were passed over, and must not count as kept."""
    there = found(folder)
    kept = [path for path in there if path.name <= newest.name][-keep:]
    for old in there:
        if old not in kept:
            _remove(old)
    clear(folder)


def clear(folder: Path) -> None:
    """Remove what a kill left of checkpoints that were being written or removed."""
    for leftover in folder.glob(".step-*.writing"):
        shutil.rmtree(leftover, ignore_errors=True)


def _remove(path: Path) -> None:
    """Delete a checkpoint so that at every moment it is whole or not there; what a kill leaves is cleared later."""
    aside = path.with_name(f".{path.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):  # older ones that stay cost room, not the run
        path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _rendered(manifest: Mapping[str, Any]) -> bytes:
    own = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": own}, indent=1).encode()


def _checksum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def load_latest(folder: Path, *, rank: int = 0, world: int = 1) -> tuple[Contents | None, list[str]]:
    """The newest checkpoint that is whole.

    Args:
        folder: of all checkpoints of the run.
        rank: only this rank's entry is read if as many ranks wrote it as there are now.
        world: how many ranks there are now.

    Returns:
        The contents (None when there is no checkpoint at all), and a sentence for each damaged one that was passed over.

    Raises:
        CheckpointError: all are damaged.
    """
    candidates, said = found(folder)[::-1], list[str]()
    for path in candidates:
        try:
            return read(path, rank=rank, world=world), said
        except CheckpointError as error:
            said.append(f"{error}; going on with the one before")
    if candidates:
        count = f"all {len(candidates)} checkpoints" if len(candidates) > 1 else "the only checkpoint"
        raise CheckpointError(
            f"{count} in {folder} cannot be used: {said[0].rpartition(';')[0]}; delete {folder}, and resuming begins the run anew"
        )
    return None, []


def read(path: Path, *, rank: int = 0, world: int = 1) -> Contents:
    """Read and verify one checkpoint.

    Raises:
        CheckpointError: a file is missing, cut off or altered, or the format is another version's.
    """
    manifest = _manifest(path)
    files: dict[str, Any] = manifest["files"]
    # All files, also those that other ranks read: all ranks have to agree on which checkpoint is whole.
    for name, expected in files.items():
        _verify(path / name, expected)
    count = sum(name.startswith("rank-") for name in files)
    chosen = [rank] if count == world else range(count)
    return Contents(
        step=manifest["step"],
        weights=unpack_tensors(path / MODEL),
        average=unpack_tensors(path / AVERAGE) if AVERAGE in files else None,
        state=_unpacked(path / STATE),
        ranks=[_unpacked(path / RANK.format(r)) for r in chosen],
        world=count,
    )


def _manifest(path: Path) -> dict[str, Any]:
    try:
        content = (path / MANIFEST).read_bytes()
        manifest = json.loads(content)
        version = manifest["format"]
        body = {key: value for key, value in manifest.items() if key != "sha256"}
        intact, ours = content == _rendered(body), path.name == f"step-{manifest['step']:08d}"
        files = set(manifest["files"])
        listed = {MODEL, STATE, RANK.format(0)} <= files and all(Path(name).name == name for name in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {MANIFEST} cannot be read") from error
    if version != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {version}, this version of layerwise reads {FORMAT}")
    if not intact or not ours or not listed:
        raise CheckpointError(f"checkpoint {path} is damaged: {MANIFEST} was altered")
    return dict(manifest)


def _verify(path: Path, expected: Any) -> None:
    try:
        actual = _checksum(path)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path.parent} is damaged: {path.name} is missing") from error
    if actual != expected:
        size = expected.get("bytes") if isinstance(expected, dict) else None
        what = "was altered" if actual["bytes"] == size else f"has {actual['bytes']} of {size} bytes"
        raise CheckpointError(f"checkpoint {path.parent} is damaged: {path.name} {what}")


def _unpacked(path: Path) -> dict[str, Any]:
    try:
        state = nested.rebuild(unpack_tensors(path))
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path.parent} is damaged: {path.name} cannot be read ({error})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {path.parent} is damaged: {path.name} holds a {type(state).__name__}")
    return state
