"""Networks that look robust and are not, each with a defect that the self-checks must find, and honest ones that they must not accuse.

All are for the embedded digits; the same seed gives the same network.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise import data
from layerwise.core.driving import AUTOGRAD
from layerwise.experiments.experiment import build_model, load_data, read
from layerwise.training import fit
from tests.evaluation.problems import Quantise, Wrapped

OVERFITTED = ("--method.eps=0.3", "--training.epochs=40", "--training.optimizer.weight_decay=0")
"""What makes FGSM training on the digits overfit: clean 98 %, one step about 60 %, PGD-20 about 12 % (cnn) or 4 % (mlp)."""


@functools.cache
def digits() -> data.ImageData:
    return data.load("digits")


def images(count: int = 540) -> tuple[Tensor, Tensor]:
    """Test images (N, 1, 8, 8) and labels."""
    split = digits().test
    assert isinstance(split, data.TensorSplit)
    assert split.labels is not None
    return split.images[:count], split.labels[:count]


@functools.cache
def recipe(name: str, *overrides: str, seed: int = 0) -> nn.Module:
    """A network as a recipe makes it, in evaluation mode."""
    experiment, _ = read(name, [f"--training.seed={seed}", "--training.eval_every=1000", *overrides])
    found = load_data(experiment.data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_model(experiment.model, found)
    fit(network, experiment.method, found, threat=experiment.threat, training=experiment.training, progress=False)
    return network.eval()


def overfitted(kind: str, *, seed: int = 0) -> nn.Module:
    """FGSM training that ends in catastrophic overfitting; `digits_cnn` or `mlp`."""
    return recipe("fgsm-digits", *OVERFITTED, f"--model.name={kind}", seed=seed)


class Scaled(nn.Module):
    """Logits times a factor: cross entropy saturates, the predictions stay."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.factor * self.network(x)
        return out


class Rippled(nn.Module):
    """The network of x + a sin(w x), or the same behind the module called `inside`."""

    def __init__(self, network: nn.Module, a: float, w: float, *, inside: bool = False) -> None:
        super().__init__()
        self.network, self.a, self.w, self.inside = network, a, w, inside

    def ripple(self, z: Tensor) -> Tensor:
        return z + self.a * torch.sin(self.w * z)

    def forward(self, x: Tensor) -> Tensor:
        if not self.inside:
            return self.network(self.ripple(x))  # type: ignore[no-any-return]
        layers = (nn.Linear, nn.Conv2d)
        first = next(module for module in self.network.modules() if isinstance(module, layers))
        handle = first.register_forward_hook(lambda module, args, z: self.ripple(z))
        try:
            return self.network(x)  # type: ignore[no-any-return]
        finally:
            handle.remove()


class RandomResize(nn.Module):
    """Grow by a random factor and cut out a random place, also in evaluation mode (after Xie et al. 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        side = x.shape[-1]
        new = side + int(torch.randint(3, ()))
        grown = F.interpolate(x, size=(new, new), mode="bilinear", align_corners=False)
        top, left = (int(torch.randint(new - side + 1, ())) for _ in range(2))
        return grown[..., top : top + side, left : left + side]


class Step(nn.Module):
    """1 where the input is positive, else 0; in training with the gradient of a sigmoid, later with none."""

    def forward(self, h: Tensor) -> Tensor:
        hard = (h > 0).to(h.dtype)
        soft = torch.sigmoid(4 * h)
        return hard + soft - soft.detach() if self.training else hard


class Surrogate(Step):
    """A step that keeps its made-up gradient."""

    def forward(self, h: Tensor) -> Tensor:
        soft = torch.sigmoid(4 * h)
        return (h > 0).to(h.dtype) + soft - soft.detach()


class Reversed(nn.Module):
    """The gradient points the wrong way."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(2 * x.detach() - x)
        return out


def mlp(activation: Callable[[], nn.Module] = nn.ReLU, *, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), activation(), nn.Linear(64, 10))


def learn(network: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], targets: Tensor, *, steps: int) -> nn.Module:
    """Adam on all training images."""
    split = digits().train
    assert isinstance(split, data.TensorSplit)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        AUTOGRAD(loss(network(split.images), targets))
        optimiser.step()
    return network.eval()


def labels() -> Tensor:
    split = digits().train
    assert isinstance(split, data.TensorSplit)
    assert split.labels is not None
    return split.labels


def distilled(*, temperature: float = 50.0, seed: int = 0, steps: int = 200) -> nn.Module:
    """Defensive distillation: a student of soft labels, both at a temperature, which is 1 in use (Papernot et al. 2016)."""

    def hot(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits / temperature, y)

    split = digits().train
    assert isinstance(split, data.TensorSplit)
    teacher = learn(mlp(seed=seed), hot, labels(), steps=steps)
    with torch.no_grad():
        soft = (teacher(split.images) / temperature).softmax(dim=1)
    return learn(mlp(seed=seed + 1), hot, soft, steps=steps)


def stepped(kind: type[Step] = Step, *, seed: int = 0, steps: int = 200) -> nn.Module:
    """A step in place of ReLU."""
    return learn(mlp(kind, seed=seed), F.cross_entropy, labels(), steps=steps)


def defects(network: nn.Module, *, seed: int = 0) -> dict[str, nn.Module]:
    """Every defect but the overfitted ones, most of them around an honest network.

    `surrogate` is none to an attacker: its made-up gradient can be followed.
    """
    return {
        "scaled": Scaled(network, 100.0),
        "distilled": distilled(seed=seed),
        "quantised": Wrapped(Quantise(), network),
        "resized": Wrapped(RandomResize(), network),
        "stepped": stepped(seed=seed),
        "surrogate": stepped(Surrogate, seed=seed),
        "reversed": Reversed(network),
        "probabilities": nn.Sequential(network, nn.Softmax(dim=1)),
    }
