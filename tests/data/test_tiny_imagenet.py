"""Tiny ImageNet's layout on generated pictures; CIFAR-10 in grey."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from layerwise.data import ImageFolder, StreamSplit, TensorSplit, batches, load
from layerwise.data.cifar import luminance
from layerwise.errors import ConfigError, DataError
from tests.data import writers
from tests.data.test_folder import picture

LABELS = {"val_0.JPEG": "n02", "val_1.JPEG": "n01", "val_2.JPEG": "n02"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-imagenet-200"
    for number, name in enumerate(("n01", "n02")):
        for i in range(4):
            mode = "L" if i == 3 else "RGB"
            picture(
                folder / "train" / name / "images" / f"{name}_{i}.JPEG", size=(8, 8), seed=10 * number + i, mode=mode
            )
        (folder / "train" / name / f"{name}_boxes.txt").write_text("n01_0.JPEG\t0\t0\t8\t8\n")
    for i, name in enumerate(LABELS):
        picture(folder / "val" / "images" / name, size=(8, 8), seed=100 + i)
    table = "".join(f"{name}\t{label}\t0\t0\t7\t7\n" for name, label in LABELS.items())
    (folder / "val" / "val_annotations.txt").write_text(table)
    return tmp_path


def folder_of(split: object) -> ImageFolder:
    assert isinstance(split, StreamSplit)
    assert isinstance(split.dataset, ImageFolder)
    return split.dataset


@pytest.mark.parametrize("inside", [False, True])
def test_the_table_labels_the_pictures_that_judge(root: Path, inside: bool) -> None:
    data = load("tiny-imagenet", root=root / "tiny-imagenet-200" if inside else root, validation=2)
    assert (data.name, data.classes, data.shape) == ("tiny-imagenet", ("n01", "n02"), (3, 8, 8))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [6, 2, 3]
    judged = folder_of(data.test)
    assert {Path(f).name: data.classes[int(t)] for f, t in zip(judged.files, judged.targets, strict=True)} == LABELS
    assert data.validation.labels is not None
    assert data.validation.labels.tolist() == [0, 1]
    x, y = next(batches(data.test, 3))
    assert y.tolist() == [1, 0, 1]
    for image, file in zip(x, judged.files, strict=True):
        expected = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)
        assert torch.equal(image, expected.float() / 255)


def test_another_size(root: Path) -> None:
    data = load("tiny-imagenet", root=root, size=16)
    assert data.shape == (3, 16, 16)
    assert next(batches(data.test, 3))[0].shape == (3, 3, 16, 16)
    with pytest.raises(ConfigError, match="size=0 is no size"):
        load("tiny-imagenet", root=root, size=0)


def replaced(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        table = folder / "val" / "val_annotations.txt"
        table.write_text(table.read_text().replace(old, new))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "val").rename(folder / "test"), "holds neither tiny-imagenet-200 nor its folders"),
        (lambda folder: (folder / "val" / "val_annotations.txt").unlink(), "val_annotations.txt is missing; it says"),
        (lambda folder: (folder / "val" / "val_annotations.txt").write_text(""), "val_annotations.txt is empty"),
        (replaced("\tn01", "\tn03"), "line 2: 'n03' is no class of the training set; repair or remove"),
        (replaced("val_2", "val_9"), "line 3: there is no picture .*val_9.JPEG; unpack the archive again"),
        (replaced("val_2", "../images/val_2"), "line 3: there is no picture"),
    ],
)
def test_what_is_wrong_is_told(root: Path, change: Callable[[Path], object], message: str) -> None:
    change(root / "tiny-imagenet-200")
    with pytest.raises(DataError, match=message):
        load("tiny-imagenet", root=root)


def test_grey_is_the_luminance_of_pillow() -> None:
    """Pillow rounds in 16 bits, we in thousandths: a level apart at most, and for grey pixels none."""
    images = torch.from_numpy(writers.pixels(4, 3, 16, 16))
    pillow = np.stack([np.asarray(Image.fromarray(i.permute(1, 2, 0).numpy()).convert("L")) for i in images])
    apart = luminance(images)[:, 0].int() - torch.from_numpy(pillow).int()
    assert int(apart.abs().max()) <= 1
    assert float(apart.ne(0).float().mean()) < 0.01
    levels = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)
    assert torch.equal(luminance(levels.expand(-1, 3, 1, 1)), levels)


def test_cifar10_in_grey(tmp_path: Path) -> None:
    writers.write_files(tmp_path, writers.cifar10_files(20))
    colour, grey = (
        load("cifar10", root=tmp_path, validation=0, allow_fewer=True, grey=wanted) for wanted in (False, True)
    )
    assert (colour.shape, grey.shape) == ((3, 32, 32), (1, 32, 32))
    assert isinstance(colour.train, TensorSplit)
    assert isinstance(grey.train, TensorSplit)
    assert torch.equal(grey.train.images, luminance(colour.train.images))
    assert torch.equal(grey.train.labels, colour.train.labels)
    pixels = grey.train.images.double() / 255
    assert (*grey.mean, *grey.std) == pytest.approx((pixels.mean().item(), pixels.std(correction=0).item()))
