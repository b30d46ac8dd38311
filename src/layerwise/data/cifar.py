"""CIFAR-10 and CIFAR-100 in the binary files that their site distributes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from layerwise.core.registry import register
from layerwise.data.checks import check_labels
from layerwise.data.custom import Statistics, assemble
from layerwise.data.download import REMOTES, obtain
from layerwise.data.files import in_root, read_bytes, read_members
from layerwise.data.splits import ImageData, TensorSplit
from layerwise.errors import DataError

Records: TypeAlias = npt.NDArray[np.uint8]
PIXELS = 3 * 32 * 32
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FINE = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish "
    "forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle "
    "mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine "
    "possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar "
    "sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale "
    "willow_tree wolf woman worm"
)
_COARSE = (
    "aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture "
    "insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores "
    "medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2"
)
FINE_CLASSES, COARSE_CLASSES = tuple(_FINE.split()), tuple(_COARSE.split())


@final
@dataclass(frozen=True, kw_only=True)
class Format:
    """What tells the files of one CIFAR from those of the other.

    Args:
        name: its name in `load`.
        folder: of the files, under the root and in the archive.
        train: the training files.
        test: the test file.
        records: images in a training file; the test file has 10,000.
        labels: for each label byte before the pixels, how many classes it tells apart.
        statistics: mean and deviation per channel of the 50,000 training images.
    """

    name: str
    folder: str
    train: tuple[str, ...]
    test: str
    records: int
    labels: tuple[int, ...]
    statistics: Statistics

    @property
    def record(self) -> int:
        """Bytes of one image with its labels."""
        return len(self.labels) + PIXELS


CIFAR10 = Format(
    name="cifar10",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test="test_batch.bin",
    records=10_000,
    labels=(10,),
    statistics=(
        (0.49139967861519607, 0.48215840839460783, 0.44653091444546567),
        (0.2470322324632823, 0.24348512800005553, 0.26158784172796434),
    ),
)
CIFAR100 = Format(
    name="cifar100",
    folder="cifar-100-binary",
    train=("train.bin",),
    test="test.bin",
    records=50_000,
    labels=(20, 100),
    statistics=(
        (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
        (0.2673342858792401, 0.25643846291708833, 0.27615047132568393),
    ),
)


@register("data", "cifar10", validation=0.02, where=in_root("cifar-10-batches-bin/*.bin or cifar-10-binary.tar.gz"))
def read_cifar10(
    root: Path, *, validation: float, download: bool, seed: int, grey: bool = False, allow_fewer: bool = False
) -> ImageData:
    """CIFAR-10: 50,000 + 10,000 photographs of 10 classes, 32 x 32, colour or grey.

    `grey` gives one channel, the luminance of ITU-R 601, as LAT's toy experiment has it.
    """
    train, test = _splits(CIFAR10, root, column=0, download=download, allow_fewer=allow_fewer)
    if grey:
        train, test = (TensorSplit(luminance(part.images), part.labels) for part in (train, test))
    return assemble(
        "cifar10",
        train,
        test,
        classes=CIFAR10_CLASSES,
        shape=(1 if grey else 3, 32, 32),
        validation=validation,
        seed=seed,
        statistics=None if grey else CIFAR10.statistics,
    )


@register("data", "cifar100", validation=0.02, where=in_root("cifar-100-binary/*.bin or cifar-100-binary.tar.gz"))
def read_cifar100(
    root: Path, *, validation: float, download: bool, seed: int, coarse: bool = False, allow_fewer: bool = False
) -> ImageData:
    """CIFAR-100: 50,000 + 10,000 photographs of 100 fine or 20 coarse classes, 32 x 32, colour."""
    train, test = _splits(CIFAR100, root, column=0 if coarse else 1, download=download, allow_fewer=allow_fewer)
    return assemble(
        "cifar100",
        train,
        test,
        classes=COARSE_CLASSES if coarse else FINE_CLASSES,
        shape=(3, 32, 32),
        validation=validation,
        seed=seed,
        statistics=CIFAR100.statistics,
    )


def luminance(images: Tensor) -> Tensor:
    """The luminance of RGB pixels, 0.299 R + 0.587 G + 0.114 B (ITU-R 601), rounded: uint8 (N, 3, H, W) to (N, 1, H, W).

    >>> luminance(torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)).item()
    76
    """
    red, green, blue = images.to(torch.int32).unbind(1)
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).to(torch.uint8).unsqueeze(1)


def parse_records(name: str, content: bytes, layout: Format, *, expected: int, allow_fewer: bool) -> Records:
    """The records of a file, each some label bytes and then pixels (channel, row, column).

    Args:
        name: what errors call the file.
        content: its bytes.
        layout: which CIFAR.
        expected: records that it must have; without this a file cut between two records would pass.
        allow_fewer: accept fewer.

    Raises:
        DataError: the length is not that of `expected` records, or a label is out of range.
    """
    count, rest = divmod(len(content), layout.record)
    if rest or not 0 < count <= expected or (count < expected and not allow_fewer):
        least = "at least " if len(content) > expected * layout.record else ""
        hint = " (or set allow_fewer, if it holds fewer on purpose)" if 0 < count < expected and not rest else ""
        raise DataError(
            f"{name} has {least}{len(content):,} bytes, expected {expected * layout.record:,} ({expected:,} images of "
            f"{layout.record:,}); it is cut off or corrupt: download it again{hint}"
        )
    records = np.frombuffer(content, np.uint8).reshape(count, layout.record)
    for position, classes in enumerate(layout.labels):
        check_labels(name, torch.from_numpy(records[:, position].astype(np.int64)), classes)
    return records


def _split(layout: Format, files: list[Records], column: int) -> TensorSplit:
    first = len(layout.labels)
    images = torch.from_numpy(np.concatenate([records[:, first:] for records in files])).view(-1, 3, 32, 32)
    return TensorSplit(
        images, torch.from_numpy(np.concatenate([records[:, column] for records in files]).astype(np.int64))
    )


def _splits(
    layout: Format, root: Path, *, column: int, download: bool, allow_fewer: bool
) -> tuple[TensorSplit, TensorSplit]:
    parts = {
        file: parse_records(name, content, layout, expected=_expected(layout, file), allow_fewer=allow_fewer)
        for file, (name, content) in _contents(layout, root, download=download).items()
    }
    train = [parts[file] for file in layout.train]
    return _split(layout, train, column), _split(layout, [parts[layout.test]], column)


def _contents(layout: Format, root: Path, *, download: bool) -> dict[str, tuple[str, bytes]]:
    """For each file its full name and its bytes, from the folder or else from the archive."""
    files = (*layout.train, layout.test)
    limits = {file: _expected(layout, file) * layout.record for file in files}
    for folder in (root / layout.folder, root):
        if all((folder / file).exists() for file in files):
            return {file: (str(folder / file), read_bytes(folder / file, limits[file])) for file in files}
    (remote,) = REMOTES[layout.name]
    archive = root / remote.file
    if not archive.exists() and not download:
        _refuse_others(layout, root)
    obtain(layout.name, root, [] if archive.exists() else [remote], download=download)
    members = read_members(archive, {f"{layout.folder}/{file}": limits[file] for file in files})
    absent = [member for member in (f"{layout.folder}/{file}" for file in files) if member not in members]
    if absent:
        raise DataError(f"{archive} does not hold {', '.join(absent)}; delete it and download it again")
    return {file: (f"{archive}: {file}", members[f"{layout.folder}/{file}"]) for file in files}


def _refuse_others(layout: Format, root: Path) -> None:
    """Say what is wrong with what is there, where it is not simply nothing."""
    hint = f"add --data.download true to fetch the binary version, {REMOTES[layout.name][0].file}"
    folder = root / layout.folder
    absent = [file for file in (*layout.train, layout.test) if not (folder / file).exists()]
    if folder.exists():
        raise DataError(f"{folder} lacks {', '.join(absent)}; {hint}")
    stem = layout.folder.rsplit("-", 1)[0].removesuffix("-batches")
    for pickled in (f"{stem}-batches-py", f"{stem}-python", f"{stem}-python.tar.gz"):
        if (root / pickled).exists():
            raise DataError(
                f"{root / pickled} is the version in Python pickles, which can run any code and is not read; {hint}"
            )


def _expected(layout: Format, file: str) -> int:
    return 10_000 if file == layout.test else layout.records
