"""Data that need no files: scikit-learn's handwritten digits, and two Gaussians in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from layerwise.core.registry import register
from layerwise.data.custom import assemble, from_tensors
from layerwise.data.holdout import hold_out
from layerwise.data.splits import ImageData, TensorSplit
from layerwise.errors import ConfigError

DIGITS_TEST = 540


@register("data", "digits", validation=0.1, where="embedded")
def read_digits(root: Path, *, validation: float, download: bool, seed: int) -> ImageData:
    """Handwritten digits (UCI Optdigits, test part): 1,797 real images, 8 x 8, grey, embedded in scikit-learn.

    Pixels are counts v of 0 to 16 ink dots, kept without loss as float32 v / 16. 540 images, stratified by class and drawn by a
    permutation that never changes, whatever the seed, are the test set.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.float32).div(16).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    keep, held = hold_out(len(labels), DIGITS_TEST, key="digits/test", labels=labels)
    whole = TensorSplit(images, labels)
    return assemble(
        "digits",
        whole.subset(keep),
        whole.subset(held),
        classes=tuple("0123456789"),
        shape=(1, 8, 8),
        validation=validation,
        seed=seed,
    )


@register("data", "gaussians", validation=0.1, where="generated")
def read_gaussians(
    root: Path,
    *,
    validation: float,
    download: bool,
    seed: int,
    mean: Sequence[float] = (1.0, 0.1),
    covariance: Sequence[Sequence[float]] = ((0.25, 0.0), (0.0, 0.0016)),
    size: int = 1000,
    test_size: int = 1000,
) -> ImageData:
    """Class 0 from N(mean, covariance), class 1 from N(-mean, covariance): points as images of shape (2, 1, 1).

    The first feature is robust (its means lie 2 apart, 4 deviations), the second is not (0.2 apart, 5 deviations): the
    paper's input step of 0.1 moves one class's second mean halfway to the other's. The paper prints no values; these are ours.
    Reference: SLAT, appendix, figure 2.
    """
    mu, sigma = torch.tensor(mean, dtype=torch.float64), torch.tensor(covariance, dtype=torch.float64)
    if (
        mu.shape != (2,)
        or sigma.shape != (2, 2)
        or not torch.equal(sigma, sigma.T)
        or sigma.det() <= 0
        or sigma[0, 0] <= 0
    ):
        raise ConfigError(
            f"gaussians: mean is {mean} and covariance {covariance}; give 2 numbers, and a symmetric positive 2 x 2 matrix"
        )
    if min(size, test_size) < 2:
        raise ConfigError(f"gaussians: size is {size} and test_size {test_size}; give 2 points or more each")
    factor, generator = torch.linalg.cholesky(sigma), torch.Generator().manual_seed(seed)

    def points(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % 2
        noise = torch.randn(count, 2, dtype=torch.float64, generator=generator) @ factor.T
        return (noise + torch.where(labels[:, None] == 0, mu, -mu)).float().view(count, 2, 1, 1), labels

    return from_tensors(
        *points(size),
        test=points(test_size),
        validation=validation,
        classes=("+", "-"),
        name="gaussians",
        seed=seed,
        value_range=None,
    )
