"""MNIST and Fashion-MNIST in the IDX files that their sites distribute."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from layerwise.core.registry import register
from layerwise.data.checks import check_labels
from layerwise.data.custom import assemble
from layerwise.data.download import REMOTES, obtain
from layerwise.data.files import in_root, read_bytes
from layerwise.data.splits import ImageData, TensorSplit
from layerwise.errors import DataError

IMAGES, LABELS = 2051, 2049
"""The magic numbers: unsigned bytes in three dimensions, and in one."""


@final
@dataclass(frozen=True, kw_only=True)
class IdxSet:
    """What tells one set in IDX files from another.

    Args:
        name: its name in `load`.
        folders: where its files may lie, under the root.
        classes: their names.
        mean: of the 60,000 training images.
        std: likewise.
    """

    name: str
    folders: tuple[str, ...]
    classes: tuple[str, ...]
    mean: float
    std: float


MNIST = IdxSet(
    name="mnist",
    folders=("MNIST/raw", "MNIST", "mnist"),
    classes=tuple("0123456789"),
    mean=0.1306604762738429,
    std=0.3081078038564622,
)
FASHION_MNIST = IdxSet(
    name="fashion-mnist",
    folders=("FashionMNIST/raw", "FashionMNIST", "fashion-mnist"),
    classes=(
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
    mean=0.2860405969887955,
    std=0.3530242445149226,
)


@register("data", "mnist", validation=0.05, where=in_root("MNIST/raw/*-ubyte, plain or .gz"))
def read_mnist(root: Path, *, validation: float, download: bool, seed: int) -> ImageData:
    """MNIST: 60,000 + 10,000 handwritten digits, 28 x 28, grey."""
    return _read(MNIST, root, validation=validation, download=download, seed=seed)


@register("data", "fashion-mnist", validation=0.05, where=in_root("FashionMNIST/raw/*-ubyte, plain or .gz"))
def read_fashion_mnist(root: Path, *, validation: float, download: bool, seed: int) -> ImageData:
    """Fashion-MNIST: 60,000 + 10,000 articles of clothing, 28 x 28, grey."""
    return _read(FASHION_MNIST, root, validation=validation, download=download, seed=seed)


def read_idx(path: Path, magic: int, most: int) -> Tensor:
    """The bytes of an IDX file: images (N, 1, 28, 28) for magic 2051, labels (N,) for 2049.

    Args:
        path: the file, plain or .gz.
        magic: what its first four bytes must say.
        most: how many items it may hold; their number comes from its header.

    Raises:
        DataError: it is missing, broken, of another kind or size, or shorter or longer than its header says.
    """
    head = 16 if magic == IMAGES else 8
    pixels = 28 * 28 if magic == IMAGES else 1
    content = read_bytes(path, head + most * pixels)
    if len(content) < head:
        raise DataError(f"{path} has {len(content)} bytes, its header alone needs {head}; download it again")
    found, count, *size = struct.unpack(f">{head // 4}I", content[:head])
    if found != magic:
        raise DataError(
            f"{path} starts with {found}, an IDX file of {_kind(magic)} starts with {magic}; download it again"
        )
    if size not in ([], [28, 28]) or count > most:
        what = f"{count:,} items" + (f" of {size[0]} x {size[1]}" if size else "")
        expected = f"at most {most:,}" + (" of 28 x 28" if size else "")
        raise DataError(f"{path} says that it holds {what}, expected {expected}; download it again")
    if len(content) != head + count * pixels:
        least = "at least " if len(content) > head + most * pixels else ""
        raise DataError(
            f"{path} holds {least}{len(content):,} bytes, by its header {head + count * pixels:,} ({count:,} {_kind(magic)}); "
            "it is cut off or corrupt: download it again"
        )
    body = torch.from_numpy(np.frombuffer(content, np.uint8, offset=head).copy())
    return body.view(count, 1, 28, 28) if magic == IMAGES else body


def _read(kind: IdxSet, root: Path, *, validation: float, download: bool, seed: int) -> ImageData:
    folder = _folder(kind, root)
    missing = [
        remote for remote in REMOTES[kind.name] if not _present(folder / remote.file.removesuffix(".gz")).exists()
    ]
    obtain(kind.name, folder, missing, download=download)
    return assemble(
        kind.name,
        _split(folder, "train", 60_000),
        _split(folder, "t10k", 10_000),
        classes=kind.classes,
        shape=(1, 28, 28),
        validation=validation,
        seed=seed,
        statistics=((kind.mean,), (kind.std,)),
    )


def _folder(kind: IdxSet, root: Path) -> Path:
    """Where the files are; the root itself only by its name, since the files of both sets are called the same."""
    places = [root / name for name in kind.folders]
    if ("fashion" in root.name.lower()) == (kind is FASHION_MNIST) and "mnist" in root.name.lower():
        places.append(root)
    held = [place for place in places if list(place.glob("train-images-idx3-ubyte*"))]
    return (held or places)[0]


def _split(folder: Path, part: str, most: int) -> TensorSplit:
    image_file, label_file = (_present(folder / f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    images = read_idx(image_file, IMAGES, most)
    labels = read_idx(label_file, LABELS, most).to(torch.int64)
    if not len(images) == len(labels) > 0:
        raise DataError(
            f"{image_file} holds {len(images):,} images and {label_file} {len(labels):,} labels; download both again"
        )
    check_labels(str(label_file), labels, 10)
    return TensorSplit(images, labels)


def _present(path: Path) -> Path:
    return path if path.exists() else path.with_name(path.name + ".gz")


def _kind(magic: int) -> str:
    return "images" if magic == IMAGES else "labels"
