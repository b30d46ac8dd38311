"""A user's own tensors and datasets: what is accepted, what is refused and how, and how the splits are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from layerwise.data import StreamSplit, TensorSplit, batches, from_dataset, from_tensors
from layerwise.data.custom import as_image_data, known_labels, whole_split
from layerwise.data.holdout import held_count, hold_out, pixel_statistics
from layerwise.errors import ConfigError, DataError


def images(count: int = 20) -> Tensor:
    return torch.rand(count, 3, 4, 5, generator=torch.Generator().manual_seed(0))


def labels(count: int = 20) -> Tensor:
    return torch.arange(count) % 2


def spoilt(value: float, at: tuple[int, ...] = (7, 2, 1, 3)) -> Tensor:
    x = images()
    x[at] = value
    return x


# --- accepted


def test_float_images_are_kept_and_uint8_ones_too() -> None:
    x = images()
    for given_images, dtype in (
        (x, torch.float32),
        (x.double(), torch.float32),
        ((x * 255).to(torch.uint8), torch.uint8),
    ):
        data = from_tensors(given_images, labels(), test=0, validation=0)
        assert isinstance(data.train, TensorSplit)
        assert data.train.images.dtype == dtype
        assert torch.equal(data.train.images, given_images.to(dtype))
        assert (len(data.validation), len(data.test)) == (0, 0)
        assert data.to("cpu").shape == data.shape == (3, 4, 5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    data = from_tensors(images(), labels().to(dtype), test=(images(4), labels(4).to(dtype)), classes=["a", "b", "c"])
    assert data.num_classes == 3
    assert data.test.labels is not None
    assert data.test.labels.tolist() == [0, 1, 0, 1]
    assert data.test.labels.dtype == torch.int64


def test_the_given_test_set_is_never_touched() -> None:
    x = images(6)
    data = from_tensors(images(), labels(), test=(x, labels(6)), validation=0.5)
    assert isinstance(data.test, TensorSplit)
    assert torch.equal(data.test.images, x)
    assert (len(data.train), len(data.validation)) == (10, 10)


def test_values_without_a_range() -> None:
    data = from_tensors(spoilt(-300.0), labels(), value_range=None)
    assert data.value_range is None
    with pytest.raises(
        DataError, match=r"image 7 holds inf \(channel 2, row 1, column 3\); every pixel must be a finite number"
    ):
        from_tensors(spoilt(float("inf")), labels(), value_range=None)


# --- refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: from_tensors(spoilt(1.25), labels()),
            "train: image 7 holds 1.25 (channel 2, row 1, column 3); this looks like pixels of 0 to 255: divide by 255",
        ),
        (
            lambda: from_tensors(images() * 255, labels()),
            "this looks like pixels of 0 to 255: divide by 255",
        ),
        (
            lambda: from_tensors(spoilt(-0.5), labels()),
            "train: image 7 holds -0.5 (channel 2, row 1, column 3); every pixel must lie in [0, 1]; normalisation belongs in "
            "the model",
        ),
        (
            lambda: from_tensors(spoilt(float("nan")), labels()),
            "train: image 7 holds nan (channel 2, row 1, column 3); every pixel must be a finite number",
        ),
        (
            lambda: from_tensors(images(), labels(), test=(spoilt(float("inf")), labels())),
            "test: image 7 holds inf (channel 2, row 1, column 3); every pixel must lie in [0, 1]",
        ),
        (
            lambda: from_tensors(images(), torch.tensor([0] * 12 + [3] + [0] * 7), classes=["a", "b"]),
            "train: label 12 is 3; with 2 classes the labels must be 0 to 1",
        ),
        (
            lambda: from_tensors(images(), labels() - 1),
            "train: label 0 is -1; with 1 classes the labels must be 0 to 0",
        ),
        (
            lambda: from_tensors(images(), labels(), test=(images(), labels() + 1)),
            "test: label 1 is 2; with 2 classes the labels must be 0 to 1",
        ),
        (
            lambda: from_tensors(images(), labels().float()),
            "train: the labels are torch.float32; class numbers are whole: give labels.long()",
        ),
        (
            lambda: from_tensors(images(), torch.eye(20)),
            "train: the labels have shape (20, 20); give one number an image, e.g. labels.argmax(1)",
        ),
        (
            lambda: from_tensors(images(), labels(19)),
            "train: there are 20 images and 19 labels; give one label for each image",
        ),
        (
            lambda: from_tensors(images()[:, 0], labels()),
            "train: the images have shape (20, 4, 5); give (N, C, H, W), e.g. images.unsqueeze(1)",
        ),
        (
            lambda: from_tensors(torch.rand(20, 8, 8, 3), labels()),
            "train: the images have shape (20, 8, 8, 3), channels last; give images.permute(0, 3, 1, 2)",
        ),
        (
            lambda: from_tensors(torch.zeros(20, 1, 4, 4, dtype=torch.int64), labels()),
            "train: the images are torch.int64; give uint8 in 0..255 or float in [0, 1]",
        ),
        (
            lambda: from_tensors(images().numpy(), labels()),  # type: ignore[arg-type]
            "train: the images are a ndarray; give a tensor, e.g. torch.from_numpy(images)",
        ),
        (
            lambda: from_tensors(images(), [0] * 20),  # type: ignore[arg-type]
            "train: the labels are a list; give a tensor, e.g. torch.tensor(labels)",
        ),
        (
            lambda: from_tensors(images(0), labels(0)),
            "train: there are no images; give at least one of each class",
        ),
        (
            lambda: from_tensors(images(), labels(), test=(images()[..., :4], labels())),
            "test: images of (3, 4, 4), training ones of (3, 4, 5)",
        ),
        (
            lambda: from_tensors(torch.ones(20, 1, 4, 4), labels()),
            "the deviations above 0; where a channel is constant, give statistics=(mean, std) yourself",
        ),
    ],
)
def test_refused_tensors(make: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError) as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("amount", [20, -1, 1.5, 0.99, float("nan")])
def test_amounts_that_leave_nothing_or_mean_nothing(amount: float) -> None:
    with pytest.raises(
        ConfigError, match=r"validation is .*; give a fraction below 1 or a whole number of images below the 20"
    ):
        from_tensors(images(), labels(), test=0, validation=amount)


# --- held-out splits


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=6), part=st.floats(0, 0.99), key=st.text(max_size=5))
def test_held_out_rows_are_stratified_and_disjoint(counts: list[int], part: float, key: str) -> None:
    classes = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    total = len(classes)
    count = min(held_count(total, min(part, 1 - 1 / total)), total - 1)
    keep, held = hold_out(total, count, key=key, labels=classes)
    assert len(held) == count
    assert sorted([*keep.tolist(), *held.tolist()]) == list(range(total))
    assert keep.tolist() == sorted(keep.tolist())
    for c, n in enumerate(counts):
        assert abs(int((classes[held] == c).sum()) - count * n / total) < 1
    assert torch.equal(hold_out(total, count, key=key, labels=classes)[1], held)


def test_held_out_rows_are_random_within_a_class() -> None:
    _, held = hold_out(10_000, 5000, key="x")
    assert abs(float(held.double().mean()) - 5000) < 150
    assert not torch.equal(held, hold_out(10_000, 5000, key="y")[1])


# --- statistics


def test_statistics_of_uint8_float_and_stream_agree_with_numpy() -> None:
    x = torch.randint(0, 256, (30, 2, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    array = x.numpy() / 255
    stream = StreamSplit(dataset=TensorDataset(x, torch.zeros(30).long()), shape=(2, 4, 4), num_classes=1)
    for split in (TensorSplit(x, labels(30)), TensorSplit(x.float() / 255, labels(30))):
        mean, std = pixel_statistics(split)
        assert mean == pytest.approx(array.mean((0, 2, 3)), rel=1e-6)
        assert std == pytest.approx(array.std((0, 2, 3)), rel=1e-6)
    mean, std = pixel_statistics(stream)
    assert mean == pytest.approx(array.mean((0, 2, 3)), abs=0.05)
    assert std == pytest.approx(array.std((0, 2, 3)), abs=0.05)


def test_statistics_do_not_depend_on_the_validation_split() -> None:
    one, other = (from_tensors(images(), labels(), test=0, validation=v, seed=v) for v in (0, 9))
    assert (one.mean, one.std) == (other.mean, other.std)
    own = from_tensors(images(), labels(), statistics=((0, 0, 0), (1, 1, 1)))
    assert (own.mean, own.std) == ((0, 0, 0), (1, 1, 1))


# --- datasets


class Pairs(Dataset[Any]):
    """Any items, with class names."""

    classes = ("cat", "dog")

    def __init__(self, items: list[object]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


class Endless(IterableDataset[Any]):
    """A dataset without a length."""

    classes = ("cat",)

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def test_a_dataset_of_pictures() -> None:
    grey = [Image.new("L", (3, 2), 51 * i) for i in range(4)]
    pairs: list[object] = [(picture, i % 2) for i, picture in enumerate(grey)]
    data = from_dataset(Pairs(pairs), test=Pairs(pairs), validation=0, name="pets")
    assert (data.name, data.shape, data.classes) == ("pets", (1, 2, 3), ("cat", "dog"))
    assert data.to("cpu").test is data.test
    ((x, y),) = batches(data.test, 4)
    assert torch.equal(x, torch.tensor([0, 51, 102, 153]).div(255).view(4, 1, 1, 1).expand(4, 1, 2, 3))
    assert y.tolist() == [0, 1, 0, 1]


def test_a_colour_picture_keeps_its_layout() -> None:
    picture = Image.new("RGB", (2, 1))
    picture.putpixel((1, 0), (255, 51, 102))
    data = from_dataset(Pairs([(picture, 0), (picture, 1)]), test=0, validation=0)
    x, _ = next(batches(data.train, 1))
    assert torch.equal(x[0, :, 0, 1], torch.tensor([255, 51, 102]).div(255))
    assert not x[0, :, 0, 0].any()


def test_the_splits_of_a_dataset_are_disjoint_and_stratified_by_targets() -> None:
    dataset = TensorDataset(torch.arange(40).view(-1, 1, 1, 1) / 40, torch.arange(40) % 2)
    dataset.targets = (torch.arange(40) % 2).tolist()  # type: ignore[attr-defined]
    data = from_dataset(dataset, test=0.25, validation=6, classes=("a", "b"))
    splits = (data.train, data.validation, data.test)
    seen = [round(float(v) * 40) for split in splits for x, _ in batches(split, 7) for v in x.flatten()]
    assert sorted(seen) == list(range(40))
    for split, half in zip(splits, (12, 3, 5), strict=True):
        assert split.labels is not None
        assert int(split.labels.sum()) == half
        assert torch.equal(split.labels, torch.cat([y for _, y in batches(split, 7)]))


def test_a_validation_dataset_can_be_given() -> None:
    train, other = (TensorDataset(images(n), labels(n)) for n in (20, 6))
    data = from_dataset(train, test=0, validation=other, classes=("a", "b"))
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 6, 0)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (TensorDataset(images(), labels()), "custom: the dataset has no `classes`; give classes=[...]"),
        (Pairs([]), "train: the dataset is empty; give at least one image of each class"),
        (Endless(), "train: a Endless has no length or no items; give a map-style Dataset"),
        (Pairs([images()[0]]), "item 0 of the dataset is a Tensor; it must be a pair (image, label)"),
        (Pairs([(images()[0], 0.5)]), "label 0 is 0.5; it must be a whole number, the class"),
        (Pairs([(images()[0], True)]), "label 0 is True; it must be a whole number, the class"),
        (Pairs([(images()[0], 2)]), "the dataset: label 0 is 2; with 2 classes the labels must be 0 to 1"),
        (Pairs([(images()[0, 0], 1)]), "train: image 0 has shape (4, 5); give (C, H, W)"),
        (Pairs([(images()[0].long(), 1)]), "image 0 is torch.int64; give uint8 in 0..255 or float in [0, 1]"),
        (Pairs([([1, 2], 1)]), "image 0 is a list; give a tensor of shape (C, H, W) or a PIL image"),
        (Pairs([(Image.new("P", (2, 2)), 1)]), "image 0 is a PIL image of mode P; convert it to 'L' or 'RGB'"),
    ],
)
def test_refused_datasets(dataset: Dataset[Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        from_dataset(dataset)
    assert message in str(error.value)


def test_uint8_and_float_images_do_not_mix() -> None:
    mixed = Pairs([(torch.zeros(1, 2, 2), 0), (torch.full((1, 2, 2), 200, dtype=torch.uint8), 1)])
    data = from_dataset(mixed, test=0, validation=0, statistics=((0.5,), (0.5,)))
    with pytest.raises(DataError, match="the dataset gives both uint8 and float images"):
        next(batches(data.train, 2))


# --- what people have


@pytest.mark.parametrize(
    "given",
    [
        (images(), labels()),
        TensorDataset(images(), labels()),
        DataLoader(TensorDataset(images(), labels()), 4, shuffle=True),
        from_tensors(images(), labels()),
    ],
    ids=["pair", "TensorDataset", "DataLoader", "ImageData"],
)
def test_what_is_in_memory_trains_as_from_tensors_has_it(given: Any) -> None:
    found, expected = as_image_data(given), from_tensors(images(), labels())
    for split, same in ((found.train, expected.train), (found.validation, expected.validation)):
        assert isinstance(split, TensorSplit)
        assert isinstance(same, TensorSplit)
        assert torch.equal(split.images, same.images)
    assert as_image_data(expected) is expected
    whole = whole_split(given)
    if isinstance(given, Dataset | DataLoader):
        assert isinstance(whole, tuple)
        assert torch.equal(whole[0], images())


def test_a_dataset_trains_and_is_evaluated_on_as_it_is() -> None:
    pairs = Pairs([(images()[i], i % 2) for i in range(20)])
    data = as_image_data(DataLoader(pairs))
    assert (data.classes, len(data.train), data.shape) == (("cat", "dog"), 14, (3, 4, 5))
    split = whole_split(pairs)
    assert isinstance(split, StreamSplit)
    assert len(split) == 20
    assert whole_split(split) is split
    labelled = Targets([0, 1, 2] * 4)
    assert as_image_data(labelled).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([(images(), labels())], r"^a list is no data set; give layerwise.load_data\(NAME\), layerwise.from_tensors"),
        ("digits", r"^a str is no data set; give layerwise.load_data\(NAME\)"),
        ((images(), labels(), labels()), r"^a tuple is no data set"),
        (DataLoader(Endless()), r"a Endless has no length or no items; give a map-style Dataset"),
    ],
    ids=["list of batches", "name", "three tensors", "iterable"],
)
def test_what_is_no_data_set_is_told(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_image_data(given)


class Targets(Dataset[Any]):
    """As torchvision's: `targets`, and items whose label a `target_transform` may have changed."""

    def __init__(self, targets: Any, shown: list[Any] | None = None) -> None:
        self.targets, self.shown = targets, list(targets) if shown is None else shown

    def __len__(self) -> int:
        return len(self.shown)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return images()[index], self.shown[index]


