"""Self-checks that attack: a few cheap attacks whose outcomes have to agree if an evaluation by gradients is to mean anything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from layerwise.attacks.base import Averaged, ascend, is_correct, raw_gradient, starting_points
from layerwise.core import norms
from layerwise.core.modes import frozen
from layerwise.core.random import Source, Stream
from layerwise.core.threat import ThreatModel
from layerwise.evaluation import checks
from layerwise.evaluation.checks import Finding

SMALL_NETWORK = 1_000_000
"""Parameters below which a network is cheap enough to look at four times as many images."""

QUERIES = 24
"""Of the random search, each a forward pass."""

INNER: dict[norms.Norm, float] = {"linf": 0.75, "l2": 0.6}
"""Share of the radius within which iterated steps beat a full single step on overfitted networks only; an l2 step is a poorer attack."""

FLAT = 0.1
"""Nats; networks that are trained as usual, with label smoothing or TRADES too, keep most of their images' logits farther apart."""

NOISES = 8
"""Points around an image that the smoothed gradient is the mean over, new ones in every step."""

EVERYTHING = ThreatModel("linf", 1.0)
"""The threat model that holds every image."""


def examined(network: nn.Module) -> int:
    """How many images `examine` should be given: 64, or 256 for a small network."""
    return 256 if sum(p.numel() for p in network.parameters()) < SMALL_NETWORK else 64


