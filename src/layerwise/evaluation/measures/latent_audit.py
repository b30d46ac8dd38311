"""The latent audit of a network: one curve a layer over the relative size of its noise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from layerwise.core.arguments import named
from layerwise.core.calling import Inputs, move, rows
from layerwise.core.checks import at_least, of_kind
from layerwise.core.criteria import CrossEntropy, as_criterion
from layerwise.core.latent import Per
from layerwise.core.modes import evaluation_mode, exact_arithmetic, frozen
from layerwise.core.registry import register
from layerwise.core.selection import Selection
from layerwise.core.sites import unwrap
from layerwise.data.custom import of_any_kind
from layerwise.data.examples import each_batch, split_batch
from layerwise.errors import ConfigError, DataError
from layerwise.evaluation.audit import RADII, Examples, Layer, Plan, audit_layers, choose_layers, passes, unmoved
from layerwise.evaluation.conditions import digest, evaluating
from layerwise.evaluation.intervals import Count
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.measures.base import batches, examining
from layerwise.evaluation.store import Store
from layerwise.evaluation.style import canvas, describe, legend_below, line, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HALF = 0.5
"""Share of the clean accuracy at whose loss a layer has given way."""
FRAGILE = 3.0
"""So many times less than the median layer stands one that is called fragile."""


@final
@dataclass(frozen=True)
class LatentAudit(Measurement):
    """What noise at each layer does to the predictions, as a function of its size relative to the activation.

    Args:
        radii: ||r|| / ||z||.
        layers: what was found at each.
        clean: correct predictions without noise.
        predictions: all of them: examples, or labelled positions of sequences.
        clean_loss: mean loss without noise.
        images: examples.
        steps: of PGD.
        norm: of r and z.
        per: what the norm is of.
        at_target: predictions that are the random target without noise; 0 in older records, which did not count them.
    """

    title: ClassVar[str] = "Latent audit"
    rank: ClassVar[int] = 36
    caption: ClassVar[str] = (
        "A layer whose attacked curve falls far before the others' is fragile. Random noise shows what its size alone does; where a random "
        "target is reached as often, the attack shows its strength rather than the network's weakness."
    )

    radii: tuple[float, ...]
    layers: tuple[Layer, ...]
    clean: int
    predictions: int
    clean_loss: float
    images: int
    steps: int
    norm: str
    per: str
    at_target: int = 0

    def half_radius(self, layer: Layer) -> float:
        """The relative size at which PGD halves the accuracy, between the radii on a line; infinite where none of them does."""
        wanted = HALF * self.clean
        before, radius = float(self.clean), 0.0
        for correct, here in zip(layer.attacked, self.radii, strict=True):
            if correct <= wanted:
                return radius + (here - radius) * ((before - wanted) / (before - correct) if before > correct else 1.0)
            before, radius = float(correct), here
        return float("inf")

    @property
    def weakest(self) -> Layer:
        """The layer whose accuracy under attack is the lowest, over all radii together."""
        return min(self.layers, key=lambda layer: (sum(layer.attacked), -sum(layer.attacked_loss)))

    @property
    def fragile(self) -> tuple[Layer, ...]:
        """Layers that give way at a third of what the median layer stands, or less."""
        halves = sorted(min(self.half_radius(layer), 2 * self.radii[-1]) for layer in self.layers)
        median = halves[len(halves) // 2]
        return tuple(layer for layer in self.layers if self.half_radius(layer) * FRAGILE <= median)

    def accuracy(self, counts: Sequence[int]) -> list[Count]:
        """Counts with their intervals."""
        return [Count(count, self.predictions) for count in counts]

    def sentence(self) -> str:
        """The weakest layer, and those that fall out of line."""
        layer = self.weakest
        k = next((k for k, c in enumerate(layer.attacked) if c <= HALF * self.clean), len(self.radii) - 1)
        counts = {"clean": self.clean, "pgd": layer.attacked[k], "noise": layer.noisy[k], "target": layer.targeted[k]}
        counts["without"] = self.at_target
        share = {name: f"{100 * count / self.predictions:.1f} %" for name, count in counts.items()}
        named = ", ".join(one.site for one in self.fragile)
        fragile = f"; fragile beside the others: {named}." if named else "."
        return (
            f"the weakest of {len(self.layers)} layers is {layer.site}: of {share['clean']} correct, "
            f"PGD of {100 * self.radii[k]:g} % of the activation's size leaves {share['pgd']}, "
            f"random noise of that size {share['noise']}, and a random target is reached for {share['target']}, "
            f"without noise for {share['without']} ({self.images} examples){fragile}"
        )

    def figure(self) -> Figure:
        """Three panels, a curve a layer in each."""
        panels = (("attacked", "PGD"), ("noisy", "random noise"), ("targeted", "random target"))
        with styled():
            figure, axes = canvas(1, 3, width=9.6)
            for panel, (kind, name) in zip(axes, panels, strict=True):
                begin = 100 * (self.at_target if kind == "targeted" else self.clean) / self.predictions
                for index, layer in enumerate(self.layers):
                    values = [100 * count.accuracy for count in self.accuracy(getattr(layer, kind))]
                    panel.plot((0.0, *self.radii), [begin, *values], label=layer.site, **line(index))
                said = "reached (%)" if kind == "targeted" else "accuracy (%)"
                panel.set(xlabel=f"||r|| / ||z|| ({self.norm})", ylabel=said, title=name)
                panel.set_ylim(-2, 102)
                panel.set_xlim(left=0)
            if len(self.layers) > 1:
                legend_below(figure, axes[0])
        return describe(figure, f"{self.title}. {self.sentence()}")


def read_radii(text: str) -> tuple[float, ...]:
    """Radii as a measure's size has them, `0.05,0.1`."""
    try:
        return tuple(float(item) for item in text.split(","))
    except ValueError:
        raise ConfigError(f"radii={text!r} are no numbers; type for example radii=0.05,0.1,0.2") from None


