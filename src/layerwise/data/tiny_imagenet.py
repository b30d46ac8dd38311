"""Tiny ImageNet's layout: class folders to learn from, and one folder with a table of labels to evaluate on."""

from __future__ import annotations

from pathlib import Path

import torch

from layerwise.core.registry import register
from layerwise.data.custom import from_dataset
from layerwise.data.files import in_root
from layerwise.data.folder import ImageFolder, scan
from layerwise.data.splits import ImageData
from layerwise.errors import ConfigError, DataError

FOLDER = "tiny-imagenet-200"
ANNOTATIONS = "val_annotations.txt"


@register(
    "data",
    "tiny-imagenet",
    validation=0.02,
    where=in_root("tiny-imagenet-200/{train/CLASS/images/*,val/val_annotations.txt}"),
)
def read_tiny_imagenet(
    root: Path, *, validation: float, download: bool, seed: int, size: int | None = None
) -> ImageData:
    """Tiny ImageNet: 100,000 + 10,000 photographs of 200 classes, 64 x 64, colour; grey ones become RGB.

    Under ROOT/tiny-imagenet-200, or ROOT itself, are train/CLASS/images/*.JPEG, and val/images/*.JPEG with val/val_annotations.txt,
    whose lines begin with a picture's name and its class. The labels of its `test` folder are not published: evaluated on is
    `val`, and the validation split is held out of `train`. Pictures are decoded when a batch needs them. `size` brings them to
    another side, 224 for networks that ask for it. Nothing is downloaded.
    """
    del download
    if size is not None and size < 1:
        raise ConfigError(f"tiny-imagenet: size={size} is no size; give size 1 or more")
    folder = root / FOLDER if (root / FOLDER).is_dir() else root
    if not (folder / "train").is_dir() or not (folder / "val").is_dir():
        raise DataError(
            f"tiny-imagenet: {root} holds neither {FOLDER} nor its folders train and val; unpack tiny-imagenet-200.zip there"
        )
    train = scan(folder / "train", resize=size, crop=size)
    test = annotated(folder / "val", train.classes, size=size)
    return from_dataset(train, test=test, validation=validation, name="tiny-imagenet", seed=seed)


def annotated(folder: Path, classes: tuple[str, ...], *, size: int | None = None) -> ImageFolder:
    """The pictures of FOLDER/images that FOLDER/val_annotations.txt names, in its order.

    Args:
        folder: with `images` and the table: a line a picture, name and class between tabs, then what is not read.
        classes: the names of the classes.
        size: the side that the pictures are brought to; None leaves them.

    Raises:
        DataError: the table is missing or empty, or a line names no class or no picture.
    """
    table = folder / ANNOTATIONS
    if not table.is_file():
        raise DataError(f"tiny-imagenet: {table} is missing; it says which class each picture of {folder} shows")
    files: list[str] = []
    targets: list[int] = []
    numbers = {name: number for number, name in enumerate(classes)}
    for position, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        name, _, rest = line.partition("\t")
        label, path = rest.partition("\t")[0], folder / "images" / name
        if label not in numbers:
            raise DataError(
                f"{table}, line {position}: {label!r} is no class of the training set; repair or remove the line"
            )
        # A name is one of this folder: a path would lead out of it.
        if Path(name).name != name or not path.is_file():
            raise DataError(f"{table}, line {position}: there is no picture {path}; unpack the archive again")
        files.append(str(path))
        targets.append(numbers[label])
    if not files:
        raise DataError(f"{table} is empty; unpack the archive again")
    return ImageFolder(files=tuple(files), targets=torch.tensor(targets), classes=classes, resize=size, crop=size)
