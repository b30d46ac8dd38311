"""AutoAttack and its members, from the package pyautoattack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from layerwise.attacks.base import InputAttack, is_right
from layerwise.attacks.external import LOGGER, ExternalAttack, Logits, at_least_one, package, seed_of
from layerwise.attacks.threat import ThreatModel
from layerwise.core.random import Source, Stream
from layerwise.errors import ConfigError


@final
class _Talk:
    """What pyautoattack takes for a logger."""

    def warning(self, message: str) -> None:
        LOGGER.debug(message)


def _options(x: Tensor, threat: ThreatModel, seed: int) -> dict[str, Any]:
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    return {"norm": norm, "eps": threat.eps, "seed": seed, "device": x.device, "verbose": False}


@final
@dataclass(frozen=True)
class APGDCE(ExternalAttack):
    """AutoAttack's first member: projected ascent on the cross entropy that sets its own step size.

    Args:
        steps: of each restart.
        restarts: how many.

    Reference: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks".
    """

    name: ClassVar[str] = "apgd-ce"
    needs: ClassVar[str] = "pyautoattack"

    steps: int = 100
    restarts: int = 1

    def __post_init__(self) -> None:
        """Check the fields."""
        at_least_one(steps=self.steps, restarts=self.restarts)

    def run(self, network: Logits, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, classes: int) -> Tensor:
        """See `ExternalAttack.run`."""
        attack = package("pyautoattack.autopgd_base").APGDAttack(
            network, n_iter=self.steps, n_restarts=self.restarts, loss="ce", logger=_Talk(), **_options(x, threat, seed)
        )
        found: Tensor = attack.perturb(x, y)
        return found


@final
@dataclass(frozen=True)
class APGDT(ExternalAttack):
    """AutoAttack's second member: APGD on the targeted difference-of-logits-ratio loss, one likely class after another.

    The loss needs four classes; with fewer its numerator, the difference of the two logits, takes its place.

    Args:
        steps: for each class.
        restarts: for each class.
        targets: how many of the likeliest wrong classes; fewer where there are not so many.

    Reference: see `APGDCE`.
    """

    name: ClassVar[str] = "apgd-t"
    needs: ClassVar[str] = "pyautoattack"

    steps: int = 100
    restarts: int = 1
    targets: int = 9

    def __post_init__(self) -> None:
        """Check the fields."""
        at_least_one(steps=self.steps, restarts=self.restarts, targets=self.targets)

    def run(self, network: Logits, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, classes: int) -> Tensor:
        """See `ExternalAttack.run`."""
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
@dataclass(frozen=True)
class FABT(ExternalAttack):
    """AutoAttack's third member: the fast adaptive boundary attack, which looks for the nearest image of another class.

    Args:
        steps: for each class.
        restarts: for each class.
        targets: how many of the likeliest wrong classes; fewer where there are not so many.

    Reference: Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack".
    """

    name: ClassVar[str] = "fab-t"
    needs: ClassVar[str] = "pyautoattack"

    steps: int = 100
    restarts: int = 1
    targets: int = 9

    def __post_init__(self) -> None:
        """Check the fields."""
        at_least_one(steps=self.steps, restarts=self.restarts, targets=self.targets)

    def run(self, network: Logits, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, classes: int) -> Tensor:
        """See `ExternalAttack.run`."""
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
@dataclass(frozen=True)
class Square(ExternalAttack):
    """AutoAttack's fourth member: random search with squares, which asks for logits only and needs no gradient.

    Args:
        queries: passes for each image and restart.
        restarts: how many.

    Reference: Andriushchenko et al. 2020, "Square attack".
    """

    name: ClassVar[str] = "square"
    needs: ClassVar[str] = "pyautoattack"

    queries: int = 5000
    restarts: int = 1

    def __post_init__(self) -> None:
        """Check the fields."""
        at_least_one(queries=self.queries, restarts=self.restarts)

    def check(self, x: Tensor, threat: ThreatModel) -> None:
        """See `Attack.check`."""
        super().check(x, threat)
        if x.ndim != 4 or (threat.norm == "l2" and x.shape[2] < 5):
            least = " of at least 5 x 5 pixels" if threat.norm == "l2" else " (C, H, W)"
            raise ConfigError(
                f"square needs images{least} under {threat}, these are {tuple(x.shape[1:])}; leave it out, and autoattack too"
            )

    def run(self, network: Logits, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int, classes: int) -> Tensor:
        """See `ExternalAttack.run`."""
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
@dataclass(frozen=True)
class AutoAttack(InputAttack):
    """The standard ensemble: APGD-CE, APGD-T, FAB-T and Square in this order, each on the images that are still right.

    With other than the default numbers it is not what papers mean by AutoAttack. For networks that draw random numbers put `eot`
    around it.

    Args:
        steps: of the first three members.
        targets: of APGD-T and FAB-T.
        queries: of Square.

    Reference: see `APGDCE`.
    """

    name: ClassVar[str] = "autoattack"

    steps: int = 100
    targets: int = 9
    queries: int = 5000

    def __post_init__(self) -> None:
        """Check the fields."""
        at_least_one(steps=self.steps, targets=self.targets, queries=self.queries)

    @property
    def members(self) -> tuple[ExternalAttack, ...]:
        """The four attacks, in order."""
        steps, targets = self.steps, self.targets
        return APGDCE(steps), APGDT(steps, targets=targets), FABT(steps, targets=targets), Square(self.queries)

    def check(self, x: Tensor, threat: ThreatModel) -> None:
        """See `Attack.check`."""
        for member in self.members:
            member.check(x, threat)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """See `InputAttack.__call__`; the members share a seed, as in the package.

        Raises:
            ConfigError: the package is not there, or does not take this shape.
        """
        self.check(x, threat)
        source, found = Stream(seed_of(generator)), x.clone()
        # Not the package's own loop: it switches the tracing of debuggers and coverage off, and fails on fewer than four classes.
        for member in self.members:
            with torch.no_grad():
                rows = is_right(model(found), y).nonzero().flatten()
            if not len(rows):
                break
            found[rows] = member(model, x[rows], y[rows], threat, generator=source)
        return found
