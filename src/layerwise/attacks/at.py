"""An attack in a threat model of its own, for tables with several radii."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, final

from torch import Tensor, nn

from layerwise.attacks.base import Around, Batch, InputAttack
from layerwise.core.checks import Radius, format_radius, parse_radius
from layerwise.core.random import Source
from layerwise.core.registry import register
from layerwise.core.threat import ThreatModel
from layerwise.errors import ConfigError


@final
@register("attack", "at")
@dataclass(frozen=True)
class At(Around):
    """The attack inside with another radius, or another norm, than the evaluation's; it does not count for the worst case there.

    Args:
        attack: the inner attack.
        eps: its radius, pixels in [0, 1].
        norm: its norm; None is the evaluation's.
    """

    form: ClassVar[str] = (
        "at:RADIUS:ATTACK, for example at:12/255:fgsm, or at:NORM,RADIUS:ATTACK, for example at:l2,0.5:pgd-20"
    )

    attack: InputAttack
    eps: Radius
    norm: Literal["linf", "l2"] | None = None

    def __post_init__(self) -> None:
        """Check radius and norm."""
        ThreatModel(self.norm or "l2", self.eps)
        if isinstance(self.attack, At):
            raise ConfigError(f"{self.attack} has a radius already; give at the attack inside it")

    @classmethod
    def read(cls, attack: InputAttack, word: str, *numbers: int) -> Self:
        """RADIUS, or NORM,RADIUS."""
        norm, _, radius = word.rpartition(",")
        return cls(attack, parse_radius(radius), norm or None)  # type: ignore[arg-type]  # checked there

    @property
    def in_threat_model(self) -> bool:
        """Never: it is in its own."""
        return False

    def threat(self, around: ThreatModel) -> ThreatModel:
        """The attack's own threat model, where the evaluation's is `around`."""
        return ThreatModel(self.norm or around.norm, self.eps)

    def check(self, x: Tensor, threat: ThreatModel) -> None:
        """In the own threat model."""
        self.attack.check(x, self.threat(threat))

    def resolved(self, threat: ThreatModel) -> Self:
        """In the own threat model."""
        own = self.threat(threat)
        return replace(self, attack=self.attack.resolved(own), norm=own.norm)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """Images of the attack inside in the own threat model."""
        return self.attack(model, x, y, self.threat(threat), generator=generator)

    def outcomes(self, model: nn.Module, batches: Iterable[Batch], threat: ThreatModel) -> Iterator[Tensor]:
        """Those of the attack inside, whose images are checked against the own threat model."""
        return self.attack.outcomes(model, batches, self.threat(threat))

    def __str__(self) -> str:
        """Write `at:RADIUS:ATTACK` or `at:NORM,RADIUS:ATTACK`."""
        norm = "" if self.norm is None else f"{self.norm},"
        return f"at:{norm}{format_radius(self.eps)}:{self.attack}"
