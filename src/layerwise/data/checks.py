"""What images and labels must be, and sentences about the first that is not."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from layerwise.errors import DataError

Range: TypeAlias = tuple[float, float] | None
"""The interval that float pixels must lie in; None: any finite number."""


def check_images(name: str, images: Tensor, value_range: Range, *, first: int = 0) -> None:
    """Accept uint8 images, and float ones that are finite and in `value_range`.

    Args:
        name: what the error calls them.
        images: shape (N, C, H, W).
        value_range: inclusive bounds of float pixels.
        first: the number of the first image, for the error.

    Raises:
        DataError: naming the first image and pixel that is not.

    >>> check_images("train", torch.full((1, 1, 2, 2), 37.0), (0.0, 1.0))
    Traceback (most recent call last):
    layerwise.errors.DataError: train: image 0 holds 37 (channel 0, row 0, column 0); this looks like pixels of 0 to 255: divide by 255
    """
    if images.dtype == torch.uint8 or images.numel() == 0:
        return
    low, high = (float(bound) for bound in images.aminmax())
    allowed = (-float("inf"), float("inf")) if value_range is None else value_range
    if low >= allowed[0] and high <= allowed[1] and abs(low) != float("inf") != abs(high):
        return
    bad = ~images.isfinite() | (images < allowed[0]) | (images > allowed[1])
    where = tuple(int(i) for i in bad.nonzero()[0])
    value = float(images[where])
    if value_range == (0.0, 1.0) and low >= 0 and 1 < high <= 255:
        advice = "this looks like pixels of 0 to 255: divide by 255"
    elif value_range is None or value != value:
        advice = "every pixel must be a finite number"
    else:
        advice = f"every pixel must lie in [{allowed[0]:g}, {allowed[1]:g}]; normalisation belongs in the model"
    raise DataError(
        f"{name}: image {first + where[0]} holds {value:g} (channel {where[1]}, row {where[2]}, column {where[3]}); {advice}"
    )


def check_labels(name: str, labels: Tensor, num_classes: int, *, first: int = 0) -> None:
    """Accept labels in range(num_classes).

    Args:
        name: what the error calls them.
        labels: whole numbers, shape (N,).
        num_classes: how many classes there are.
        first: the number of the first label, for the error.

    Raises:
        DataError: naming the first label that is not.

    >>> check_labels("train", torch.tensor([0, 1, 2]), 2)
    Traceback (most recent call last):
    layerwise.errors.DataError: train: label 2 is 2; with 2 classes the labels must be 0 to 1
    """
    bad = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(bad):
        at = int(bad[0])
        raise DataError(
            f"{name}: label {first + at} is {int(labels[at])}; with {num_classes} classes the labels must be 0 to {num_classes - 1}"
        )


def check_several(name: str, labels: Tensor | None, num_classes: int) -> None:
    """Accept training images of several classes: of one alone, anything is right, and no attack can show it wrong.

    Args:
        name: what the error calls them.
        labels: shape (N,), N at least 1; None where only the images themselves tell.
        num_classes: how many classes there are.

    Raises:
        DataError: there is one.

    >>> check_several("cats", torch.tensor([3, 3]), 10)
    Traceback (most recent call last):
    layerwise.errors.DataError: cats: every training image has label 3, so there is nothing to learn; was another column read?
    """
    only = num_classes < 2 or (labels is not None and bool((labels == labels[0]).all()))
    if only:
        label = f" has label {int(labels[0])}" if labels is not None else " belongs to the only class"
        raise DataError(f"{name}: every training image{label}, so there is nothing to learn; was another column read?")
