"""Data files that are damaged, missing or somebody else's: a sentence, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_mistakes import TRAIN
from tests.command import Command, layerwise, told
from tests.data.writers import cifar10_files, write_files, write_idx

__all__ = ["layerwise"]  # a fixture


def no_pictures(root: Path) -> None:
    for part in ("train", "test"):
        (root / part / "cat").mkdir(parents=True)


def no_folder(root: Path) -> None:
    root.mkdir()


def broken_picture(root: Path) -> None:
    no_pictures(root)
    for part in ("train", "test"):
        for number in range(3):
            (root / part / "cat" / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")


def cut_mnist(root: Path) -> None:
    write_idx(root / "MNIST" / "raw")
    file = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-9])


def scrambled_mnist(root: Path) -> None:
    write_idx(root / "MNIST" / "raw")
    (root / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(b"no labels at all")


def wrong_label(root: Path) -> None:
    files = cifar10_files()
    files["cifar-10-batches-bin/data_batch_3.bin"] = b"\x0c" + files["cifar-10-batches-bin/data_batch_3.bin"][1:]
    write_files(root, files)


def cut_cifar(root: Path) -> None:
    files = cifar10_files()
    files["cifar-10-batches-bin/data_batch_3.bin"] = files["cifar-10-batches-bin/data_batch_3.bin"][:-1]
    write_files(root, files)


def cut_archive(root: Path) -> None:
    root.mkdir()
    (root / "cifar-10-binary.tar.gz").write_bytes(b"\x1f\x8b\x08\0 cut off")


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("image-folder", no_folder, r"train is no folder; put the pictures of each class under .*/train/CLASS"),
        ("image-folder", no_pictures, r"image-folder: .*cat"),
        ("image-folder", broken_picture, r"cat/0.png"),
        ("mnist", cut_mnist, r"train-images-idx3-ubyte"),
        ("mnist", scrambled_mnist, r"train-labels-idx1-ubyte"),
        ("cifar10", wrong_label, r"label \d+ is 12"),
        ("cifar10", cut_cifar, r"data_batch_3.bin"),
        ("cifar10", cut_archive, r"cifar-10-binary.tar.gz is no whole"),
    ],
)
def test_bad_data_files_are_told(
    layerwise: Command, tmp_path: Path, name: str, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "data")
    options = ["--model.options={}", *(["--data.options.allow_fewer=true"] if name == "cifar10" else [])]
    told(layerwise(*TRAIN, "--data.name", name, "--data.root", "data", *options), message)
    assert not (tmp_path / "runs").exists()