USUAL = ",".join(f"{radius:g}" for radius in RADII)


def _check(*sites: str, radii: str, steps: int, **sizes: object) -> None:
    """Complain before anything is measured."""
    del sites, sizes
    Plan(radii=read_radii(radii), steps=steps)


def _passes(size: Any) -> int:
    """At most: fewer where the network has fewer layers."""
    layers = len(size.words) or size.layers
    return int(size.images * (1 + layers * passes(len(read_radii(size.radii)), size.steps)))


@register("measure", "audit", passes=_passes, check=_check)
def _measure(
    target: Target,
    *sites: str,
    images: int = 100,
    steps: int = 10,
    layers: int = 8,
    radii: str = USUAL,
    norm: Literal["l2", "linf"] = "l2",
    per: Literal["example", "token"] = "example",
) -> LatentAudit:
    """Accuracy over the size of noise at each layer, beside random noise and targets; `[sites ...]` or some of the blocks."""
    plan = Plan(radii=read_radii(radii), steps=steps, norm=norm, per=per, seed=target.seed)
    model, x, y = target.first(images)
    size = target.conditions.batches.batch_size
    with examining(model, x, y) as network:
        given = [(a, b) for a, b, _ in batches(network, x, y, batch_size=size)]
        return _found(network, given, sites or None, layers, plan, target.store, f"measure {target.bar},", target)


