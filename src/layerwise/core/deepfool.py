"""DeepFool: the shortest way over the nearest decision boundary, batched and, if asked for, differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layerwise.core import norms
from layerwise.core.calling import Inputs, call, examples, logits_of, take, with_examples
from layerwise.errors import ConfigError


@dataclass(frozen=True)
class DeepFool:
    """What `deepfool` found.

    Args:
        perturbation: Delta_x, the sum of the steps with overshoot, shape of x, pixel units.
        fooled: whether the aim was reached at x + Delta_x, shape (B,).
        prediction: the class predicted at x, shape (B,).
    """

    perturbation: Tensor
    fooled: Tensor
    prediction: Tensor

    def rho(self, x: Tensor, p: float = 2.0) -> tuple[Tensor, Tensor]:
        """||Delta_x||_p / ||x||_p of each example, and which examples count: blank images have no relative size (0 there)."""
        size = torch.linalg.vector_norm(x.flatten(1), p, dim=1)
        counted = size > 0
        length = torch.linalg.vector_norm(self.perturbation.flatten(1), p, dim=1)
        return norms.safe_divide(length, size) * counted, counted


def deepfool(
    network: Callable[..., Any],
    x: Inputs,
    *,
    labels: Tensor | None = None,
    num_steps: int = 5,
    num_classes: int | None = None,
    overshoot: float = 0.02,
    p: float = 2.0,
    create_graph: bool = False,
) -> DeepFool:
    """Sum of linearised steps over a boundary: r = |f_k| / ||w_k||_q^q |w_k|^(q-1) sign(w_k), f_k = z_k - z_ref, w_k = df_k/dx.

    Without `labels` the reference is the class predicted at x and k the nearest of the other classes at each step, until the prediction
    changes. With `labels`, an example whose prediction is not its label is led to it instead: k is the label, the reference the
    current prediction, until the label is predicted. An example that has arrived, by the prediction at
    x + (1 + overshoot) sum r, takes no more steps. Pixels are not clipped.

    Args:
        network: inputs (B, ...) to logits (B, C), rows independent (batch norm in evaluation mode).
        x: inputs, any unit; a tensor, or what else the network takes.
        labels: shape (B,), see above.
        num_steps: steps unrolled; 5 in the authors' code, 50 to converge.
        num_classes: only the classes with the largest logits at x, the predicted one included; None is all.
        overshoot: share added to the sum of the steps.
        p: which norm is to be small, p > 1 or inf; 1/p + 1/q = 1.
        create_graph: keep the result differentiable with respect to the network's parameters, through the logits, the gradients and
            all earlier steps. The choice of the nearest class is piecewise constant and needs no graph.

    Raises:
        ConfigError: p is not above 1, or fewer than two classes.

    Reference: Moosavi-Dezfooli et al. 2016, algorithm 2; Yan et al. 2018 (Deep Defense), eqs. 1-2, where the printed step lacks the
    square of the norm.
    """
    if not p > 1:
        raise ConfigError(f"p={p} has no smooth step; type a number above 1, or inf")
    batch, x = x, examples(x).detach()

    def forward(point: Tensor, rows: Tensor) -> Tensor:
        return logits_of(call(network, with_examples(take(batch, rows), point)))

    with torch.no_grad():
        logits = logits_of(call(network, batch))
    if logits.shape[1] < 2 or (num_classes is not None and num_classes < 2):
        raise ConfigError(f"DeepFool needs at least two classes, found {num_classes or logits.shape[1]}")
    order = logits.argsort(dim=1, descending=True)[:, :num_classes]
    start = order[:, 0]
    wrong = start != labels if labels is not None else torch.zeros_like(start, dtype=torch.bool)
    aim = labels if labels is not None else start
    total = torch.zeros_like(x)
    arrived = torch.zeros_like(wrong)
    for _ in range(num_steps):
        # Only the rows that are still on their way: most arrive in two or three steps, and a step costs a backward pass a class.
        rows = (~arrived).nonzero().squeeze(1)
        if not len(rows):
            break
        point = (x + total)[rows]
        point = point if create_graph and point.requires_grad else point.detach().requires_grad_()
        logits = forward(point, rows)
        reference = torch.where(wrong[rows], logits.detach().argmax(dim=1), start[rows])
        target = torch.where(wrong[rows], aim[rows], _nearest(logits, point, order[rows], p))
        difference = (logits.gather(1, target[:, None]) - logits.gather(1, reference[:, None])).squeeze(1)
        (w,) = torch.autograd.grad(difference.sum(), point, create_graph=create_graph)
        total = total.index_add(0, rows, _step(difference if create_graph else difference.detach(), w, p=p))
        with torch.no_grad():
            reached = forward((x + (1 + overshoot) * total)[rows], rows).argmax(dim=1)
            arrived[rows] = torch.where(wrong[rows], reached == aim[rows], reached != start[rows])
    return DeepFool((1 + overshoot) * total, arrived, start)


def _nearest(logits: Tensor, point: Tensor, order: Tensor, p: float) -> Tensor:
    """The class, among those of `order` but its first, whose linearised boundary is nearest in the p-norm; shape (B,)."""
    q = _dual(p)
    best = torch.full_like(logits[:, 0].detach(), math.inf)
    nearest = order[:, 1]
    reference = logits.gather(1, order[:, :1]).squeeze(1)
    for k in range(1, order.shape[1]):
        candidate = order[:, k]
        difference = logits.gather(1, candidate[:, None]).squeeze(1) - reference
        (w,) = torch.autograd.grad(difference.sum(), point, retain_graph=True)
        size = torch.linalg.vector_norm(w.flatten(1), q, dim=1)
        distance = torch.where(size > 0, norms.safe_divide(difference.detach().abs(), size), math.inf)
        nearest = torch.where(distance < best, candidate, nearest)
        best = torch.minimum(distance, best)
    return nearest


def _step(f: Tensor, w: Tensor, *, p: float) -> Tensor:
    """|f| / ||w||_q^q |w|^(q-1) sign(w), 0 where w is 0.

    The denominator is made safe before the division: where the two classes coincide it is 0/0, and its NaN would reach every weight
    through any mask laid over it afterwards.
    """
    q = _dual(p)
    flat = w.flatten(1)
    power = flat.square().sum(dim=1) if q == 2 else flat.abs().pow(q).sum(dim=1)
    usable = power > 0
    factor = f.abs() / torch.where(usable, power, torch.ones_like(power)) * usable
    direction = flat if q == 2 else flat.sign() if q == 1 else flat.sign() * flat.abs().clamp(min=1e-30).pow(q - 1)
    return (factor[:, None] * direction).reshape(w.shape)


def _dual(p: float) -> float:
    return 1.0 if math.isinf(p) else p / (p - 1)
