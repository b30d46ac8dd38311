"""Every measure, called on any classifier of images (B, 3, 8, 8) with residual blocks, and what it found."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from layerwise.evaluation.measures import (
    Measurement,
    accuracy_over_radius,
    boundary_distance,
    decision_boundary,
    degree_of_adversarialness,
    feature_clouds,
    feature_gradient_norms,
    gradient_alignment,
    input_gradient_pictures,
    jacobian_spectrum,
    layer_reassignment,
    linear_approximation_error,
    loss_landscape,
    noise_insensitivity,
    representation_insensitivity,
    state_gradient_ratio,
    uniform_noise,
)
from tests.networks import TinyResNet, batch

X, Y = batch(6)
NOISY = (X + 0.1 * batch(6, seed=1)[0]).clamp(0, 1)
PAIR = X[:, :2, 0, 0]

Case = Callable[[nn.Module, int, int], Measurement]


class OnPairs(nn.Module):
    """The network on an image made of two numbers, so that its decisions can be drawn in the plane."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        pair = x.reshape(-1, 2, 1, 1)
        image = pair.repeat(1, 2, 8, 8)[:, :3]
        out: Tensor = self.network(image)
        return out


def other() -> nn.Module:
    return TinyResNet(seed=1).double()


SEEDED: dict[str, Case] = {
    "alignment": lambda m, b, s: gradient_alignment(m, X, Y, eps=0.3, seed=s, batch_size=b),
    "landscape": lambda m, b, s: loss_landscape(
        m, X, Y, eps=0.2, adversarial=[0, 1], random=[0, 1], seed=s, batch_size=b
    ),
    "linearity": lambda m, b, s: linear_approximation_error(
        m, X, Y, sites=["input", "block2"], direction="random", seed=s, batch_size=b
    ),
    "boundary": lambda m, b, s: boundary_distance(m, X, Y, directions=3, steps=6, reach=1e3, seed=s, batch_size=b),
    "noise": lambda m, b, s: noise_insensitivity(m, X, Y, eps=[0.1, 0.2], copies=2, seed=s, batch_size=b),
    "radius": lambda m, b, s: accuracy_over_radius(m, X, Y, uniform_noise, radii=[0, 0.9], seed=s, batch_size=b),
}
"""Those whose numbers hang on a seed (accuracies on six images need not show it)."""

UNSEEDED: dict[str, Case] = {
    "feature gradients": lambda m, b, s: feature_gradient_norms(m, X, Y, batch_size=b),
    "representation": lambda m, b, s: representation_insensitivity(m, X, NOISY, batch_size=b),
    "reassignment": lambda m, b, s: layer_reassignment(m, other(), X, Y, batch_size=b),
    "jacobian": lambda m, b, s: jacobian_spectrum(m, X, batch_size=b),
    "adversarialness": lambda m, b, s: degree_of_adversarialness(m, {"it": m, "other": other()}, X, Y, batch_size=b),
    "input gradients": lambda m, b, s: input_gradient_pictures(m, X, Y, batch_size=b),
    "plane": lambda m, b, s: decision_boundary(OnPairs(m), PAIR, Y, points=4, batch_size=b),
}
BATCHED: dict[str, Case] = {
    "ratio": lambda m, b, s: state_gradient_ratio(m, X, Y, batch_size=b),
    "features": lambda m, b, s: feature_clouds(m, X, Y, eps=[0.2], seed=s, batch_size=b),
}
"""Those that depend on the batch size, and say so."""

CASES = SEEDED | UNSEEDED | BATCHED
