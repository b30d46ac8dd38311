"""Deep Defense: the norm of an unrolled DeepFool, differentiated through, one example at a time.

Readings: x_i = x + sum of the steps so far, without the overshoot, is where f and w are taken; whether the row is done
is told by the prediction at x + 1.02 times the sum. An example is correct or wrong by the logits at x. A wrong one's current
prediction is that at x_i. A pair of classes with w = 0 (the same class twice, since x_i already has the label although
x + 1.02 times the sum has not; or all ReLUs shut) has no boundary: no step is made towards it. Equation 3 treats every
example as a correct one: DeepFool from its prediction, R(-c rho). Linear: R(t) = t. The whole loss, cross entropy
included, has batch norm in eval mode. Exponents are not clamped here. A blank image has no rho and is left out of the
sum (B still counts it).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.reference.common import SGD, Batches, gradient_of, mean_loss
from tests.reference.nets import Net


def row_logits(net: Net, x: Tensor) -> Tensor:
    return net.logits(x[None], bn="eval")[0]


def towards(f: Tensor, w: Tensor, p: float) -> Tensor:
    """The smallest l_p step to the plane f + w.r = 0: |f| / ||w||_q^q |w|^(q-1) sign w, 1/p + 1/q = 1, up to its sign."""
    if p == 2:
        return f.abs() / w.square().sum() * w
    q = dual(p)
    return f.abs() / w.abs().pow(q).sum() * w.abs().pow(q - 1) * w.sign()


def dual(p: float) -> float:
    return 1.0 if math.isinf(p) else p / (p - 1)


def boundary(z: Tensor, point: Tensor, here: int, there: int) -> tuple[Tensor, Tensor]:
    """f = z_there - z_here and w its gradient at `point`, differentiable once more."""
    f = z[there] - z[here]
    (w,) = torch.autograd.grad(f, point, create_graph=True)
    return f, w


def deepfool(
    net: Net,
    x: Tensor,
    y: int | None,
    *,
    iterations: int = 5,
    overshoot: float = 0.02,
    num_classes: int | None = None,
    p: float = 2.0,
) -> Tensor:
    """1.02 times the sum of the steps for one image x (3, H, W).

    Without y, or where the prediction is y: to the nearest of the other classes among the `num_classes` with the
    largest logits at x, until the prediction changes. Otherwise from the current prediction to y, until it is y.
    """
    order: list[int] = row_logits(net, x).argsort(descending=True).tolist()[:num_classes]
    correct = y is None or order[0] == y
    x = x.detach().requires_grad_()
    total = torch.zeros_like(x)
    for _ in range(iterations):
        now = int(row_logits(net, x + (1 + overshoot) * total).argmax())
        if (now != order[0]) if correct else (now == y):
            break
        point = x + total
        z = row_logits(net, point)
        if correct:
            planes = [boundary(z, point, order[0], k) for k in order[1:]]
        else:
            assert y is not None
            planes = [boundary(z, point, int(z.argmax()), y)]
        planes = [(f, w) for f, w in planes if w.any()]
        if not planes:
            break
        f, w = min(planes, key=lambda plane: (plane[0].abs() / plane[1].norm(dual(p))).item())
        total = total + towards(f, w, p)
    return (1 + overshoot) * total


def deep_defense(
    net: Net,
    batches: Batches,
    *,
    lambda_: float = 15.0,
    c: float = 25.0,
    d: float = 5.0,
    regulariser: str = "exp",
    single_formula: bool = False,
    layer: str | None = None,
    iterations: int = 5,
    overshoot: float = 0.02,
    num_classes: int | None = None,
    p: float = 2.0,
    **sgd: float,
) -> tuple[Net, list[float]]:
    """Equation 6: CE + (lambda / B) [sum over correct of R(-c rho) + sum over wrong of R(d rho)], R = exp or linear.

    `single_formula` is equation 3. `layer` keeps the regulariser's gradient only for the weights whose names start
    with it. Returns the weights and each batch's mean rho during training.
    """
    net = net.clone()
    optimiser = SGD(net, **sgd)
    rhos: list[float] = []
    for x, y in batches:
        penalty, found = torch.zeros((), dtype=x.dtype), []
        for image, label in zip(x, y.tolist(), strict=True):
            if not image.any():
                continue
            correct = int(row_logits(net, image).argmax()) == label or single_formula
            target = None if correct else label
            delta = deepfool(
                net, image, target, iterations=iterations, overshoot=overshoot, num_classes=num_classes, p=p
            )
            rho = delta.norm(p) / image.norm(p)
            exponent = -c * rho if correct else d * rho
            penalty = penalty + (exponent.exp() if regulariser == "exp" else exponent)
            found.append(rho.item())
        gradient = gradient_of(mean_loss(net, x, y, bn="eval"), net)
        for name, g in gradient_of(lambda_ / len(x) * penalty, net).items():
            if layer is None or name.startswith(layer):
                gradient[name] = gradient[name] + g
        optimiser.apply(gradient)
        rhos.append(sum(found) / len(found))
    return net, rhos


def rho_2(net: Net, x: Tensor, *, iterations: int = 5, overshoot: float = 0.02) -> float:
    """The mean of ||Delta||_2 / ||x||_2 with DeepFool from the prediction."""
    ratios = [deepfool(net, v, None, iterations=iterations, overshoot=overshoot).norm() / v.norm() for v in x]
    return torch.stack(ratios).mean().item()