@named
def audit(
    model: nn.Module,
    data: Any,
    *,
    sites: Selection | None = None,
    layers: int | None = None,
    radii: Sequence[float] = RADII,
    steps: int = 10,
    norm: Literal["l2", "linf"] = "l2",
    per: Per = "example",
    criterion: object = None,
    num_examples: int | None = 100,
    batch_size: int = 250,
    seed: int = 0,
    journal: Path | str | None = None,
    progress: bool = False,
) -> LatentAudit:
    """How much noise each layer of any network stands, relative to its activation: by PGD, by chance, and towards a random target.

    Noise is r = u ||z||, ||u|| at most a radius; the radii are gone through in rising order, each attack beginning where the one before
    ended, so that no curve of PGD rises (nor one of targets falls). The cost, `radii (4 steps + 3)` passes a layer and example, is told
    (`logging`, layerwise) before it begins.

    Args:
        model: any network, wrapped or not; it is looked at in evaluation mode.
        data: images as `layerwise.evaluate` takes them, or examples of any kind as it takes them with a criterion.
        sites: which; None takes the outputs of blocks, or of affine layers.
        layers: at most so many of them, evenly.
        radii: ||r|| / ||z||, rising.
        steps: of PGD at each radius, 2.5 radius / steps each.
        norm: `"l2"` or `"linf"`.
        per: what a norm is of: the `"example"`'s activation, or each `"token"`'s where it is (B, L, d).
        criterion: each example's loss, any that methods take; `TokenCrossEntropy` and `NextToken` audit every labelled position.
        num_examples: the first so many images or, of batches, as many as hold them; None is all.
        batch_size: images a batch; the result does not depend on it.
        seed: of the images, the noise and the targets.
        journal: a file that keeps each layer as soon as it is done: the same call goes on there after an interruption.
        progress: show a bar.

    Raises:
        ConfigError: radii that do not rise, unknown norms.
        DataError: no examples, or labels that are no classes of the network's outputs.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> data = torch.rand(20, 1, 4, 4), torch.arange(20) % 2
    >>> found = audit(net, data, radii=[0.1, 0.3], steps=2)
    >>> [layer.site for layer in found.layers]
    ['1', '3']
    """
    of_kind("radii", radii, Iterable, example="a list, such as [0.1, 0.3]")
    plan = Plan(tuple(map(float, radii)), steps, norm, per, as_criterion(criterion or CrossEntropy()), seed)
    store = Store(None if journal is None else Path(journal))
    with _looked_at(model, data, num_examples, batch_size, seed) as (network, given), store.open():
        found = _found(network, given, sites, layers, plan, store, "audit", progress)
        store.finish()
    return found


def _found(
    network: nn.Module,
    given: Examples,
    sites: Selection | None,
    layers: int | None,
    plan: Plan,
    store: Store,
    item: str,
    shown: Target | bool,
) -> LatentAudit:
    before = unmoved(network, given, plan)
    chosen = choose_layers(network, given[0][0], sites, layers)
    board, bar = (shown.board, shown.bar) if isinstance(shown, Target) else (shown, "audit")
    values = [v for x, y in given for v in (*(x.values() if isinstance(x, dict) else [x]), y)]
    circumstances = {
        "plan": repr(plan),
        "weights": digest(v for pair in network.state_dict().items() for v in pair),
        "examples": digest(values),
    }
    with store.under(circumstances):
        every = audit_layers(network, given, chosen, plan, store=store, item=item, board=board, bar=bar)
    count = sum(rows(x) for x, _ in given)
    return LatentAudit(
        *(plan.radii, tuple(every), before.correct, before.predictions, before.loss, count),
        *(plan.steps, plan.norm, plan.per, before.at_target),
    )


@contextmanager
def _looked_at(
    model: nn.Module, data: Any, count: int | None, batch_size: int, seed: int
) -> Iterator[tuple[nn.Module, Examples]]:
    """The network in evaluation mode, exact, frozen, and its examples where it is."""
    if not of_any_kind(data):
        options: dict[str, Any] = {"num_examples": count, "seed": seed, "batch_size": batch_size}
        with evaluating(model, data, **options) as conditions, frozen(conditions.network):
            yield conditions.network, [(x, y) for x, y, _ in conditions.batches]
        return
    network = unwrap(model)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    with exact_arithmetic(device), evaluation_mode(network), frozen(network):
        yield network, list(_until(each_batch(data, batch_size), count, device))


def _until(data: Iterable[Any], count: int | None, device: torch.device) -> Iterator[tuple[Inputs, Tensor]]:
    """Batches until there are so many examples."""
    at_least("num_examples", 1 if count is None else count, 1)
    seen = 0
    for x, y in map(split_batch, data):
        if count is not None and seen >= count:
            break
        seen += rows(x)
        yield move(x, device), y.to(device)
    if not seen:
        raise DataError("there is no batch to audit; give (x, y) pairs")
