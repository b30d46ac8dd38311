"""The diagnostics by name, each at a size that suits a look in passing, and how they are written on the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor, nn

from layerwise.attacks.gradient import PGDAttack, StepLL
from layerwise.core.checks import at_least
from layerwise.core.random import Source, Stream, normal
from layerwise.core.threat import ThreatModel
from layerwise.errors import ConfigError, did_you_mean
from layerwise.evaluation.corruptions.corrupt import corrupt
from layerwise.evaluation.measures.adversarialness import degree_of_adversarialness
from layerwise.evaluation.measures.alignment import gradient_alignment
from layerwise.evaluation.measures.base import Diagnostic, Pollute, examining, fgsm, place, uniform_noise
from layerwise.evaluation.measures.boundary import boundary_distance, decision_boundary
from layerwise.evaluation.measures.feature_gradients import feature_gradient_norms
from layerwise.evaluation.measures.features import feature_clouds
from layerwise.evaluation.measures.input_gradients import input_gradient_pictures
from layerwise.evaluation.measures.insensitivity import noise_insensitivity, representation_insensitivity
from layerwise.evaluation.measures.jacobian import jacobian_spectrum
from layerwise.evaluation.measures.landscape import loss_landscape
from layerwise.evaluation.measures.linearity import linear_approximation_error
from layerwise.evaluation.measures.radius import accuracy_over_radius
from layerwise.evaluation.measures.ratio import state_gradient_ratio
from layerwise.evaluation.measures.reassignment import layer_reassignment


@final
@dataclass(frozen=True)
class Subject:
    """What a diagnostic looks at.

    Args:
        model: the network.
        x: images, shape (N, C, H, W), in [0, 1].
        y: labels, shape (N,).
        threat: of the evaluation; its radius is the diagnostics' scale.
        seed: of their random numbers.
        name: what the network is called.
        others: {name: network} to compare with, for those that need two.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: ThreatModel
    seed: int = 0
    name: str = "network"
    others: Mapping[str, nn.Module] = field(default_factory=dict)

    @property
    def eps(self) -> float:
        """The radius per pixel: an l2 ball's is spread evenly over the pixels."""
        spread = math.sqrt(self.x.shape[1:].numel()) if self.threat.norm == "l2" else 1.0
        return self.threat.eps / spread

    def first(self, images: int) -> tuple[nn.Module, Tensor, Tensor]:
        """The network, and the first so many images and labels."""
        return self.model, self.x[:images], self.y[:images]


@final
@dataclass(frozen=True)
class Look:
    """A diagnostic of the registry.

    Args:
        summary: what it shows.
        run: looks at a subject; the other arguments are `sizes`.
        sizes: how much of everything, beginning with the number of images.
        passes: about how many forward and backward passes, of these sizes.
        needs_other: whether another network is needed.
    """

    summary: str
    run: Callable[..., Diagnostic]
    sizes: Mapping[str, int | str]
    passes: Callable[..., int]
    needs_other: bool = False


def _landscape(s: Subject, *, images: int, points: int) -> Diagnostic:
    grid = torch.linspace(-1, 1, points).tolist()
    return loss_landscape(*s.first(images), eps=s.eps, adversarial=grid, random=grid, seed=s.seed)


def _alignment(s: Subject, *, images: int) -> Diagnostic:
    return gradient_alignment(*s.first(images), eps=s.eps, seed=s.seed)


def _feature_gradients(s: Subject, *, images: int) -> Diagnostic:
    return feature_gradient_norms(*s.first(images))


def _linearity(s: Subject, *, images: int) -> Diagnostic:
    return linear_approximation_error(*s.first(images), eta=s.eps, seed=s.seed)


def _boundary_distance(s: Subject, *, images: int, directions: int) -> Diagnostic:
    return boundary_distance(*s.first(images), directions=directions, seed=s.seed)


def _noise_insensitivity(s: Subject, *, images: int, copies: int, noise: str) -> Diagnostic:
    eps = [s.eps * share for share in (0.25, 0.5, 1.0, 2.0) if 0 < s.eps * share <= 1]
    return noise_insensitivity(*s.first(images), eps=eps, pollute=pollution(noise), copies=copies, seed=s.seed)