@pytest.mark.parametrize(
    ("targets", "shown", "believed"),
    [
        ([0, 1] * 6, None, True),
        (labels(12), [0, 1] * 6, True),
        ([1, 2] * 6, [0, 1] * 6, False),
        ([0, 1] * 6, [1] * 12, False),
        ([0, 1] * 5, [0, 1] * 6, False),
        (["a", "b"] * 6, [0, 1] * 6, False),
        ([{"box": 1}] * 12, [0, 1] * 6, False),
        ([0.0, 1.0] * 6, [0, 1] * 6, False),
        (None, [0, 1] * 6, False),
    ],
    ids=["list", "tensor", "from 1", "transformed", "another length", "text", "boxes", "floats", "nothing"],
)
def test_targets_are_believed_where_the_items_agree(targets: Any, shown: Any, believed: bool) -> None:
    dataset = Targets(targets, shown)
    found = known_labels(dataset)
    assert (found is not None) == believed
    data = from_dataset(dataset, classes=("a", "b"), test=2, validation=0)
    assert data.train.labels is None or data.train.labels.tolist() == [y for _, b in batches(data.train, 3) for y in b]


def test_without_names_or_targets_to_believe_the_classes_are_asked_for() -> None:
    with pytest.raises(
        DataError, match=r"a Targets does not tell its classes; type layerwise.from_dataset\(dataset, class"
    ):
        as_image_data(Targets(None, [0, 1] * 6))


def test_an_item_that_cannot_be_read_is_named() -> None:
    class Broken(Pairs):
        def __getitem__(self, index: int) -> object:
            if index == 3:
                raise OSError("truncated file")
            return super().__getitem__(index)

    broken = Broken([(images()[i], i % 2) for i in range(8)])
    data = from_dataset(broken, test=0, validation=0, statistics=((0.5,) * 3, (0.5,) * 3))
    with pytest.raises(DataError, match=r"^item 3 of the dataset cannot be read: OSError: truncated file$"):
        list(batches(data.train, 4))
