"""What measures share: the conditions under which a network is looked at, batches, and noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain as concatenate
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from layerwise.attacks.base import loss_gradient
from layerwise.attacks.gradient import StepLL
from layerwise.core.ascent import chain, scale, sign
from layerwise.core.criteria import Criterion
from layerwise.core.modes import evaluation_mode, exact_arithmetic, frozen
from layerwise.core.random import Source, Stream, normal, uniform
from layerwise.core.selection import Selection
from layerwise.core.sites import Sites, unwrap
from layerwise.core.threat import ThreatModel
from layerwise.core.tracing import Site
from layerwise.errors import ConfigError, DataError
from layerwise.evaluation.corruptions.corrupt import corrupt

LAYERS: Selection = ("input", "affine outputs")
"""The sites that every classifier has: its input, and the outputs of its convolutions and linear layers."""


class Pollute(Protocol):
    """Makes noisy or adversarial images; an attack of `layerwise.attacks` is one inside a lambda:

    `lambda model, x, y, eps, source: PGDAttack()(model, x, y, ThreatModel(eps=eps), generator=source)`.
    """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, source: Source, /) -> Tensor:
        """Give images of the shape of x.

        Args:
            model: the network, in evaluation mode.
            x: images, shape (B, ...).
            y: labels, shape (B,).
            eps: radius or intensity, pixel units.
            source: of random numbers, the same for the same images whatever the batch size.
        """
        ...


def uniform_noise(model: nn.Module, x: Tensor, y: Tensor, eps: float, source: Source, /) -> Tensor:
    """Add U(-eps, eps) to every pixel, clip to [0, 1]."""
    del model, y
    return (x + eps * uniform(x, source, key="noise")).clamp(0, 1)


def fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float, source: Source, /) -> Tensor:
    """Add eps sign(dL/dx), clip to [0, 1]."""
    del source
    return (x + chain(sign(), scale(eps))(loss_gradient(model, x, y))).clamp(0, 1)


def _step_ll(model: nn.Module, x: Tensor, y: Tensor, eps: float, source: Source, /) -> Tensor:
    return StepLL()(model, x, y, ThreatModel("linf", eps), generator=source)


def _gaussian(model: nn.Module, x: Tensor, y: Tensor, eps: float, source: Source, /) -> Tensor:
    """Gaussian noise of deviation eps / 2, cut to eps."""
    del model, y
    return (x + (eps / 2 * normal(x, source, key="gaussian")).clamp(-eps, eps)).clamp(0, 1)


def _shot(model: nn.Module, x: Tensor, y: Tensor, eps: float, source: Source, /) -> Tensor:
    """The common corruption's shot noise, cut to eps."""
    del model, y
    assert isinstance(source, Stream)
    rows = torch.arange(source.start, source.start + len(x), device=x.device)
    noisy = corrupt(x.float(), "shot_noise", 3, seed=source.seed + source.step, rows=rows).to(x)
    return (x + (noisy - x).clamp(-eps, eps)).clamp(0, 1)


NoiseName: TypeAlias = Literal["uniform", "gaussian", "shot", "fgsm", "step-ll"]

NOISES: dict[NoiseName, Pollute] = {
    "uniform": uniform_noise,
    "gaussian": _gaussian,
    "shot": _shot,
    "fgsm": fgsm,
    "step-ll": _step_ll,
}
"""What images are polluted with, by name."""


@contextmanager
def examining(model: nn.Module, x: Tensor, *rows: Tensor) -> Iterator[nn.Module]:
    """The unwrapped network in evaluation mode, parameters frozen, float32 without TF32 and autocast.

    Modes, flags, arithmetic and PyTorch's random state come back, also after an error.

    Args:
        model: any classifier, wrapped or not.
        x: images, shape (N, ...).
        rows: what has to have as many rows.

    Raises:
        DataError: no images, different numbers of rows, or images that are not floating-point numbers.
    """
    if not len(x) or any(len(x) != len(other) for other in rows):
        beside = ", ".join(str(len(other)) for other in rows)
        raise DataError(f"found {len(x)} images and {beside or 'no'} rows beside them; give equally many, at least one")
    if not x.is_floating_point():
        raise DataError(f"images are {x.dtype}; give floating-point pixels in [0, 1], for example images.float() / 255")
    network = unwrap(model)
    device = _home(network, torch.empty(0)).device
    cuda = [device] if device.type == "cuda" else []
    with exact_arithmetic(device), evaluation_mode(network), frozen(network), torch.random.fork_rng(cuda):
        yield network


def _home(network: nn.Module, like: Tensor) -> Tensor:
    """A tensor on the network's device, of its type; `like` where the network has none."""
    found = (t for t in concatenate(network.parameters(), network.buffers()) if t.is_floating_point())
    return next(found, like)


def place(network: nn.Module, x: Tensor) -> Tensor:
    """`x` on the network's device; floating-point numbers in its type."""
    home = _home(network, x)
    return x.to(home.device, home.dtype if x.is_floating_point() else x.dtype)


def batches(
    network: nn.Module, x: Tensor, y: Tensor, *, batch_size: int, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor, Stream]]:
    """Rows of x and y on the network's device, and the source of these rows' random numbers.

    Args:
        network: where the rows go.
        x: images, shape (N, ...).
        y: labels (N,), or anything else with N rows.
        batch_size: rows at a time; results do not depend on it.
        seed: of the random numbers.

    Raises:
        ConfigError: batch_size below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} is too small; type 1 or more")
    for start in range(0, len(x), batch_size):
        rows = slice(start, start + batch_size)
        yield place(network, x[rows]), place(network, y[rows]), Stream(seed, start=start, total=len(x))


def attached(network: nn.Module, selection: Selection, x: Tensor) -> Sites:
    """Sites on the network for the duration of a `with`."""
    return Sites(network, selection, example=place(network, x[:2]))


def activations(network: nn.Module, sites: Sites, x: Tensor) -> tuple[Tensor, dict[Site, Tensor]]:
    """Logits and the activation at every site, from one forward pass that is not changed."""
    found: list[Tensor] = []

    def keep(r: Tensor, z: Tensor) -> Tensor:
        found.append(z)
        return r

    # Zero noise without memory, whose constraint sees each activation where it passes, in the order of the sites.
    nothing = {site: x.new_zeros(()).expand(len(x), *sites.shape(site)) for site in sites}
    with sites.perturb(nothing, constraint=keep):
        logits = network(x)
    return logits, dict(zip(sites, found, strict=True))


def losses(network: nn.Module, x: Tensor, y: Tensor, criterion: Criterion) -> Tensor:
    """Each image's loss, in float64 from the logits on: small differences of it matter here."""
    with torch.no_grad():
        return criterion(network(x).double(), y)
