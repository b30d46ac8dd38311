"""Tiny data files in the layouts that the sites distribute."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def pixels(count: int, *shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def idx_bytes(array: Bytes) -> bytes:
    magic = 2051 if array.ndim == 3 else 2049
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def write_idx(folder: Path, *, train: int = 20, test: int = 10, packed: bool = False) -> dict[str, Bytes]:
    """The four files of an MNIST-like set; what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    held: dict[str, Bytes] = {}
    for seed, (part, count) in enumerate((("train", train), ("t10k", test))):
        held[f"{part}-images-idx3"] = pixels(count, 28, 28, seed=seed)
        held[f"{part}-labels-idx1"] = (np.arange(count) % 10).astype(np.uint8)
    for name, array in held.items():
        content = idx_bytes(array)
        if packed:
            (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"{name}-ubyte").write_bytes(content)
    return held


def cifar_bytes(count: int, labels: tuple[int, ...], *, seed: int = 0) -> bytes:
    """Records of label bytes, record i of class i modulo their number, and random pixels."""
    columns = [(np.arange(count) % classes).astype(np.uint8)[:, None] for classes in labels]
    return np.concatenate([*columns, pixels(count, 3072, seed=seed)], axis=1).tobytes()


def cifar10_files(count: int = 20) -> dict[str, bytes]:
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    return {f"cifar-10-batches-bin/{name}": cifar_bytes(count, (10,), seed=i) for i, name in enumerate(names)}


def write_files(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def tar_bytes(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(
    name: str, content: bytes, *, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    return info, content
