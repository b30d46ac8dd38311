"""Datasets whose items have names, those of Hugging Face, and parts and sums of datasets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from layerwise.data import StreamSplit, batches, from_dataset
from layerwise.data.custom import as_image_data, whole_split
from layerwise.errors import DataError
from tests.data.test_custom import images


class Named(Dataset[Any]):
    """Items by name."""

    def __init__(self, picture: str, label: str, **more: Any) -> None:
        self.picture, self.label, self.more = picture, label, more
        self.classes = ["a", "b"]

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {self.picture: torch.full((1, 4, 4), index / 20), self.label: index % 2, **self.more}


@pytest.mark.parametrize(
    "dataset", [Named("pixel_values", "labels", file="a.png"), Named("img", "label"), Named("scan", "target")]
)
def test_items_by_name(dataset: Dataset[Any]) -> None:
    for found in (whole_split(dataset), whole_split(DataLoader(dataset, batch_size=7))):
        assert isinstance(found, StreamSplit)
        x, y = next(iter(batches(found, 20)))
        assert torch.equal(x[:, 0, 0, 0], torch.arange(20) / 20)
        assert torch.equal(y, torch.arange(20) % 2)


def test_items_whose_names_say_nothing_are_told() -> None:
    message = (
        r"item 0 of the dataset is a dict of scan, what; it must be a pair \(image, label\), or name them pixel_values"
    )
    with pytest.raises(DataError, match=message):
        whole_split(Named("scan", "what"))


class Columns:
    """What `datasets.Dataset` of Hugging Face is, as far as it is asked: no Dataset of torch."""

    column_names = ("image", "label")

    class Feature:
        names = ("cat", "dog")

    features: Mapping[str, Any] = {"image": object(), "label": Feature()}

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": Image.new("RGB", (4, 4), (index, 2 * index, 3 * index)), "label": index % 2}


def test_a_dataset_of_hugging_face_trains_and_is_evaluated_on() -> None:
    columns: Any = Columns()
    data = as_image_data(columns)
    assert data.classes == ("cat", "dog")
    assert data.shape == (3, 4, 4)
    assert sorted(len(part) for part in (data.train, data.validation, data.test)) == [2, 4, 14]
    whole = whole_split(columns)
    assert isinstance(whole, StreamSplit)
    assert len(whole) == 20
    given = from_dataset(columns, test=columns, validation=columns)
    assert len(given.test) == len(given.validation) == 20


def test_parts_of_a_dataset_and_several_together_have_its_classes() -> None:
    class Halves(Dataset[tuple[Tensor, int]]):
        def __init__(self, classes: list[str]) -> None:
            self.classes = classes

        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return images()[index], index % 2

    cats, birds = Halves(["cat", "dog"]), Halves(["bird", "fish"])
    whole: tuple[Dataset[Any], ...] = (Subset(cats, range(12)), ConcatDataset([cats, Subset(cats, [0, 1])]))
    mixed: tuple[Dataset[Any], ...] = (ConcatDataset([cats, birds]), Subset(ConcatDataset([cats, birds]), [0, 30]))
    for one in whole:
        assert as_image_data(one).classes == ("cat", "dog")
    for several in mixed:
        with pytest.raises(DataError, match=r"does not tell its classes; type layerwise.from_dataset\("):
            as_image_data(several)
