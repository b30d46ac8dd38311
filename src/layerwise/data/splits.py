"""The parts of a data set: images that live in memory, and images that stream through workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from layerwise.data.checks import Range, check_images, check_labels
from layerwise.data.examples import LABELS, PICTURES, picture_and_label
from layerwise.errors import DataError

Shape: TypeAlias = tuple[int, int, int]
Plan: TypeAlias = Sequence[Tensor]
"""For each batch, the rows of the split that it holds (int64, on the CPU)."""


class Split(ABC):
    """Images with labels: a `TensorSplit` in memory or a `StreamSplit` read on the fly."""

    labels: Tensor | None

    @abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    @abstractmethod
    def subset(self, rows: Tensor | Sequence[int]) -> Split:
        """The split that holds only `rows`, in that order."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Split:
        """The same split with what it keeps in memory on `device`."""

    @abstractmethod
    def read(
        self, plan: Plan, *, device: torch.device, num_workers: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One (images as stored, labels) for each entry of `plan`, on `device`."""


@final
@dataclass(frozen=True, eq=False)
class TensorSplit(Split):
    """A split that fits in memory, on the CPU or resident on a GPU; batches are gathered where it lives.

    Args:
        images: uint8 in 0..255 or float32, shape (N, C, H, W); a quarter of the memory as uint8.
        labels: int64 class numbers, shape (N,), on the same device.

    Raises:
        DataError: shapes, types or lengths are not those.

    >>> split = TensorSplit(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0]))
    >>> len(split), len(split.subset([2]))
    (3, 1)
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype not in (torch.uint8, torch.float32):
            raise DataError(
                f"TensorSplit: the images are {self.images.dtype} of shape {tuple(self.images.shape)}; "
                "give uint8 or float32 of shape (N, C, H, W)"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"TensorSplit: the labels are {self.labels.dtype} of shape {tuple(self.labels.shape)}; "
                f"give int64 of shape ({len(self.images)},), one for each image"
            )

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: Tensor | Sequence[int]) -> TensorSplit:
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.images.device)
        return TensorSplit(self.images.index_select(0, index), self.labels.index_select(0, index))

    def to(self, device: torch.device | str) -> TensorSplit:
        return TensorSplit(self.images.to(device), self.labels.to(device))

    def read(
        self, plan: Plan, *, device: torch.device, num_workers: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if not plan:
            return
        # One transfer of indices for the whole epoch.
        for index in torch.cat(list(plan)).to(self.images.device).split_with_sizes([len(rows) for rows in plan]):
            images, labels = self.images.index_select(0, index), self.labels.index_select(0, index)
            yield _moved(images, device), _moved(labels, device)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class StreamSplit(Split):
    """A split whose images are read when a batch needs them, on `DataLoader` workers.

    Args:
        dataset: a map-style Dataset of (image, label): a uint8 or float (C, H, W) tensor or a PIL image, and a class number.
        shape: (C, H, W) that every image must have.
        num_classes: labels must lie in range(num_classes).
        rows: the items of `dataset` that belong to this split; None for all.
        labels: the labels of those items where they are known without reading them, else None.
        value_range: what float images must lie in; None for no limit.
    """

    dataset: Dataset[Any]
    shape: Shape
    num_classes: int
    rows: Tensor | None = None
    labels: Tensor | None = None
    value_range: Range = (0.0, 1.0)

    def __len__(self) -> int:
        return len(self.dataset) if self.rows is None else len(self.rows)  # type: ignore[arg-type]

    def subset(self, rows: Tensor | Sequence[int]) -> StreamSplit:
        index = torch.as_tensor(rows, dtype=torch.int64)
        return replace(
            self,
            rows=index if self.rows is None else self.rows[index],
            labels=None if self.labels is None else self.labels[index],
        )

    def to(self, device: torch.device | str) -> StreamSplit:
        return self

    def read(
        self, plan: Plan, *, device: torch.device, num_workers: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if not plan:
            return
        items = plan if self.rows is None else [self.rows[index] for index in plan]
        # The generator is given because a DataLoader without one draws its workers' seeds from PyTorch's own stream.
        loader: DataLoader[Any] = DataLoader(
            _Checked(self),
            batch_sampler=[index.tolist() for index in items],
            num_workers=num_workers,
            collate_fn=self.collate,
            pin_memory=device.type == "cuda",
            generator=generator,
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            images, labels = batch
            yield _moved(images, device), _moved(labels, device)

    def item(self, index: int) -> tuple[Tensor, int]:
        """Image (uint8 or float32) and label of item `index` of the dataset, checked."""
        image, label = item_tensor(read_item(self.dataset, index), index)
        if tuple(image.shape) != tuple(self.shape):
            files = getattr(self.dataset, "files", None)
            raise DataError(
                f"image {index}{f' ({files[index]})' if files else ''} has shape {tuple(image.shape)}, the first one "
                f"{tuple(self.shape)}; give all one shape (for image-folder: set its option size)"
            )
        check_images("the dataset", image[None], self.value_range, first=index)
        check_labels("the dataset", torch.tensor([label]), self.num_classes, first=index)
        return image, label

    def collate(self, items: list[tuple[Tensor, int] | DataError]) -> tuple[Tensor, Tensor] | DataError:
        """Checked items as one batch, or the first error among them."""
        errors = [item for item in items if isinstance(item, DataError)]
        if errors:
            return errors[0]
        pairs = [item for item in items if not isinstance(item, DataError)]
        if not pairs:
            return torch.empty(0, *self.shape), torch.empty(0, dtype=torch.int64)
        if len({image.dtype for image, _ in pairs}) > 1:
            return DataError("the dataset gives both uint8 and float images; make its transform return one type")
        return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])


def _moved(batch: Tensor, device: torch.device) -> Tensor:
    # Towards the CPU a copy that does not wait may be read before it has arrived.
    return batch.to(device, non_blocking=device.type == "cuda")


@final
class _Checked(Dataset[tuple[Tensor, int] | DataError]):
    """Hands on errors as values: raised in a worker, they would arrive wrapped in its traceback."""

    def __init__(self, split: StreamSplit) -> None:
        self.split = split

    def __getitem__(self, index: int) -> tuple[Tensor, int] | DataError:
        try:
            return self.split.item(index)
        except DataError as error:
            return error


def read_item(dataset: Dataset[Any], index: int) -> Any:
    """What a dataset gives as item `index`.

    Raises:
        DataError: it gives an error.
    """
    try:
        return dataset[index]
    except Exception as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"item {index} of the dataset cannot be read: {type(error).__name__}: {error}") from error


