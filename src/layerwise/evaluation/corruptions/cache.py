"""Corrupted images in files of the layout of CIFAR-10-C and CIFAR-10-P."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from layerwise.data.batching import batches, num_batches
from layerwise.data.splits import Split
from layerwise.errors import ConfigError, DataError
from layerwise.evaluation.conditions import Data, checked_split, digest
from layerwise.evaluation.corruptions.frost import Frost
from layerwise.evaluation.corruptions.severities import SEVERITIES, STANDARD
from layerwise.evaluation.corruptions.views import Maker
from layerwise.evaluation.progress import tracked
from layerwise.files import atomic

GENERATED = "generated, not the published files"
FOUND = "files found in the folder, without a note that layerwise generated them"

_FORMAT = "layerwise-corrupted-images"
_NOTE_BYTES = 1 << 16


@final
@dataclass(frozen=True)
class Layout:
    """The images that files are about.

    Args:
        split: all of them.
        num_workers: processes that read streamed data.
        shape: (C, H, W).
        fingerprint: digest of the first ones.
    """

    split: Split
    num_workers: int
    shape: tuple[int, int, int]
    fingerprint: str

    @classmethod
    def of(cls, split: Split, *, num_workers: int = 0) -> Layout:
        """The layout of a split's files."""
        first = split.subset(range(min(16, len(split))))
        x, y = next(iter(batches(first, 16)))
        _, c, h, w = x.shape
        return cls(split, num_workers, (c, h, w), digest((x, y)))

    @property
    def size(self) -> int:
        """How many images there are."""
        return len(self.split)

    @cached_property
    def labels(self) -> Tensor:
        """The classes, int64, shape (size,), on the CPU; read from the images where they are not known otherwise."""
        if self.split.labels is not None:
            return self.split.labels.cpu()
        return torch.cat([y for _, y in batches(self.split, 256, num_workers=self.num_workers)])

    def array(self, maker: Maker, name: str) -> tuple[int, ...]:
        """The shape of NAME.npy: (5 size, H, W, C), all images at severity 1 first, or (size, frames, H, W, C)."""
        c, h, w = self.shape
        count = maker.count(name)
        return (self.size, count, h, w, c) if maker.sequences else (count * self.size, h, w, c)


@final
@dataclass(frozen=True)
class Stored:
    """A file of corrupted images.

    Args:
        array: uint8, on disk, of the shape that `Layout.array` gives.
        source: `GENERATED` or `FOUND`.
    """

    array: np.memmap[Any, Any]
    source: str

    def views(self, count: int, rows: Tensor) -> Iterator[Tensor]:
        """One view of the images `rows` after the other, float32 in [0, 1], shape (B, C, H, W)."""
        index = rows.cpu().numpy()
        size = len(self.array) // count
        for view in range(count):
            part = self.array[index, view] if self.array.ndim == 5 else self.array[view * size + index]
            yield torch.from_numpy(np.array(part)).permute(0, 3, 1, 2).float().div_(255)


def store(
    folder: str | os.PathLike[str],
    data: Data,
    *,
    names: Sequence[str] = STANDARD,
    sequences: bool = False,
    seed: int = 0,
    table: str = "auto",
    frost: Frost | None = None,
    batch_size: int = 250,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    progress: bool = False,
) -> None:
    """Generate NAME.npy, uint8, for each name that the folder lacks, with NAME.json to say so, and labels.npy.

    A file appears when it is whole. Files that are there are checked as they are when read.

    Args:
        folder: made where it does not exist; one for corruptions, another for sequences.
        data: the images, all of which are stored, in their order.
        names: corruptions, or sequences.
        sequences: frames in the layout of CIFAR-10-P; else severities in that of CIFAR-10-C.
        seed: of the random numbers.
        table: of severities, see `table_for`.
        frost: the pictures; by default `load_frost()`.
        batch_size: images generated at once.
        device: where.
        num_workers: processes that read streamed data.
        progress: show a bar on standard error.

    Raises:
        ConfigError: an unknown name.
        DataError: the folder holds other data's files, broken ones, or ones of another seed or version; it cannot be written.
    """
    place, (split, _) = Path(folder), checked_split(data)
    maker = Maker(sequences, seed, table, frost)
    for name in names:
        maker.count(name)
    layout = Layout.of(split, num_workers=num_workers)
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not sequences:
            _put_labels(place, layout)
        for name in names:
            if open_stored(place, name, maker, layout) is None:
                feed = batches(split, batch_size, device=device, num_workers=num_workers)
                feed = tracked(feed, num_batches(split, batch_size), name, progress)
                _write(place, name, maker, layout, feed)
    except OSError as error:
        raise DataError(
            f"{place} cannot be written ({error.strerror or error}); free space or give another folder"
        ) from None


