"""What is watched while a run trains: collapsing robustness, noise that rounding swallows, and losses that are not finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor, nn

from layerwise.core.sites import Sites
from layerwise.core.tracing import arguments_of, tensors_of
from layerwise.errors import LayerwiseError

SMALLEST_SURVIVAL = 0.9
"""Share of a perturbation's first-order effect that should survive the sum's rounding."""

OVERFITTING = "catastrophic-overfitting"
"""The flag that a run gets when its robust accuracy collapses."""


class DivergedError(LayerwiseError):
    """The loss is no longer a finite number."""


class NotFinite(Exception):
    """The loss of batch `step` of the run is not finite; the loop turns it into a `DivergedError` that says why."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


LEARNT = 0.1
"""So much of the way from guessing to knowing all has a network to go before its robustness means something."""


@final
class OverfitMonitor:
    """Tells at once when robust accuracy collapses: single-step methods can lose all of it within an epoch.

    A collapse is a robust accuracy below `share` of the best so far, at least `drop` under it. It is told once, and again only after
    a recovery. A network that guesses is correct by chance, under any attack: such epochs say nothing.

    Args:
        share: in (0, 1).
        drop: in (0, 1).
        chance: accuracy of guessing, the share of the largest class.

    >>> monitor = OverfitMonitor()
    >>> [bool(monitor.update(epoch, robust)) for epoch, robust in enumerate([0.2, 0.4, 0.38, 0.02, 0.01, 0.35, 0.0])]
    [False, False, False, True, False, False, True]
    """

    def __init__(self, *, share: float = 0.5, drop: float = 0.1, chance: float = 0.0) -> None:
        self.share, self.drop, self.chance = share, drop, chance
        self.best = 0.0
        self.collapsed = False

    def update(self, epoch: int, robust: float, *, clean: float = 1.0) -> str | None:
        """Take the accuracies after an epoch; give a sentence if the robust one has just collapsed."""
        if clean <= self.chance + LEARNT * (1 - self.chance):
            return None
        self.best = max(self.best, robust)
        before, self.collapsed = self.collapsed, robust < self.share * self.best and robust <= self.best - self.drop
        if not self.collapsed or before:
            return None
        return (
            f"catastrophic overfitting: robust accuracy fell to {robust:.1%} in epoch {epoch}, from {self.best:.1%} at best; the single "
            "step no longer finds what PGD finds: use the best weights, a random start, dropout, a smaller step or more steps"
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best": self.best, "collapsed": self.collapsed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.best, self.collapsed = state["best"], state["collapsed"]


@contextmanager
def measured(sites: Iterable[Sites], *, wanted: bool = True) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Passes inside store the size and the surviving share of each perturbation, {site: {"rms", "max", "relative", "survival"}}."""
    sizes: dict[str, dict[str, Tensor]] = {}
    chosen = list(sites) if wanted else []
    for each in chosen:
        each.monitor = sizes
    try:
        yield sizes
    finally:
        for each in chosen:
            each.monitor = None


def lost_noise(sizes: Mapping[str, Mapping[str, float]]) -> str | None:
    """A sentence about the sites where rounding swallows the perturbation.

    >>> lost_noise({"conv1": {"survival": 0.4}, "layer1": {"survival": 1.0}})
    "less than 90 % of the perturbation's effect survives rounding at 'conv1' (40 %): train in 32-true, or scale the noise up"
    """
    lost = {site: s["survival"] for site, s in sizes.items() if s.get("survival", 1.0) < SMALLEST_SURVIVAL}
    if not lost:
        return None
    worst = ", ".join(f"'{site}' ({share:.0%})".replace("%", " %") for site, share in sorted(lost.items())[:4])
    return f"less than 90 % of the perturbation's effect survives rounding at {worst}: train in 32-true, or scale the noise up"


def explain(model: nn.Module, x: Tensor, sites: Iterable[Sites], losses: Iterable[Tensor]) -> str:
    """Make a batch's passes again, watched, and name what was the first to go wrong.

    Args:
        model: the unwrapped network.
        x: the batch's images.
        sites: those of the method.
        losses: makes a pass for each loss that it gives; each is back-propagated here.
    """
    if not _finite(x):
        return "the images hold values that are not finite"
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not _finite(value):
            return f"'{name}' already holds values that are not finite, so the gradient of the step before had them"
    first: list[str] = []
    with _watched(model, {site.module for each in sites for site in each}, first):
        for loss in losses:
            if first:
                return first[0]
            if not _finite(loss):
                return "the loss itself was the first, not a layer of the network: its terms overflow"
            loss.backward()  # type: ignore[no-untyped-call]
    return first[0] if first else "the batch alone does not show why"


@contextmanager
def _watched(model: nn.Module, perturbed: set[str], first: list[str]) -> Iterator[None]:
    """Hooks on either side of our own: what a layer gives, and what it is after the site's perturbation."""
    handles: list[Any] = []

    def watch(name: str, module: nn.Module) -> None:
        layer = f"layer '{name}' ({type(module).__name__})" if name else "the network"
        noisy = f"the perturbation at site '{name}'" if name in perturbed else layer

        def look(values: Mapping[Any, Tensor], what: str) -> None:
            if not first and not all(_finite(v) for v in values.values()):
                first.append(f"{what} was the first to give values that are not finite")

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            look(arguments_of(args, kwargs), noisy.replace("site ''", "the input"))

        def given(module: nn.Module, args: Any, output: Any) -> None:
            look(tensors_of(output), layer)

        def handed_on(module: nn.Module, args: Any, output: Any) -> None:
            look(tensors_of(output), noisy)

        if name in perturbed:
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(given, prepend=True))
        handles.append(module.register_forward_hook(handed_on))

    for name, module in model.named_modules():
        watch(name, module)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())
