"""Examples of any kind, as people have them, in batches of what a network takes and what its criterion takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from layerwise.core.calling import Inputs, move, rows, take
from layerwise.core.checks import at_least
from layerwise.errors import DataError

LABELS = ("labels", "label", "targets", "target", "y")
"""What batches by name call what the criterion takes, the first that is there."""

PICTURES = ("pixel_values", "image", "img", "x")
"""What items by name call their image, the first that is there; else it is what is left beside the label."""

FORMS = (
    "give batches (x, y) or mappings with 'labels', in a list, a DataLoader or a Dataset; x is what the network takes: a tensor, "
    "a mapping of arguments or a tuple"
)


def split_batch(batch: Any) -> tuple[Inputs, Tensor]:
    """What the network takes, and what the criterion takes, of a batch or of one example.

    >>> split_batch({"input_ids": torch.zeros(2, 3), "labels": torch.ones(2)})
    ({'input_ids': tensor([[0., 0., 0.],
            [0., 0., 0.]])}, tensor([1., 1.]))

    Raises:
        DataError: there is nothing to tell them by.
    """
    if isinstance(batch, Mapping):
        name = next((name for name in LABELS if name in batch), None)
        if name is None:
            raise DataError(f"the batch has {', '.join(map(str, batch))}, and none of {', '.join(LABELS)}; {FORMS}")
        return {k: v for k, v in batch.items() if k != name}, torch.as_tensor(batch[name])
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], torch.as_tensor(batch[1])
    raise DataError(f"a batch is a {type(batch).__name__}; {FORMS}")


def picture_and_label(item: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """Image and label of an item by name, as datasets of Hugging Face give it; None where they cannot be told.

    >>> picture_and_label({"img": "a picture", "label": 3, "file": "a.png"})
    ('a picture', 3)
    """
    label = next((name for name in LABELS if name in item), None)
    others = [name for name in item if name != label]
    picture = next((name for name in PICTURES if name in item), others[0] if len(others) == 1 else None)
    return None if label is None or picture is None else (item[picture], item[label])


def is_dataset(data: object) -> TypeGuard[Dataset[Any]]:
    """Whether it is a map-style dataset, of torch or of Hugging Face (which is not imported)."""
    return isinstance(data, Dataset) or (hasattr(data, "column_names") and hasattr(data, "__getitem__"))


def class_names(dataset: object) -> Sequence[str] | None:
    """The names of a dataset's classes, where it says them: `classes`, or the label's feature of Hugging Face.

    A `Subset` (`random_split`) and a `ConcatDataset` have those of the datasets that they hold.
    """
    named: Sequence[str] | None = getattr(dataset, "classes", None)
    features: Any = getattr(dataset, "features", None)
    if named is None and isinstance(features, Mapping):
        named = next((found for name in LABELS if (found := getattr(features.get(name), "names", None))), None)
    if named is None:
        held = [dataset.dataset] if hasattr(dataset, "dataset") else list(getattr(dataset, "datasets", ()))
        theirs = [class_names(each) for each in held]
        named = theirs[0] if theirs and all(names == theirs[0] for names in theirs) else None
    return named


def in_batches(
    data: Any, *, batch_size: int, num_examples: int | None = None, device: torch.device | str = "cpu"
) -> Iterator[tuple[Inputs, Tensor]]:
    """Batches where the network is, in the order of the data.

    Args:
        data: x and y of all examples; a list of batches (or of examples with a number each), or anything else that gives batches one
            after the other; a Dataset, or what has a length and items (those of Hugging Face in torch's format).
        batch_size: examples a batch, where the data do not come in batches.
        num_examples: at most so many.
        device: where to.

    Raises:
        DataError: no examples, or no such form.
    """
    at_least("num_examples", 1 if num_examples is None else num_examples, 1)
    left = num_examples
    for batch in each_batch(data, batch_size):
        x, y = split_batch(batch)
        count = rows(x) if left is None else min(left, rows(x))
        yield move(take(x, slice(0, count)), device), y[:count].to(device)
        left = None if left is None else left - count
        if left == 0:
            return


def each_batch(data: Any, size: int) -> Iterable[Any]:
    """Batches as they come; of `size` where the data do not come in batches. See `in_batches`."""
    if isinstance(data, Mapping) or (isinstance(data, tuple) and len(data) == 2):
        x, y = split_batch(data)
        return [(take(x, slice(i, i + size)), y[i : i + size]) for i in range(0, rows(x), size)]
    if isinstance(data, list) and data and not split_batch(data[0])[1].ndim:
        return DataLoader(data, batch_size=size)  # type: ignore[arg-type]  # single examples
    if isinstance(data, DataLoader | list):
        return data
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return DataLoader(data, batch_size=size)
    if isinstance(data, Iterable):
        return data
    raise DataError(f"a {type(data).__name__} holds no examples; {FORMS}")


def known(batches: Iterable[tuple[Inputs, Tensor]]) -> list[tuple[Inputs, Tensor]]:
    """All of them.

    Raises:
        DataError: there is none.
    """
    found = list(batches)
    if not found:
        raise DataError("there are no examples; give at least one")
    return found