def _write(folder: Path, name: str, maker: Maker, layout: Layout, feed: Iterator[tuple[Tensor, Tensor]]) -> None:
    shape, image = layout.array(maker, name), math.prod(layout.shape)
    count, start = maker.count(name), 0
    note = json.dumps({"format": _FORMAT, "note": GENERATED, **_origin(name, maker, layout)}, indent=2) + "\n"
    with atomic(folder / f"{name}.npy") as partial:
        # Plain writes: on a full disk a memory map would kill the process.
        with partial.open("wb") as file:
            npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            begin = file.tell()
            for x, _ in feed:
                rows = torch.arange(start, start + len(x), device=x.device)
                for view, changed in enumerate(maker.views(x, name, rows)):
                    levels = (changed * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous()
                    if not maker.sequences:
                        file.seek(begin + (view * layout.size + start) * image)
                        file.write(levels.numpy().data)
                        continue
                    for row, frame in enumerate(levels.numpy(), start=start):
                        file.seek(begin + (row * count + view) * image)
                        file.write(frame.data)
                start += len(x)
        # Before the images: images without a note would pass for the published ones.
        with atomic(folder / f"{name}.json") as written:
            written.write_text(note)


def _put_labels(folder: Path, layout: Layout) -> None:
    if check_labels_file(folder, layout):
        return
    labels = np.tile(layout.labels.numpy(), len(SEVERITIES))
    with atomic(folder / "labels.npy") as partial, partial.open("wb") as file:
        npy.write_array(file, labels.astype(np.uint8) if labels.max() < 256 else labels, allow_pickle=False)


def check_labels_file(folder: Path, layout: Layout) -> bool:
    """Whether there is a labels.npy; if so it holds the labels of these images, five times over.

    Raises:
        DataError: it holds others.
    """
    path = folder / "labels.npy"
    if not path.exists():
        return False
    found = _open(path, (len(SEVERITIES) * layout.size,), "iu", advice="it belongs to other data: give another folder")
    expected = np.tile(layout.labels.numpy(), len(SEVERITIES))
    if not np.array_equal(found, expected):
        at = int(np.flatnonzero(found != expected)[0])
        raise DataError(
            f"{path} says class {int(found[at])} for row {at}, these images' labels say {int(expected[at])}; it belongs to other "
            "data, or to these in another order: give another folder"
        )
    return True


def open_stored(folder: Path, name: str, maker: Maker, layout: Layout) -> Stored | None:
    """The file of a corruption or sequence; None where there is none.

    Args:
        folder: where to look.
        name: the corruption or sequence.
        maker: how it must have been generated, if it was.
        layout: the images.

    Raises:
        DataError: the file is broken or of another shape, was generated otherwise, or belongs to other images.
    """
    path, note = folder / f"{name}.npy", folder / f"{name}.json"
    if not path.exists():
        return None
    expected = layout.array(maker, name)
    array = _open(path, expected, "u", advice="delete it, or give the folder of this data's files")
    if not maker.sequences:
        check_labels_file(folder, layout)
    if not note.exists():
        return Stored(array, FOUND)
    _check_note(note, _origin(name, maker, layout))
    return Stored(array, GENERATED)


def _origin(name: str, maker: Maker, layout: Layout) -> dict[str, str | int]:
    return {**maker.origin(name, *layout.shape[1:]), "images": layout.size, "fingerprint": layout.fingerprint}


def _check_note(path: Path, expected: dict[str, str | int]) -> None:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_NOTE_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no readable JSON ({error}); delete it and {path.stem}.npy") from None
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise DataError(f"{path} is not the note of generated images; move it away, or delete it with {path.stem}.npy")
    for key, value in expected.items():
        if found.get(key) != value:
            raise DataError(
                f"{path.with_suffix('.npy')} was generated with {key} {str(found.get(key))[:60]!r}, asked for is {str(value)!r}; "
                "delete it and its .json, or give another folder"
            )


def _open(path: Path, shape: tuple[int, ...], kinds: str, *, advice: str) -> np.memmap[Any, Any]:
    """A .npy file of whole numbers as a read-only map, its header and length checked before anything is mapped."""
    try:
        with path.open("rb") as file:
            version = npy.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {version[0]}.{version[1]}")
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            found, fortran, dtype = read(file)
            offset, length = file.tell(), path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from None
    except Exception as error:  # numpy's parser of headers lets through whatever Python's raises on hostile text
        raise DataError(
            f"{path} is no .npy file ({str(error).splitlines()[0][:80] if str(error) else 'cut off'}); {advice}"
        ) from None
    if dtype.kind not in kinds or (len(shape) > 1 and dtype != np.uint8) or fortran or found != shape:
        order = " in Fortran order" if fortran else ""
        wanted = f"{'uint8' if len(shape) > 1 else 'whole numbers'} of shape {shape}"
        raise DataError(f"{path} holds {str(dtype)[:60]} of shape {str(found)[:60]}{order}, not {wanted}; {advice}")
    if length != offset + math.prod(shape) * dtype.itemsize:
        raise DataError(
            f"{path} has {length:,} bytes where its header needs {offset + math.prod(shape) * dtype.itemsize:,}; {advice}"
        )
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)


def source_folder(folder: str | os.PathLike[str] | None) -> Path | None:
    """The folder to read from.

    Raises:
        ConfigError: it is not there.
    """
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(
            f"{folder} is no folder; give the one of the .npy files, or none to generate the images as they are needed"
        )
    return None if folder is None else Path(folder)
