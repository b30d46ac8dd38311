"""Pictures in folders: one folder a class, decoded when a batch needs them."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from layerwise.core.registry import register
from layerwise.data.custom import from_dataset
from layerwise.data.files import in_root
from layerwise.data.splits import ImageData, pil_tensor
from layerwise.errors import ConfigError, DataError

SUFFIXES, FORMATS = (".jpg", ".jpeg", ".png"), ("JPEG", "PNG")

MOST_PIXELS = 80_000_000
"""In one picture, 320 MB while it is decoded: a file of a few kilobytes can unpack to any size. Pillow itself warns a little above."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class ImageFolder(Dataset[tuple[Tensor, int]]):
    """JPEG and PNG files under FOLDER/CLASS/, as (uint8 (3, H, W), class number), in the order of their paths.

    Args:
        files: the pictures.
        targets: their class numbers, int64.
        classes: the names of the classes.
        resize: the shorter side is brought to this first; None leaves it.
        crop: then the middle square of this side is taken; None takes all.
    """

    files: tuple[str, ...]
    targets: Tensor
    classes: tuple[str, ...]
    resize: int | None = None
    crop: int | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return decode(self.files[index], resize=self.resize, crop=self.crop), int(self.targets[index])


@register("data", "image-folder", validation=0.1, where=in_root("{train,val,test}/CLASS/*"))
def read_image_folder(
    root: Path, *, validation: float, download: bool, seed: int, size: int | None = None, resize: int | None = None
) -> ImageData:
    """Your own pictures under ROOT/train/CLASS/, ROOT/val/CLASS/ and ROOT/test/CLASS/; JPEG or PNG, grey ones become RGB.

    Evaluated on is `test`; without it `val`, as ImageNet is used, and the validation split is then held out of `train`. With both,
    `val` is the validation split. `size` brings the shorter side to `resize` (default: `size`) and takes the middle square of
    that side; without it all pictures must have one shape. Mean and deviation are estimated on 500 training pictures.
    """
    if (size is not None and size < 1) or (resize is not None and (size is None or resize < size)):
        raise ConfigError(
            f"image-folder: size is {size} and resize {resize}; give size 1 or more, and resize not below size"
        )
    train = scan(root / "train", resize=resize or size, crop=size)
    others = [name for name in ("test", "val") if (root / name).is_dir()]
    if not others:
        raise DataError(
            f"image-folder: {root} has no folder test or val; put pictures to evaluate on under {root / 'test'}/CLASS"
        )
    parts = [scan(root / name, resize=resize or size, crop=size, classes=train.classes) for name in others]
    return from_dataset(
        train, test=parts[0], validation=parts[1] if len(parts) > 1 else validation, name="image-folder", seed=seed
    )


def scan(
    folder: Path, *, resize: int | None = None, crop: int | None = None, classes: tuple[str, ...] | None = None
) -> ImageFolder:
    """The pictures under FOLDER/CLASS/, subfolders included; other files are passed over.

    Raises:
        DataError: the folder is missing or has no class folders, a class is empty or not among `classes`.
    """
    if not folder.is_dir():
        raise DataError(f"image-folder: {folder} is no folder; put the pictures of each class under {folder}/CLASS")
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise DataError(f"image-folder: {folder} holds no folders; put the pictures of each class under {folder}/CLASS")
    names = found if classes is None else list(classes)
    if unknown := sorted(set(found) - set(names)):
        raise DataError(
            f"image-folder: {folder / unknown[0]} is a class that the training set lacks; add it there or remove it"
        )
    files: list[str] = []
    targets: list[int] = []
    for name in found:
        pictures = sorted(_pictures(folder / name))
        if not pictures:
            raise DataError(
                f"image-folder: {folder / name} holds no picture ({', '.join(SUFFIXES)}); add some or remove it"
            )
        files += pictures
        targets += [names.index(name)] * len(pictures)
    return ImageFolder(
        files=tuple(files), targets=torch.tensor(targets), classes=tuple(names), resize=resize, crop=crop
    )


def decode(path: str, *, resize: int | None = None, crop: int | None = None) -> Tensor:
    """A picture as RGB, uint8 (3, H, W).

    Args:
        path: a JPEG or PNG file.
        resize: the shorter side is brought to this, bilinear and antialiased; None leaves it.
        crop: then the middle square of this side is taken; None takes all.

    Raises:
        DataError: the file is missing, corrupt, smaller than the crop, or has 16 bits a channel.
    """
    from PIL import Image

    if not os.path.isfile(path):
        raise DataError(f"{path} is missing or no regular file; replace or remove it")
    try:
        # Only these formats: among the dozens that Pillow would try are some that run other programs. It warns of broken EXIF data,
        # which nobody here reads, and of many pixels, which are refused below.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            _check_size(path, *image.size)
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"{path} has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits first"
                )
            # A palette with transparency must pass through RGBA; straight to RGB Pillow warns and takes the wrong colour.
            colour = (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        # Pillow raises all of these for broken files, SyntaxError for PNG headers.
        raise DataError(f"{path} cannot be decoded ({_reason(error)}); replace or remove it") from None
    width, height = colour.size
    if resize is not None:
        width, height = (max(resize, round(side * resize / min(colour.size))) for side in colour.size)
        _check_size(path, width, height)
    square = (0, 0, width, height)
    if crop is not None:
        if crop > min(width, height):
            raise DataError(f"{path} is {width} x {height} pixels then, too few for a square of {crop}; crop less")
        left, top = (width - crop) // 2, (height - crop) // 2
        square = (left, top, left + crop, top + crop)
    if resize is None:
        return pil_tensor(colour.crop(square), path)
    # Only what is kept is computed: of a picture of 4:3, brought to 256 and cropped to 224, a little over half.
    across, down = colour.width / width, colour.height / height
    box = (square[0] * across, square[1] * down, square[2] * across, square[3] * down)
    size = (square[2] - square[0], square[3] - square[1])
    return pil_tensor(colour.resize(size, Image.Resampling.BILINEAR, box=box), path)


def _check_size(path: str, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{path} has {width:,} x {height:,} pixels to work on, more than {MOST_PIXELS:,}; crop it, make it smaller or remove it"
        )


def _pictures(folder: Path) -> list[str]:
    return [
        os.path.join(where, name)
        for where, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    ]


def _reason(error: BaseException) -> str:
    text = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
    return "not a picture" if text.startswith("cannot identify") else text
