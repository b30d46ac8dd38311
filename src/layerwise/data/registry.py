"""The data sets by name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from layerwise.data.cifar import read_cifar10, read_cifar100
from layerwise.data.embedded import read_digits, read_gaussians
from layerwise.data.files import data_root
from layerwise.data.folder import read_image_folder
from layerwise.data.idx import read_fashion_mnist, read_mnist
from layerwise.data.splits import ImageData
from layerwise.data.tiny_imagenet import read_tiny_imagenet
from layerwise.errors import ConfigError, did_you_mean


@final
@dataclass(frozen=True)
class _Entry:
    read: Callable[..., ImageData]
    validation: float
    where: str


_IN_ROOT = "ROOT/{} (ROOT: --data.root, else LAYERWISE_DATA, else ~/.cache/layerwise)"
_COMMON = {"root", "validation", "download", "seed"}
_ENTRIES = {
    "digits": _Entry(read_digits, 0.1, "embedded"),
    "mnist": _Entry(read_mnist, 0.05, _IN_ROOT.format("MNIST/raw/*-ubyte, plain or .gz")),
    "fashion-mnist": _Entry(read_fashion_mnist, 0.05, _IN_ROOT.format("FashionMNIST/raw/*-ubyte, plain or .gz")),
    "cifar10": _Entry(read_cifar10, 0.02, _IN_ROOT.format("cifar-10-batches-bin/*.bin or cifar-10-binary.tar.gz")),
    "cifar100": _Entry(read_cifar100, 0.02, _IN_ROOT.format("cifar-100-binary/*.bin or cifar-100-binary.tar.gz")),
    "image-folder": _Entry(read_image_folder, 0.1, _IN_ROOT.format("{train,val,test}/CLASS/*")),
    "tiny-imagenet": _Entry(
        read_tiny_imagenet, 0.02, _IN_ROOT.format("tiny-imagenet-200/{train/CLASS/images/*,val/val_annotations.txt}")
    ),
    "gaussians": _Entry(read_gaussians, 0.1, "generated"),
}


def names() -> tuple[str, ...]:
    """The names that `load` knows.

    >>> "digits" in names()
    True
    """
    return tuple(_ENTRIES)


def describe(name: str) -> str:
    """What a data set is, where its files are looked for and which options it has, in one paragraph.

    >>> print(describe("digits").splitlines()[0])
    Handwritten digits (UCI Optdigits, test part): 1,797 real images, 8 x 8, grey, embedded in scikit-learn.
    """
    entry = _entry(name)
    options = ", ".join(f"{option}={default!r}" for option, default in _options(entry).items())
    lines = [inspect.getdoc(entry.read) or "", "", f"Files: {entry.where}."]
    lines.append(f"Held out for validation by default: {100 * entry.validation:g} % of the training images.")
    return "\n".join(lines + ([f"Options: {options}."] if options else []))


def load(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    validation: float | None = None,
    download: bool = False,
    seed: int = 0,
    **options: object,
) -> ImageData:
    """A data set by name.

    Args:
        name: one of `names()`.
        root: the folder of the data; else LAYERWISE_DATA, else ~/.cache/layerwise.
        validation: held out of the training set, stratified by class, never from the test set: below 1 a fraction, from 1 on a
            number of images, 0 for none; None for what `describe(name)` says.
        download: fetch what is missing; nothing is fetched otherwise.
        seed: of the validation split (and of generated data).
        options: those of the set, see `describe(name)`.

    Raises:
        ConfigError: an unknown name or option, or `validation` out of range.
        DataError: files are missing, cut off or corrupt.

    >>> data = load("digits")
    >>> len(data.train), len(data.validation), len(data.test), data.shape, data.num_classes
    (1131, 126, 540, (1, 8, 8), 10)
    """
    entry = _entry(name)
    known = _options(entry)
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) if known else "it has none"
            raise ConfigError(f"data set {name!r} has no option {option!r}; {hint}")
    amount = entry.validation if validation is None else validation
    return entry.read(data_root(root), validation=amount, download=download, seed=seed, **options)


def _entry(name: str) -> _Entry:
    if name not in _ENTRIES:
        raise ConfigError(f"no data set is called {name!r}; {did_you_mean(name, _ENTRIES)}")
    return _ENTRIES[name]


def _options(entry: _Entry) -> dict[str, object]:
    parameters = inspect.signature(entry.read).parameters
    return {key: value.default for key, value in parameters.items() if key not in _COMMON}
