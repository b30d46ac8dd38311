"""An attack in a threat model of its own, for tables with several radii."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, final

from torch import Tensor, nn

from layerwise.attacks.base import Batch, InputAttack
from layerwise.attacks.threat import ThreatModel
from layerwise.core.checks import Radius, format_radius
from layerwise.core.random import Source
from layerwise.errors import ConfigError


@final
@dataclass(frozen=True)
class At(InputAttack):
    """The attack inside with another radius, or another norm, than the evaluation's; it does not count for the worst case there.

    Args:
        attack: the inner attack.
        eps: its radius, pixels in [0, 1].
        norm: its norm; None is the evaluation's.
    """

    name: ClassVar[str] = "at"

    attack: InputAttack
    eps: Radius
    norm: Literal["linf", "l2"] | None = None

    def __post_init__(self) -> None:
        """Check radius and norm."""
        ThreatModel(self.norm or "l2", self.eps)
        if isinstance(self.attack, At):
            raise ConfigError(f"{self.attack} has a radius already; give at the attack inside it")

    @property
    def in_threat_model(self) -> bool:
        """See `Attack.in_threat_model`: it is in its own."""
        return False

    def threat(self, around: ThreatModel) -> ThreatModel:
        """The attack's own threat model, where the evaluation's is `around`."""
        return ThreatModel(self.norm or around.norm, self.eps)

    def check(self, x: Tensor, threat: ThreatModel) -> None:
        """See `Attack.check`."""
        self.attack.check(x, self.threat(threat))

    def resolved(self, threat: ThreatModel) -> Self:
        """See `Attack.resolved`."""
        own = self.threat(threat)
        return replace(self, attack=self.attack.resolved(own), norm=own.norm)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """See `InputAttack.__call__`."""
        return self.attack(model, x, y, self.threat(threat), generator=generator)

    def outcomes(self, model: nn.Module, batches: Iterable[Batch], threat: ThreatModel) -> Iterator[Tensor]:
        """See `Attack.outcomes`; the images are checked against the attack's own threat model."""
        return self.attack.outcomes(model, batches, self.threat(threat))

    def __str__(self) -> str:
        """Write `at:RADIUS:ATTACK` or `at:NORM,RADIUS:ATTACK`."""
        norm = "" if self.norm is None else f"{self.norm},"
        return f"at:{norm}{format_radius(self.eps)}:{self.attack}"
