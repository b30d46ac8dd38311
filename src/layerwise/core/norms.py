"""Norms, projections and random points, each per example (row) of a batch."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Norm: TypeAlias = Literal["linf", "l2", "l1"]
"""Name of a norm: `"linf"` (largest absolute entry), `"l2"` (Euclidean) or `"l1"` (sum of absolute entries)."""

ORDER: dict[Norm, float] = {"linf": math.inf, "l2": 2.0, "l1": 1.0}


def rows(values: Tensor, like: Tensor) -> Tensor:
    """Give one number an example the shape that broadcasts against `like`: (B,) -> (B, 1, ..., 1)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def norm(z: Tensor, p: Norm = "l2") -> Tensor:
    """The p-norm of each example, ||z_i||_p.

    Args:
        z: batch of tensors, shape (B, ...), any unit.
        p: which norm.

    Returns:
        Shape (B,), the unit of `z`.

    >>> norm(torch.tensor([[3.0, -4.0], [0.0, 0.0]]), "l2")
    tensor([5., 0.])
    """
    result: Tensor = torch.linalg.vector_norm(z.flatten(1), ORDER[p], dim=1)
    return result


def safe_divide(z: Tensor, divisor: Tensor) -> Tensor:
    """Z / divisor, and z itself where the divisor is 0: made safe *before* dividing, so no NaN reaches a gradient."""
    return z / torch.where(divisor == 0, torch.ones_like(divisor), divisor)


def normalize(z: Tensor, p: Norm = "l2") -> Tensor:
    """z_i / ||z_i||_p for each example; an example of zeros stays zero.

    >>> normalize(torch.tensor([[3.0, -4.0], [0.0, 0.0]]))
    tensor([[ 0.6000, -0.8000],
            [ 0.0000,  0.0000]])
    """
    return safe_divide(z, rows(norm(z, p), z))


def project(z: Tensor, p: Norm, eps: float | Tensor) -> Tensor:
    """The nearest point of the ball {||z_i||_p <= eps}, for each example.

    For `linf` and `l2` this is the Euclidean projection (`l2`: shrink to the sphere); for `l1` too (Duchi et al. 2008).

    Args:
        z: shape (B, ...).
        p: which ball.
        eps: radius, not negative, the unit of `z`.

    >>> project(torch.tensor([[3.0, -4.0]]), "l2", 1.0)
    tensor([[ 0.6000, -0.8000]])
    """
    if p == "linf":
        return torch.minimum(torch.maximum(z, -eps), eps) if isinstance(eps, Tensor) else z.clamp(-eps, eps)
    size = rows(norm(z, p), z)
    if p == "l2":
        # min(1, eps / size), made safe before dividing; inside the ball the factor is exactly 1. A number divided by a tensor would
        # become its reciprocal, whose gradient squares 1 / size and overflows for tiny rows.
        outside, one = size > eps, torch.ones_like(size)
        return z * torch.where(outside, (one * eps) / torch.where(outside, size, one), one)
    return torch.where(size > eps, _project_simplex(z, eps), z)


def _project_simplex(z: Tensor, eps: float | Tensor) -> Tensor:
    """Soft-threshold each example so that its l1 norm is eps: the threshold comes from the sorted magnitudes."""
    magnitude = z.flatten(1).abs()
    descending = magnitude.sort(dim=1, descending=True).values
    excess = descending.cumsum(1) - eps
    count = torch.arange(1, magnitude.shape[1] + 1, device=z.device, dtype=z.dtype)
    active = (descending * count > excess).sum(dim=1, keepdim=True).clamp(min=1)
    threshold = excess.gather(1, active - 1) / active
    return (z.flatten(1).sign() * (magnitude - threshold).clamp(min=0)).reshape(z.shape)
