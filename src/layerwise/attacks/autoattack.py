"""AutoAttack and its members, from the package pyautoattack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from layerwise.attacks.base import EVALUATED, GRADIENT, InputAttack, is_correct
from layerwise.attacks.external import LOGGER, ExternalAttack, Logits, package, seed_of
from layerwise.core.checks import Count
from layerwise.core.random import Source, Stream
from layerwise.core.registry import register
from layerwise.core.threat import ThreatModel
from layerwise.errors import ConfigError


@final
class _Talk:
    """What pyautoattack takes for a logger."""

    def warning(self, message: str) -> None:
        LOGGER.debug(message)


class _Member(ExternalAttack):
    """What the four share: fields that are numbers of steps, restarts and targets."""

    needs: ClassVar[str] = "pyautoattack"


def _options(x: Tensor, threat: ThreatModel, seed: int) -> dict[str, Any]:
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    return {"norm": norm, "eps": threat.eps, "seed": seed, "device": x.device, "verbose": False}


@final
@register("attack", "apgd-ce")
@dataclass(frozen=True)
class APGDCE(_Member):
    """AutoAttack's first member: projected ascent on the cross entropy that sets its own step size.

    Args:
        steps: of each restart.
        restarts: how many.

    Reference: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks".
    """

    steps: Count = 100
    restarts: Count = 1

    def passes(self, classes: int = 10) -> int:
        """A gradient a step."""
        return self.restarts * (GRADIENT * self.steps + EVALUATED)

    def run(self, network: Logits, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, classes: int) -> Tensor:
        attack = package("pyautoattack.autopgd_base").APGDAttack(
            network, n_iter=self.steps, n_restarts=self.restarts, loss="ce", logger=_Talk(), **_options(x, threat, seed)
        )
        found: Tensor = attack.perturb(x, y)
        return found


@final
@register("attack", "apgd-t")
@dataclass(frozen=True)
class APGDT(_Member):
    """AutoAttack's second member: APGD on the targeted difference-of-logits-ratio loss, one likely class after another.

    The loss needs four classes; with fewer its numerator, the difference of the two logits, takes its place.

    Args:
        steps: for each class.
        restarts: for each class.
        targets: how many of the likeliest wrong classes; fewer where there are not so many.

    Reference: see `APGDCE`.
    """

    steps: Count = 100
    restarts: Count = 1
    targets: Count = 9

    def passes(self, classes: int = 10) -> int:
        """A gradient a step and class."""
        return self.restarts * (GRADIENT * self.steps * min(self.targets, classes - 1) + EVALUATED)

    def run(self, network: Logits, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, classes: int) -> Tensor:
        attack = package("pyautoattack.autopgd_base").APGDAttack_targeted(
            network,
            n_iter=self.steps,
            n_restarts=self.restarts,
            n_target_classes=min(self.targets, classes - 1),
            logger=_Talk(),
            **_options(x, threat, seed),
        )
        if classes < 4:

            def difference(z: Tensor, label: Tensor) -> Tensor:
                target: Tensor = attack.y_target
                return (z.gather(1, target[:, None]) - z.gather(1, label[:, None])).squeeze(1)

            attack.dlr_loss_targeted = difference
        found: Tensor = attack.perturb(x, y)
        return found


@final
@register("attack", "fab-t")
@dataclass(frozen=True)
class FABT(_Member):
    """AutoAttack's third member: the fast adaptive boundary attack, which looks for the nearest image of another class.

    Args:
        steps: for each class.
        restarts: for each class.
        targets: how many of the likeliest wrong classes; fewer where there are not so many.

    Reference: Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack".
    """

    steps: Count = 100
    restarts: Count = 1
    targets: Count = 9

    def passes(self, classes: int = 10) -> int:
        """About three passes a step and class."""
        return self.restarts * (3 * self.steps * min(self.targets, classes - 1) + EVALUATED)

    def run(self, network: Logits, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, classes: int) -> Tensor:
        attack = package("pyautoattack.fab_pt").FABAttack_PT(
            network,
            n_iter=self.steps,
            n_restarts=self.restarts,
            n_target_classes=min(self.targets, classes - 1),
            targeted=True,
            **_options(x, threat, seed),
        )
        found: Tensor = attack.perturb(x, y)
        return found


@final
@register("attack", "square")
@dataclass(frozen=True)
class Square(_Member):
    """AutoAttack's fourth member: random search with squares, which asks for logits only and needs no gradient.

    Args:
        queries: passes for each image and restart.
        restarts: how many.

    Reference: Andriushchenko et al. 2020, "Square attack".
    """

    queries: Count = 5000
    restarts: Count = 1

    def passes(self, classes: int = 10) -> int:
        """A pass a query."""
        return self.restarts * self.queries

    def check(self, x: Tensor, threat: ThreatModel) -> None:
        super().check(x, threat)
        if x.ndim != 4 or (threat.norm == "l2" and x.shape[2] < 5):
            least = " of at least 5 x 5 pixels" if threat.norm == "l2" else " (C, H, W)"
            raise ConfigError(
                f"square needs images{least} under {threat}, these are {tuple(x.shape[1:])}; leave it out, and autoattack too"
            )

    def run(self, network: Logits, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, classes: int) -> Tensor:
        attack = package("pyautoattack.square").SquareAttack(
            network,
            n_queries=self.queries,
            n_restarts=self.restarts,
            resc_schedule=False,
            **_options(x, threat, seed),
        )
        found: Tensor = attack.perturb(x, y)
        return found


@final
@register("attack", "autoattack")
@dataclass(frozen=True)
class AutoAttack(InputAttack):
    """The standard ensemble: APGD-CE, APGD-T, FAB-T and Square in this order, each on the images that are still correct.

    With other than the default numbers it is not what papers mean by AutoAttack. For networks that draw random numbers put `eot`
    around it.

    Args:
        steps: of the first three members.
        targets: of APGD-T and FAB-T.
        queries: of Square.

    Reference: see `APGDCE`.
    """

    steps: Count = 100
    targets: Count = 9
    queries: Count = 5000

    @property
    def members(self) -> tuple[ExternalAttack, ...]:
        """The four attacks, in order."""
        steps, targets = self.steps, self.targets
        return APGDCE(steps), APGDT(steps, targets=targets), FABT(steps, targets=targets), Square(self.queries)

    def passes(self, classes: int = 10) -> int:
        """Those of the four."""
        return sum(member.passes(classes) for member in self.members)

    def check(self, x: Tensor, threat: ThreatModel) -> None:
        for member in self.members:
            member.check(x, threat)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """Each member on what is still correct; they share a seed, as in the package.

        Raises:
            ConfigError: the package is not there, or does not take this shape.
        """
        self.check(x, threat)
        source, found = Stream(seed_of(generator)), x.clone()
        # Not the package's own loop: it switches the tracing of debuggers and coverage off, and fails on fewer than four classes.
        for member in self.members:
            with torch.no_grad():
                rows = is_correct(model(found), y).nonzero().flatten()
            if not len(rows):
                break
            found[rows] = member(model, x[rows], y[rows], threat, generator=source)
        return found