def _representation_insensitivity(s: Subject, *, images: int, noise: str) -> Diagnostic:
    model, x, y = s.first(images)
    with examining(model, x, y) as network:
        x, y = place(network, x), place(network, y)
        polluted = pollution(noise)(network, x, y, s.eps, Stream(s.seed, total=len(x))).detach()
    return representation_insensitivity(model, x, polluted)


def _jacobian(s: Subject, *, images: int, top: int) -> Diagnostic:
    model, x, _ = s.first(images)
    return jacobian_spectrum(model, x, top=top, batch_size=10)


def _features(s: Subject, *, images: int, classes: int) -> Diagnostic:
    seen = sorted(set(s.y.tolist()))[: classes or None]
    kept = torch.isin(s.y, torch.tensor(seen, device=s.y.device)).nonzero().flatten()[:images]
    return feature_clouds(s.model, s.x[kept], s.y[kept], seed=s.seed)


def _input_gradients(s: Subject, *, images: int) -> Diagnostic:
    found = input_gradient_pictures(*s.first(images))
    # Far below what a screen shows: a record of numbers with all their digits is four times as long.
    rounded = {k: getattr(found, k).double().round(decimals=4) for k in ("images", "pictures")}
    return replace(found, **rounded)


def _radius_curve(s: Subject, *, images: int, steps: int) -> Diagnostic:
    norm, eps = s.threat.norm, s.threat.eps

    def attack(model: nn.Module, x: Tensor, y: Tensor, radius: float, source: Source, /) -> Tensor:
        return PGDAttack(steps)(model, x, y, ThreatModel(norm, radius), generator=source)

    top = math.inf if norm == "l2" else 1.0
    radii = [eps * share for share in (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0) if eps * share <= top]
    unit = f"{'l2' if norm == 'l2' else 'l-infinity'}, pixels in [0, 1]"
    return accuracy_over_radius(*s.first(images), attack, radii=radii, unit=unit, seed=s.seed)


def _state_ratio(s: Subject, *, images: int) -> Diagnostic:
    return state_gradient_ratio(*s.first(images))


def _decision_boundary(s: Subject, *, images: int) -> Diagnostic:
    return decision_boundary(*s.first(images))


def _reassignment(s: Subject, *, images: int) -> Diagnostic:
    (other,) = s.others.values()
    model, x, y = s.first(images)
    return layer_reassignment(model, other, x, y)


def _adversarialness(s: Subject, *, images: int) -> Diagnostic:
    model, x, y = s.first(images)
    return degree_of_adversarialness(model, {s.name: model, **s.others}, x, y, seed=s.seed)


DIAGNOSTICS: dict[str, Look] = {
    "landscape": Look(
        "loss and accuracy along an adversarial and a random direction (SLAT, figure 4)",
        _landscape,
        {"images": 50, "points": 11},
        lambda images, points: images * points**2,
    ),
    "alignment": Look(
        "cosine of the input gradients at an image and nearby (SLAT, figure 6)",
        _alignment,
        {"images": 250},
        lambda images: 4 * images,
    ),
    "feature-gradients": Look(
        "l1 norm of the loss gradient at every layer (SLAT, figure 5)",
        _feature_gradients,
        {"images": 250},
        lambda images: 2 * images,
    ),
    "linearity": Look(
        "distance of the loss from its tangent at every layer (SLAT, eq. 6)",
        _linearity,
        {"images": 100},
        lambda images: 25 * images,
    ),
    "boundary-distance": Look(
        "distance at which the prediction changes, over random orthogonal directions (ANP, eq. 3)",
        _boundary_distance,
        {"images": 10, "directions": 20},
        lambda images, directions: 52 * images * directions,
    ),
    "noise-insensitivity": Look(
        "change of the loss per unit of noise (ANP, eq. 4)",
        _noise_insensitivity,
        {"images": 100, "copies": 10, "noise": "uniform"},
        lambda images, copies, noise: 4 * images * copies,
    ),
    "representation-insensitivity": Look(
        "change of every layer under noise (ANP, figures 4 and 13)",
        _representation_insensitivity,
        {"images": 100, "noise": "fgsm"},
        lambda images, noise: 4 * images,
    ),
    "jacobian": Look(
        "singular values of the encoder's Jacobian (LAT, figure 2)",
        _jacobian,
        {"images": 10, "top": 50},
        lambda images, top: 600 * images,
    ),
    "features": Look(
        "t-SNE of the last features under noise at every layer (LAT, figure 1); classes=0 takes all",
        _features,
        {"images": 200, "classes": 0},
        lambda images, classes: 24 * images,
    ),
    "input-gradients": Look(
        "pictures of the loss gradient at the pixels (ANP, figure 5)",
        _input_gradients,
        {"images": 8},
        lambda images: 2 * images,
    ),
    "radius-curve": Look(
        "accuracy under PGD over the radius (SLAT, figure 3)",
        _radius_curve,
        {"images": 100, "steps": 10},
        lambda images, steps: 12 * images * steps,
    ),
    "state-ratio": Look(
        "size of the first residual state beside its gradient's (LAD, eq. 16); residual networks only",
        _state_ratio,
        {"images": 128},
        lambda images: 2 * images,
    ),
    "decision-boundary": Look(
        "which class is predicted where in the plane (SLAT, figure 2); data of two numbers only",
        _decision_boundary,
        {"images": 500},
        lambda images: 40_000 + images,
    ),
    "reassignment": Look(
        "accuracy with one layer's weights replaced by another network's (ANP, figure 2)",
        _reassignment,
        {"images": 250},
        lambda images: 25 * images,
        needs_other=True,
    ),
    "adversarialness": Look(
        "accuracy on FGSM images of another network (LAT, table 2)",
        _adversarialness,
        {"images": 250},
        lambda images: 36 * images,
        needs_other=True,
    ),
}
"""Every diagnostic by name."""