def item_tensor(item: object, index: int) -> tuple[Tensor, int]:
    """Image and label of what a dataset gave as item `index`."""
    pair = picture_and_label(item) if isinstance(item, Mapping) else item
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        named = f" of {', '.join(map(str, item))}" if isinstance(item, Mapping) else ""
        raise DataError(
            f"item {index} of the dataset is a {type(item).__name__}{named}; it must be a pair (image, label), or name them "
            f"{PICTURES[0]} (or {', '.join(PICTURES[1:])}) and {LABELS[0]} (or {', '.join(LABELS[1:])})"
        )
    image, label = pair
    if isinstance(label, Tensor) and label.ndim == 0:
        label = label.item()
    if isinstance(label, bool) or not hasattr(label, "__index__"):
        raise DataError(f"label {index} is {label!r}; it must be a whole number, the class")
    return _as_tensor(image, f"image {index}"), int(label)


def _as_tensor(image: object, name: str) -> Tensor:
    if isinstance(image, Tensor):
        if image.is_floating_point():
            return image.to(torch.float32)
        if image.dtype == torch.uint8:
            return image
        raise DataError(f"{name} is {image.dtype}; give uint8 in 0..255 or float in [0, 1]")
    if hasattr(image, "getbands") and hasattr(image, "tobytes"):
        return pil_tensor(image, name)
    raise DataError(f"{name} is a {type(image).__name__}; give a tensor of shape (C, H, W) or a PIL image")


def pil_tensor(image: Any, name: str) -> Tensor:
    """A PIL image of mode L or RGB as uint8 (C, H, W)."""
    if image.mode not in ("L", "RGB"):
        raise DataError(f"{name} is a PIL image of mode {image.mode}; convert it to 'L' or 'RGB'")
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, len(image.getbands())).permute(2, 0, 1).contiguous()


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class ImageData:
    """A data set: training, validation and test split, and what a network must know about its images.

    Args:
        name: what reports call it.
        train: the images to learn from.
        validation: held out from the training set; choose anything (epoch, step size, method) here. May be empty.
        test: to evaluate on; nothing is ever chosen on it.
        classes: the names of the classes, in the order of their numbers.
        shape: (C, H, W).
        mean: per channel, of the training pixels in [0, 1], before the validation split is taken from them.
        std: likewise; what `Normalized` layers divide by.
        value_range: the interval that pixels lie in, to which attacks clip; None for data without one.
        origin: how `load` was asked for it, by which a run folder can say where it comes from; None for data of your own.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    shape: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: Range = (0.0, 1.0)
    origin: Mapping[str, Any] | None = None

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def to(self, device: torch.device | str) -> ImageData:
        """The same data with the splits that fit in memory on `device`; streamed ones stay as they are."""
        return replace(
            self, train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device)
        )
