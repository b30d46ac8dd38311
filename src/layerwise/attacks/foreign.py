"""Attacks of anybody's: any callable `(model, x, y) -> x_adv`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from layerwise.attacks.base import InputAttack
from layerwise.core.modes import frozen
from layerwise.core.random import Source
from layerwise.core.threat import ThreatModel
from layerwise.errors import ConfigError

Perturb: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Gives adversarial images (B, C, H, W) of a network, images and labels."""

FORM = (
    "an attack is called as attack(model, x, y) and gives images of the shape of x; one of another form goes into a "
    "function, for example lambda model, x, y: theirs(x, y)"
)


@final
@dataclass(frozen=True, eq=False)
class Foreign(InputAttack):
    """An attack that layerwise knows nothing of; its images are checked to lie in the threat model like all others.

    It keeps to the threat model by itself: it is not told. Its code is no part of a record, so that it is made anew after an
    interruption.

    Args:
        function: makes the images.

    >>> def darker(model, x, y):
    ...     return (x - 0.1).clamp(0, 1)
    >>> net, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.ones(3, 1, 2, 2)
    >>> Foreign(darker)(net, x, torch.tensor([0, 1, 0]), ThreatModel("linf", 0.1)).unique()
    tensor([0.9000])
    """

    function: Perturb

    @property
    def name(self) -> str:
        """Where it is from."""
        named: Any = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        return f"{named.__module__}:{named.__qualname__}"

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """What it makes.

        Raises:
            ConfigError: it fails, or gives something else than images.
        """
        del threat, generator
        try:
            with frozen(model), torch.enable_grad():
                found = self.function(model, x.clone(), y.clone())
        except Exception as error:  # whatever somebody's code may raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ConfigError(f"attack {self} failed ({reason}); {FORM}") from error
        if not isinstance(found, Tensor):
            raise ConfigError(f"attack {self} gave {type(found).__name__}; {FORM}")
        return found.detach().to(x)

    def __str__(self) -> str:
        """Its name."""
        return self.name
