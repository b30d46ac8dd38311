"""The latent audit: how much noise, relative to its activation, each layer stands, by attack, by chance, and towards a random target."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn

from layerwise.core.ascent import Ascent, accumulate, chain, normalize, project, scale, sign
from layerwise.core.calling import Inputs, logits, rows
from layerwise.core.checks import at_least, one_of
from layerwise.core.criteria import Criterion, CrossEntropy, NextToken, class_dim
from layerwise.core.latent import Per, at_real, each, stream_sites, units
from layerwise.core.norms import safe_divide
from layerwise.core.passes import Noise, Replacement
from layerwise.core.probe import Probe
from layerwise.core.random import Stream, normal, uniform
from layerwise.core.selection import Selection
from layerwise.core.sites import Sites
from layerwise.core.tracing import Site
from layerwise.errors import ConfigError, DataError
from layerwise.evaluation.progress import Board, tracked
from layerwise.evaluation.store import Store

logger = logging.getLogger(__name__)

RADII = (0.02, 0.05, 0.1, 0.2, 0.5)
"""||r|| / ||z|| that an audit looks at where nobody says otherwise."""

Examples: TypeAlias = Sequence[tuple[Inputs, Tensor]]
"""Batches: what the network takes, and what the criterion takes beside its outputs."""


@final
@dataclass(frozen=True)
class Layer:
    """What one site stands; every tuple has an entry for each radius.

    Args:
        site: its name.
        attacked: predictions that stay correct under PGD in that radius and in every smaller one.
        noisy: that are correct under random noise of exactly that size.
        targeted: that PGD brings to a target drawn at random among the wrong ones: what a strong attack would elicit anyway.
        attacked_loss: mean over the examples of the largest loss that PGD has found so far.
        noisy_loss: mean loss under the noise.
    """

    site: str
    attacked: tuple[int, ...]
    noisy: tuple[int, ...]
    targeted: tuple[int, ...]
    attacked_loss: tuple[float, ...]
    noisy_loss: tuple[float, ...]


@final
@dataclass(frozen=True)
class Plan:
    """What an audit does.

    Args:
        radii: ||r|| / ||z||, rising.
        steps: of PGD, 2.5 radius / steps each.
        norm: `"l2"` or `"linf"`.
        per: what a norm is of: the `"example"`'s activation, or each `"token"`'s where it is (B, L, d).
        criterion: each example's loss.
        seed: of noise and targets.
    """

    radii: tuple[float, ...] = RADII
    steps: int = 10
    norm: Literal["l2", "linf"] = "l2"
    per: Per = "example"
    criterion: Criterion = CrossEntropy()  # noqa: RUF009 - immutable
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        if not self.radii or min(self.radii) <= 0 or list(self.radii) != sorted(set(self.radii)):
            raise ConfigError(
                f"radii={list(self.radii)} cannot be audited; type rising numbers above 0, such as 0.05,0.1"
            )
        at_least("steps", self.steps, 1)
        one_of("norm", self.norm, ("l2", "linf"))
        one_of("per", self.per, ("example", "token"))

    @property
    def passes(self) -> int:
        """Over the network, of each example at each site."""
        return passes(len(self.radii), self.steps)


def passes(radii: int, steps: int) -> int:
    """Passes of each example at each site: two attacks, two looks at what they found, one at noise."""
    return radii * (4 * steps + 3)


class _Double(Criterion):
    """A criterion on logits in float64, where no loss saturates; `sign` -1 climbs down."""

    def __init__(self, criterion: Criterion, sign: int = 1) -> None:
        self.criterion, self.sign = criterion, sign

    def __call__(self, output: Tensor, y: Tensor, /) -> Tensor:
        """See `Criterion`; the mean over the positions of each example."""
        losses = self.criterion(output.double(), y)
        return self.sign * (losses if losses.ndim == 1 else losses.flatten(1).mean(1))


def predictions(criterion: Criterion, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
    """The classes that the network says, the labels that they stand beside (-100: none), and how many classes there are.

    Raises:
        DataError: outputs and labels do not stand beside each other.
    """
    if isinstance(criterion, NextToken):
        output, y = output[:, :-1], y[:, 1:]
    dim = class_dim(criterion, output)
    said = output.argmax(dim)
    if said.shape != y.shape:
        raise DataError(
            f"the network gives {tuple(output.shape)} for labels {tuple(y.shape)}; an audit needs classes to be right or wrong "
            "about: type criterion=layerwise.TokenCrossEntropy() or layerwise.NextToken() where they are tokens"
        )
    return said, y, output.shape[dim]


def choose_layers(model: nn.Module, x: Inputs, sites: Selection | None, layers: int | None) -> list[Site]:
    """The sites that are named, or the outputs of blocks (affine layers where there are none); evenly, `layers` of them."""
    with stream_sites(model, x, sites) as found:
        every = list(found)
    if layers is None or len(every) <= layers:
        return every
    return [every[round(i * (len(every) - 1) / max(layers - 1, 1))] for i in range(layers)]


def audit_layers(
    model: nn.Module,
    batches: Examples,
    sites: Sequence[Site],
    plan: Plan,
    *,
    store: Store,
    item: str = "audit",
    board: Board | bool = False,
    bar: str = "audit",
) -> list[Layer]:
    """What every site stands, one after the other; those that the store knows are not looked at again.

    Args:
        model: in evaluation mode, see `looked_at`.
        batches: the examples.
        sites: which.
        plan: how.
        store: where each site is kept as soon as it is done.
        item: what the store calls the audit.
        board: where progress is shown.
        bar: what its bar is called.
    """
    count = sum(rows(x) for x, _ in batches)
    logger.info(
        "the audit of %s sites at %s radii makes %s passes over %s examples",
        *(len(sites), len(plan.radii), 1 + len(sites) * plan.passes, count),
    )
    found = []
    for site in tracked(sites, len(sites), bar, board):
        known = store.get(f"{item} {site}", lambda site=site: asdict(_audit_site(model, batches, site, plan)))  # type: ignore[misc]
        values: dict[str, Any] = {k: v if isinstance(v, str) else tuple(v) for k, v in known.items()}
        found.append(Layer(**values))
    return found


@final
@dataclass(frozen=True)
class Unmoved:
    """What the network says without noise: correct predictions, those that are the random target, all of them, and the mean loss."""

    correct: int
    at_target: int
    predictions: int
    loss: float


def unmoved(model: nn.Module, batches: Examples, plan: Plan) -> Unmoved:
    """One pass over the examples."""
    correct = at_target = total = 0
    losses = []
    with torch.no_grad():
        for (x, y), stream in zip(batches, _streams(batches, plan.seed), strict=True):
            output = logits(model, x)
            said, labels, classes = predictions(plan.criterion, output, y)
            _, targets, _ = predictions(plan.criterion, output, _targets(y, classes, stream))
            correct += int((said == labels).sum())
            at_target += int((said == targets).sum())
            total += int((labels != -100).sum())
            losses.append(_Double(plan.criterion)(output, y))
    return Unmoved(correct, at_target, total, torch.cat(losses).mean().item())


def _streams(batches: Examples, seed: int) -> list[Stream]:
    """Images draw by their place among all, whatever the batch size; sequences, whose lengths differ, by their batch."""
    counts = [rows(x) for x, _ in batches]
    shapes = {x.shape[1:] if isinstance(x, Tensor) else None for x, _ in batches}
    if len(shapes) > 1 or None in shapes:
        return [Stream(seed, number) for number in range(len(counts))]
    return [Stream(seed, start=sum(counts[:number]), total=sum(counts)) for number in range(len(counts))]


def _targets(y: Tensor, classes: int, stream: Stream) -> Tensor:
    """A wrong label for each right one."""
    drawn = uniform(torch.empty(y.shape, dtype=torch.float64), stream, key="target")
    farther = ((drawn + 1) / 2 * (classes - 1)).long().to(y.device)
    return torch.where(y == -100, y, (y + 1 + farther) % classes)


def _audit_site(model: nn.Module, batches: Examples, site: Site, plan: Plan) -> Layer:
    kinds = ("attacked", "noisy", "targeted")
    counts = {kind: [0] * len(plan.radii) for kind in kinds}
    losses: dict[str, list[list[Tensor]]] = {kind: [[] for _ in plan.radii] for kind in kinds}
    for (x, y), stream in zip(batches, _streams(batches, plan.seed), strict=True):
        with Sites(model, [str(site)], example=x) as sites:
            look = _Look(model, x, y, sites, plan, stream)
            for kind in kinds:
                for k, (hits, loss) in enumerate(getattr(look, kind)()):
                    counts[kind][k] += int(hits.sum())
                    losses[kind][k].append(loss)
    means = {kind: tuple(torch.cat(loss).mean().item() for loss in losses[kind]) for kind in kinds}
    tuples = {kind: tuple(values) for kind, values in counts.items()}
    return Layer(str(site), **tuples, attacked_loss=means["attacked"], noisy_loss=means["noisy"])


@dataclass(frozen=True)
class _Look:
    """One batch at one site."""

    model: nn.Module
    x: Inputs
    y: Tensor
    sites: Sites
    plan: Plan
    stream: Stream

    def attacked(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each radius, what stays correct there and before, and each example's largest loss until there."""
        stays: Tensor | bool = True
        worst: Tensor | None = None
        for u in self._ascent(_Double(self.plan.criterion), self.y):
            hits, loss = self._seen(u, self.y)
            stays = hits & stays
            worst = loss if worst is None else torch.maximum(worst, loss)
            yield stays, worst

    def noisy(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each radius, what is correct under noise of that size, and each example's loss."""
        known: dict[str, Tensor] = {}
        for radius in self.plan.radii:
            yield self._seen(dict.fromkeys(self.sites, partial(self._random, known, radius)), self.y)

    def targeted(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each radius, what has been brought to its target there or before."""
        with torch.no_grad():
            _, _, classes = predictions(self.plan.criterion, logits(self.model, self.x), self.y)
        target = _targets(self.y, classes, self.stream)
        reached: Tensor | bool = False
        for u in self._ascent(_Double(self.plan.criterion, -1), target):
            hits, loss = self._seen(u, target)
            reached = hits | reached
            yield reached, loss

    def _ascent(self, criterion: Criterion, y: Tensor) -> Iterator[Noise]:
        """PGD's noise in units of ||z|| at each radius, which begins where the one before ended: its ball holds that of before."""
        u: Noise = {}
        last = 1.0
        for radius in self.plan.radii:
            u = {site: r * (radius / last) for site, r in u.items()}
            rule, last = self._rule(radius), radius
            for _ in range(self.plan.steps):
                _, g = Probe()(
                    self.model, self.x, y, criterion=criterion, sites=self.sites, noise=u, constraint=self._added
                )
                u = {site: rule(at_real(v, self.x), u.get(site)) for site, v in g.items()}
            yield u

    def _rule(self, radius: float) -> Ascent:
        direction = sign() if self.plan.norm == "linf" else normalize("l2")
        step = 2.5 * radius / self.plan.steps
        return each(chain(direction, scale(step), accumulate(), project(self.plan.norm, radius)), self.plan.per)

    def _added(self, u: Tensor, z: Tensor) -> Tensor:
        return u * units(z, self.plan.norm, self.plan.per)

    def _random(self, known: dict[str, Tensor], radius: float, z: Tensor) -> Tensor:
        """Noise in the same direction at every radius, what replaces z."""
        if "u" not in known:
            drawn = at_real(normal(z, self.stream, key="noise"), self.x)
            linf = self.plan.norm == "linf"
            known["u"] = drawn.sign() if linf else safe_divide(drawn, units(drawn, "l2", self.plan.per))
        return z + self._added(radius * known["u"], z)

    @torch.no_grad()
    def _seen(self, noise: Mapping[Site, Tensor | Replacement], y: Tensor) -> tuple[Tensor, Tensor]:
        """Where the network says y under the noise, and each example's loss."""
        with self.sites.perturb(noise, constraint=self._added):
            output = logits(self.model, self.x)
        said, labels, _ = predictions(self.plan.criterion, output, y)
        return said == labels, _Double(self.plan.criterion)(output, y)
