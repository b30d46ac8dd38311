"""A user's own tensors and datasets as `ImageData`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from layerwise.core.arguments import named
from layerwise.data.checks import Range, check_images, check_labels
from layerwise.data.examples import class_names, is_dataset, picture_and_label
from layerwise.data.holdout import part, pixel_statistics
from layerwise.data.splits import ImageData, Split, StreamSplit, TensorSplit, item_tensor, read_item
from layerwise.errors import DataError

Pair: TypeAlias = tuple[Tensor, Tensor]
Statistics: TypeAlias = tuple[Sequence[float], Sequence[float]] | None

BELIEVED = 5
"""Items of a dataset that have to agree with its `targets`: reading all may take hours."""


@named
def from_tensors(
    images: Tensor,
    labels: Tensor,
    *,
    test: Pair | float = 0.2,
    validation: float = 0.1,
    classes: Sequence[str] | None = None,
    name: str = "custom",
    seed: int = 0,
    value_range: Range = (0.0, 1.0),
    statistics: Statistics = None,
) -> ImageData:
    """A data set from tensors in memory.

    Args:
        images: uint8 in 0..255, or any float in [0, 1] (kept as float32, not quantised), shape (N, C, H, W).
        labels: class numbers of any integer type, shape (N,).
        test: (images, labels) to evaluate on; or how much of `images` is held out for it first, as for `validation`.
        validation: held out of the training images for choosing anything: below 1 a fraction, from 1 on a count, 0 for none.
        classes: their names; without them 0 to the largest label of `images`.
        name: what reports call it.
        seed: of the held-out images, which are stratified by class.
        value_range: what float pixels must lie in; None for data that are not pixels (attacks then clip nothing).
        statistics: mean and standard deviation per channel of pixels in [0, 1]; computed where None.

    Raises:
        DataError: the first image or label that is wrong, and its value.
        ConfigError: `test` or `validation` leaves nothing to learn from.

    >>> data = from_tensors(torch.rand(20, 3, 4, 4), torch.arange(20) % 2, test=0.25, validation=5)
    >>> len(data.train), len(data.validation), len(data.test), data.classes
    (10, 5, 5, ('0', '1'))
    """
    raw = _checked_labels("train", labels)
    names = range_of(raw) if classes is None else tuple(map(str, classes))
    train: Split = tensor_split("train", images, raw, len(names), value_range)
    last: Split
    if isinstance(test, tuple):
        last = tensor_split("test", *test, len(names), value_range)
        if last.images.shape[1:] != images.shape[1:]:
            raise DataError(
                f"test: images of {tuple(last.images.shape[1:])}, training ones of {tuple(images.shape[1:])}"
            )
    else:
        train, last = part(train, test, key=f"{name}/test/{seed}", name="test")
    channels, height, width = images.shape[1:]
    return assemble(
        name,
        train,
        last,
        classes=names,
        shape=(channels, height, width),
        validation=validation,
        seed=seed,
        value_range=value_range,
        statistics=statistics,
    )


@named
def from_dataset(
    dataset: Dataset[Any],
    *,
    test: Dataset[Any] | float = 0.2,
    validation: Dataset[Any] | float = 0.1,
    classes: Sequence[str] | None = None,
    name: str = "custom",
    seed: int = 0,
    value_range: Range = (0.0, 1.0),
    statistics: Statistics = None,
) -> ImageData:
    """A data set that is read when needed, on the workers of `batches(..., num_workers=...)`.

    Each item is checked as it is read. Held-out images are stratified by class where the dataset has its labels as `targets`.
    Random transforms inside the dataset draw from its workers' streams, so they change with the number of workers and after a
    resume; what must not change belongs in `Augment`.

    Args:
        dataset: map-style, items (image, label): a uint8 or float tensor (C, H, W) or a PIL image, and a class number.
        test: a dataset to evaluate on, or how much of `dataset` is held out for it first, as for `validation`.
        validation: a dataset, or how much is held out for choosing anything: below 1 a fraction, from 1 on a count, 0 for none.
        classes: the names of the classes; without them `dataset.classes`.
        name: what reports call it.
        seed: of the held-out images.
        value_range: what float pixels must lie in; None for no limit.
        statistics: mean and standard deviation per channel; estimated on 500 images where None.

    Raises:
        DataError: the dataset is empty, has no length or no class names, or its first item is wrong.
        ConfigError: `test` or `validation` leaves nothing to learn from.

    >>> from torch.utils.data import TensorDataset
    >>> data = from_dataset(TensorDataset(torch.rand(20, 3, 4, 4), torch.arange(20) % 2), classes=["cat", "dog"])
    >>> len(data.train), len(data.validation), len(data.test), data.shape
    (14, 2, 4, (3, 4, 4))
    """
    found = classes if classes is not None else class_names(dataset)
    if found is None:
        raise DataError(
            f"{name}: the dataset has no `classes`; give classes=[...], the names in the order of their numbers"
        )
    names = tuple(map(str, found))
    train: Split = _stream("train", dataset, len(names), value_range)

    def held(amount: Dataset[Any] | float, part_of: str) -> Split | float:
        return amount if isinstance(amount, float | int) else _stream(part_of, amount, len(names), value_range)

    last, kept = held(test, "test"), held(validation, "validation")
    if not isinstance(last, Split):
        train, last = part(train, last, key=f"{name}/test/{seed}", name="test")
    assert isinstance(train, StreamSplit)
    return assemble(
        name,
        train,
        last,
        classes=names,
        shape=train.shape,
        validation=kept,
        seed=seed,
        value_range=value_range,
        statistics=statistics,
    )


def assemble(
    name: str,
    train: Split,
    test: Split,
    *,
    classes: tuple[str, ...],
    shape: tuple[int, int, int],
    validation: Split | float,
    seed: int,
    value_range: Range = (0.0, 1.0),
    statistics: Statistics = None,
) -> ImageData:
    """`ImageData` of a training and a test split, its validation split given or held out of the training split."""
    mean, std = statistics if statistics is not None else pixel_statistics(train)
    if not len(mean) == len(std) == shape[0] or not all(s > 0 for s in std):
        raise DataError(
            f"{name}: the mean {tuple(mean)} and deviation {tuple(std)} of the pixels must be {shape[0]} numbers each, "
            "the deviations above 0; where a channel is constant, give statistics=(mean, std) yourself"
        )
    if not isinstance(validation, Split):
        train, validation = part(train, validation, key=f"{name}/validation/{seed}")
    return ImageData(
        name=name,
        train=train,
        validation=validation,
        test=test,
        classes=classes,
        shape=shape,
        mean=tuple(mean),
        std=tuple(std),
        value_range=value_range,
    )


def tensor_split(name: str, images: Tensor, labels: Tensor, num_classes: int, value_range: Range) -> TensorSplit:
    """Tensors of any accepted type as a checked `TensorSplit`."""
    if not isinstance(images, Tensor):
        raise DataError(
            f"{name}: the images are a {type(images).__name__}; give a tensor, e.g. torch.from_numpy(images)"
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise DataError(f"{name}: the images are {images.dtype}; give uint8 in 0..255 or float in [0, 1]")
    if images.ndim != 4:
        hint = "images.unsqueeze(1)" if images.ndim == 3 else "images.view(N, C, H, W)"
        raise DataError(f"{name}: the images have shape {tuple(images.shape)}; give (N, C, H, W), e.g. {hint}")
    if images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3) and images.shape[1] == images.shape[2]:
        raise DataError(
            f"{name}: the images have shape {tuple(images.shape)}, channels last; give images.permute(0, 3, 1, 2)"
        )
    labels = _checked_labels(name, labels)
    if len(images) != len(labels):
        raise DataError(
            f"{name}: there are {len(images)} images and {len(labels)} labels; give one label for each image"
        )
    check_labels(name, labels, num_classes)
    images = images if images.dtype == torch.uint8 else images.to(torch.float32)
    check_images(name, images, value_range)
    return TensorSplit(images.contiguous(), labels)


def _checked_labels(name: str, labels: Tensor) -> Tensor:
    if not isinstance(labels, Tensor):
        raise DataError(f"{name}: the labels are a {type(labels).__name__}; give a tensor, e.g. torch.tensor(labels)")
    if labels.ndim != 1:
        raise DataError(
            f"{name}: the labels have shape {tuple(labels.shape)}; give one number an image, e.g. labels.argmax(1)"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"{name}: the labels are {labels.dtype}; class numbers are whole: give labels.long()")
    if not len(labels):
        raise DataError(f"{name}: there are no images; give at least one of each class")
    return labels.to(torch.int64)


def known_labels(dataset: Dataset[Any]) -> Tensor | None:
    """The labels that a dataset keeps as `targets`, where a few of its items say the same: a target_transform may change them."""
    count = len(dataset)  # type: ignore[arg-type]
    try:
        labels = torch.as_tensor(getattr(dataset, "targets", None))
    except (TypeError, ValueError, RuntimeError):  # nothing, text, boxes
        return None
    if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        return None
    some = sorted({int(i) for i in torch.linspace(0, count - 1, BELIEVED).round()})
    alike = all(item_tensor(read_item(dataset, i), i)[1] == int(labels[i]) for i in some)
    return labels.to(torch.int64) if alike else None


def as_image_data(data: Any, *, name: str = "custom") -> ImageData:
    """What trains, of what people have: `ImageData`, a Dataset, a DataLoader (its dataset is taken), images and labels.

    Raises:
        DataError: it is something else, or a Dataset that does not tell its classes.
    """
    data = _unloaded(data)
    if isinstance(data, ImageData):
        return data
    if isinstance(data, tuple):
        return from_tensors(*data, name=name)
    return from_dataset(data, classes=_classes_of(data), name=name)


def whole_split(data: Any) -> Split | Pair:
    """What is evaluated on, of what people have: as `as_image_data`, all in one split; images and labels are left to be checked.

    Raises:
        DataError: as `as_image_data`.
    """
    if isinstance(data, Split):
        return data
    data = _unloaded(data)
    if isinstance(data, ImageData):
        return data.test
    return data if isinstance(data, tuple) else _stream("data", data, len(_classes_of(data)), (0.0, 1.0))


def of_any_kind(data: Any) -> bool:
    """Whether data are batches or examples of any kind, which a criterion is asked for, and no images with a class each.

    >>> of_any_kind([{"input_ids": torch.zeros(2, 3), "labels": torch.ones(2)}])
    True
    >>> of_any_kind((torch.rand(2, 1, 4, 4), torch.tensor([0, 1])))
    False
    """
    if isinstance(data, DataLoader):
        data = data.dataset
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, IterableDataset | Mapping | list | Iterator):
        return True
    item: Any = data
    if is_dataset(data) and getattr(data, "__len__", None) and len(data):  # type: ignore[arg-type]
        item = read_item(data, 0)
        if isinstance(item, Mapping):
            item = None if class_names(data) is None else picture_and_label(item)
            if item is None:
                return True
    if not isinstance(item, tuple | list):
        return False
    x = item[0] if len(item) == 2 else None
    whole = isinstance(x, Tensor) and not x.is_floating_point() and x.dtype != torch.uint8
    return len(item) != 2 or whole or isinstance(x, Mapping | tuple | str)


def _unloaded(data: Any) -> ImageData | Pair | Dataset[Any]:
    """The data out of a loader, and those in memory as tensors."""
    if isinstance(data, DataLoader):
        data = data.dataset
    if isinstance(data, TensorDataset):
        data = data.tensors
    if not (isinstance(data, ImageData) or is_dataset(data) or (isinstance(data, tuple) and len(data) == 2)):
        raise DataError(
            f"a {type(data).__name__} is no data set; give layerwise.load_data(NAME), layerwise.from_tensors(images, labels), "
            "layerwise.from_dataset(dataset), or a Dataset, a DataLoader or (images, labels)"
        )
    return data


def _classes_of(dataset: Dataset[Any]) -> Sequence[str]:
    """The names of a dataset's classes, numbers where it only knows its labels."""
    found = class_names(dataset)
    if found is not None:
        return found
    labels = known_labels(dataset) if getattr(dataset, "__len__", None) and len(dataset) else None  # type: ignore[arg-type]
    if labels is None:
        raise DataError(
            f"a {type(dataset).__name__} does not tell its classes; type layerwise.from_dataset(dataset, classes=[...]), their names in "
            "the order of their numbers"
        )
    return range_of(labels)


def range_of(labels: Tensor) -> tuple[str, ...]:
    """Names of classes that have none: 0 to the largest label."""
    return tuple(map(str, range(max(int(labels.max()), 0) + 1)))


def _stream(name: str, dataset: Dataset[Any], num_classes: int, value_range: Range) -> StreamSplit:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(f"{name}: a {type(dataset).__name__} has no length or no items; give a map-style Dataset")
    if len(dataset) == 0:
        raise DataError(f"{name}: the dataset is empty; give at least one image of each class")
    image, _ = item_tensor(read_item(dataset, 0), 0)
    if image.ndim != 3:
        raise DataError(f"{name}: image 0 has shape {tuple(image.shape)}; give (C, H, W)")
    channels, height, width = image.shape
    labels = known_labels(dataset)
    if labels is not None:
        check_labels(name, labels, num_classes)
    split = StreamSplit(
        dataset=dataset,
        shape=(channels, height, width),
        num_classes=num_classes,
        labels=labels,
        value_range=value_range,
    )
    split.item(0)
    return split