def examine(network: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, source: Source = None) -> list[Finding]:
    """Look at outputs and gradients of a few images, and attack them in ways that have to agree.

    At most 12 gradients an image and 40 more for the first half of them; images that fall cost nothing from there on.

    Args:
        network: in evaluation mode; `Averaged` if its gradients are to be means over several passes.
        x: images, shape (B, ...), in [0, 1].
        y: labels, shape (B,).
        threat: against what.
        source: of random numbers.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2), nn.Softmax(dim=1))
    >>> x, y = torch.rand(8, 1, 4, 4), torch.arange(8) % 2
    >>> [finding.name for finding in examine(net, x, y, ThreatModel("linf", 0.1))][0]
    'probabilities'
    """
    gradient, again = raw_gradient(network, x, y), raw_gradient(network, x, y)
    with torch.no_grad():
        logits = network(x)
    random = checks.RANDOM_GRADIENT.share(differ(gradient, again), len(x))
    findings = [*_look(logits, gradient), *random]
    right = is_correct(logits, y).nonzero().flatten()
    best = logits[right].topk(2, dim=1).values
    findings += checks.FLAT_LOGITS.share(best[:, 0] - best[:, 1] < FLAT, max(1, len(right)))
    if random or not threat.eps or not len(right):
        return findings
    probe = _Probe(network, x, y, threat, source)
    findings += probe.slope(right, gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), logits)
    inner = probe.pursue(right, _scaled(threat, INNER[threat.norm]), steps=8)
    single = probe.is_correct(probe.step(_exact_gradient(network, x, y)))
    findings += checks.OVERFITTING.share(single[right] & ~inner.right, len(right))
    return findings + probe.rest(right[: (len(right) + 1) // 2], inner)


def _look(logits: Tensor, gradient: Tensor) -> list[Finding]:
    """What outputs and gradients give away by themselves."""
    g = gradient.flatten(1)
    low, high = logits.aminmax(dim=1)
    return [
        *checks.ZERO_GRADIENT.share((g == 0).all(dim=1), len(g)),
        *checks.BAD_GRADIENT.share((~g.isfinite()).any(dim=1), len(g)),
        *checks.PROBABILITIES.share((low >= 0) & (high <= 1) & (low < high), len(g)),
    ]


def differ(a: Tensor, b: Tensor) -> Tensor:
    """Which rows point elsewhere; in float64 and normalised first, since gradients of 1e-30 are common on well-learnt images."""
    a, b = (norms.normalize(norms.normalize(v.flatten(1).double(), "linf")) for v in (a, b))
    return (a - b).square().sum(dim=1) > 2 * (1 - 0.99)


def _scaled(threat: ThreatModel, factor: float) -> ThreatModel:
    eps = factor * threat.eps
    return replace(threat, eps=min(1.0, eps) if threat.norm == "linf" else eps)


def standing(logits: Tensor, y: Tensor) -> Tensor:
    """Log odds of the labels, log p_y / (1 - p_y), shape (B,), in float64: falls where cross entropy rises, and never saturates."""
    z = logits.double()
    own = z.gather(1, y[:, None])
    others = z.scatter(1, y[:, None], -torch.inf)
    return own[:, 0] - others.logsumexp(dim=1)


def _exact_gradient(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The direction of cross entropy's gradient, which no saturation bends: any network withstands a step along a bent one."""
    leaf = x.detach().requires_grad_()
    with frozen(network):
        odds = standing(network(leaf), y).sum()
        found = torch.autograd.grad(odds, leaf, allow_unused=True)[0] if odds.requires_grad else None
    return torch.zeros_like(x) if found is None else found.neg().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


@final
class Rescaled(nn.Module):
    """A network whose logits are divided by the gap between the two largest: the same predictions, a loss that cannot saturate.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (B, C), the largest one above the next."""
        logits: Tensor = self.network(x)
        best = logits.detach().topk(2, dim=1).values
        return logits / (best[:, :1] - best[:, 1:]).clamp(min=torch.finfo(logits.dtype).tiny ** 0.5)


@final
class Smoothed(nn.Module):
    """A network as attacks see it through noise: where `Averaged` is around it, gradients are means over points around each image.

    Args:
        network: the network.
        reach: uniform noise of so much in every pixel.
        generator: of the noise.
    """

    def __init__(self, network: nn.Module, reach: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.network, self.reach, self.generator = network, reach, generator

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, C)."""
        noise = torch.rand(x.shape, generator=self.generator, device=x.device, dtype=x.dtype) * 2 - 1
        logits: Tensor = self.network(x + self.reach * noise)
        return logits


@dataclass(frozen=True)
class _Pursuit:
    """Where an attack ended, and which images stayed right."""

    points: Tensor
    right: Tensor


@dataclass(frozen=True)
class _Probe:
    """A network and images to attack, in whole or in part (`rows`)."""

    network: nn.Module
    x: Tensor
    y: Tensor
    threat: ThreatModel
    source: Source

    @torch.no_grad()
    def is_correct(self, points: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        return is_correct(self.network(points), self.y[rows])

    def step(self, gradient: Tensor, share: float = 1.0) -> Tensor:
        """The images after one step along the gradient."""
        direction = gradient.sign() if self.threat.norm == "linf" else norms.normalize(gradient)
        return (self.x + share * self.threat.eps * direction).clamp(0, 1)

    def slope(self, rows: Tensor, gradient: Tensor, logits: Tensor) -> list[Finding]:
        """Whether the loss rises where its gradient says."""
        near = self.step(gradient, 0.25)
        rows = rows[(near != self.x).flatten(1).any(dim=1)[rows]]
        if not len(rows):
            return []
        with torch.no_grad():
            after = standing(self.network(near[rows]), self.y[rows])
        return checks.UNRELATED_GRADIENT.share(after >= standing(logits[rows], self.y[rows]), len(rows))

    def pursue(
        self,
        rows: Tensor,
        threat: ThreatModel,
        *,
        steps: int,
        start: Tensor | None = None,
        network: nn.Module | None = None,
    ) -> _Pursuit:
        """PGD with steps of eps / 4 on some images, by default from a random start."""
        if not len(rows):
            return _Pursuit(self.x[rows], torch.zeros_like(rows, dtype=torch.bool))
        if start is None:
            # Drawn for all the images, so that they do not depend on which are attacked.
            start = starting_points(self.x, threat, self.source)[rows]
        x, y = self.x[rows], self.y[rows]
        alpha = threat.eps / 4
        points = ascend(network or self.network, x, y, threat, start=start, steps=steps, alpha=alpha, stop=True)
        return _Pursuit(points, self.is_correct(points, rows))

    def rest(self, rows: Tensor, inner: _Pursuit) -> list[Finding]:
        """The dearer probes, on some of the images: `rows` are the first of those that `inner` attacked."""
        points, left = inner.points[: len(rows)], inner.right[: len(rows)]
        found = self.pursue(rows[left], self.threat, steps=6, start=points[left])
        kept, ends, total = rows[left][found.right], found.points[found.right], len(rows)
        fooled = rows[~torch.isin(rows, kept)]
        smoothed = self.pursue(kept, self.threat, steps=20, network=Averaged(self.smoothed(), NOISES))
        rescaled = self.pursue(kept, self.threat, steps=10, network=Rescaled(self.network))
        anything = self.pursue(kept, EVERYTHING, steps=12, start=ends)
        farther = self.pursue(fooled, _scaled(self.threat, 2.0), steps=10)
        return [
            *checks.SATURATED.share(~rescaled.right, total),
            *checks.ROUGH.share(~smoothed.right, total),
            *checks.RANDOM_SEARCH.share(self.search(kept), total),
            *checks.UNBOUNDED.share(anything.right, total),
            *checks.LARGER_RADIUS.share(farther.right, total),
        ]

    def smoothed(self) -> Smoothed:
        """The network through noise of half the radius, and at least two levels: ripples that nobody sees are shorter."""
        eps = self.threat.eps / (self.x[0].numel() ** 0.5 if self.threat.norm == "l2" else 1)
        return Smoothed(self.network, max(eps / 2, 2 / 255), self.generator("smooth"))

    def generator(self, key: str) -> torch.Generator | None:
        return self.source.generator(key, self.x.device) if isinstance(self.source, Stream) else self.source

    @torch.no_grad()
    def search(self, rows: Tensor) -> Tensor:
        """Which images a random search fools: stripes, then rectangles of random sign, kept where the label's standing falls.

        Reference: Andriushchenko et al. 2020 (Square attack), of which this is a short form.
        """
        x, y = self.x[rows], self.y[rows]
        fooled = torch.zeros_like(rows, dtype=torch.bool)
        best, lowest = torch.zeros_like(x), torch.full(rows.shape, torch.inf, dtype=torch.float64, device=x.device)
        generator = self.generator("search")
        for query in range(QUERIES):
            alive = (~fooled).nonzero().flatten()
            if not len(alive):
                break
            # Drawn for all the images, so that they do not depend on which are attacked.
            patch = _patches(self.x, query, generator)[rows[alive]]
            tried = self.painted(best[alive], patch)
            logits = self.network((x[alive] + tried).clamp(0, 1))
            now = standing(logits, y[alive])
            better = now < lowest[alive]
            best[alive[better]], lowest[alive[better]] = tried[better], now[better]
            fooled[alive] = ~is_correct(logits, y[alive])
        return fooled

    def painted(self, noise: Tensor, patch: Tensor) -> Tensor:
        """The perturbation with a patch of signs over it, on the sphere."""
        eps = self.threat.eps
        if self.threat.norm == "linf":
            return torch.where(patch == 0, noise, eps * patch)
        return eps * norms.normalize(noise + eps * norms.normalize(patch))


def _patches(like: Tensor, query: int, generator: torch.Generator | None) -> Tensor:
    """Signs in the shape of `like`: vertical stripes first, then ever smaller rectangles of one sign a channel, 0 around them."""
    shape = like.shape if like.ndim == 4 else (len(like), like[0].numel(), 1, 1)
    count, channels, height, width = shape

    def draw(*size: int) -> Tensor:
        return torch.rand(count, *size, generator=generator, device=like.device, dtype=like.dtype)

    if query == 0:
        return (draw(channels, 1, width) - 0.5).sign().expand(shape).reshape(like.shape)
    inside = torch.ones((), dtype=torch.bool, device=like.device)
    for side, form in ((height, (1, -1, 1)), (width, (1, 1, -1))):
        size = max(1, round(0.7 * 0.95**query * side))
        first = (draw(1, 1, 1) * (side - size + 1)).floor()
        place = torch.arange(side, device=like.device).reshape(form)
        inside = inside & (place >= first) & (place < first + size)
    return ((draw(channels, 1, 1) - 0.5).sign() * inside).reshape(like.shape)
