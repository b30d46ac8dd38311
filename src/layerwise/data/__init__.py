"""Data sets: readers without pickle, held-out splits, and batches that do not depend on ranks or restarts.

>>> from layerwise.data import batches, load
>>> data = load("digits")
>>> for x, y in batches(data.train, 128, shuffle=True, seed=0, epoch=0):
...     pass
"""

from layerwise.data.augment import Augment
from layerwise.data.batching import batches, num_batches, rank_rows
from layerwise.data.custom import from_dataset, from_tensors
from layerwise.data.folder import ImageFolder
from layerwise.data.registry import describe, load, names
from layerwise.data.splits import ImageData, Split, StreamSplit, TensorSplit

__all__ = [
    "Augment",
    "ImageData",
    "ImageFolder",
    "Split",
    "StreamSplit",
    "TensorSplit",
    "batches",
    "describe",
    "from_dataset",
    "from_tensors",
    "load",
    "names",
    "num_batches",
    "rank_rows",
]