@final
@dataclass(frozen=True)
class Plan:
    """A diagnostic that was asked for.

    Args:
        name: of it.
        sizes: all of them.
    """

    name: str
    sizes: Mapping[str, int | str]

    @property
    def look(self) -> Look:
        """The entry of the registry."""
        return DIAGNOSTICS[self.name]

    @property
    def images(self) -> int:
        """How many images it looks at."""
        return int(self.sizes["images"])

    @property
    def passes(self) -> int:
        """About how many passes that takes."""
        return self.look.passes(**self.sizes)

    def __call__(self, subject: Subject) -> Diagnostic:
        """Look."""
        return self.look.run(subject, **self.sizes)

    def __str__(self) -> str:
        """The name, and what differs from the usual sizes; `parse_diagnostic` reads it back."""
        usual = self.look.sizes
        return " ".join([self.name, *(f"{k}={v}" for k, v in self.sizes.items() if v != usual[k])])


def parse_diagnostic(text: str) -> Plan:
    """Read a diagnostic: its name, and those of its sizes that differ.

    >>> parse_diagnostic("boundary-distance images=100").sizes
    {'images': 100, 'directions': 20}

    Raises:
        ConfigError: unknown name or size, a value that cannot be read.
    """
    name, *items = text.split() or [""]
    if name not in DIAGNOSTICS:
        raise ConfigError(
            f"diagnostic {text!r} is unknown; {did_you_mean(name, DIAGNOSTICS)} (`layerwise list diagnostics`)"
        )
    sizes = dict(DIAGNOSTICS[name].sizes)
    for item in items:
        key, equals, value = item.partition("=")
        if key not in sizes or not equals:
            raise ConfigError(f"diagnostic {text!r}: {name} has no {key!r}; {did_you_mean(key, sizes)}")
        sizes[key] = _size(text, key, value, sizes[key])
    return Plan(name, sizes)


def _size(text: str, key: str, value: str, usual: int | str) -> int | str:
    if isinstance(usual, str):
        pollution(value)
        return value
    if not re.fullmatch(r"\d+", value):
        raise ConfigError(f"diagnostic {text!r}: {key}={value} has to be a whole number")
    at_least(key, int(value), 0 if usual == 0 else 1)
    return int(value)


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


NOISES: dict[str, Pollute] = {
    "uniform": uniform_noise,
    "gaussian": _gaussian,
    "shot": _shot,
    "fgsm": fgsm,
    "step-ll": _step_ll,
}
"""What images are polluted with, by name."""


def pollution(name: str) -> Pollute:
    """The noise called so.

    Raises:
        ConfigError: there is none.
    """
    if name not in NOISES:
        raise ConfigError(f"noise={name} is unknown; {did_you_mean(name, NOISES)}")
    return NOISES[name]
