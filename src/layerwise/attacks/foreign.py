"""Attacks of anybody's: any callable `(model, x, y) -> x_adv`, and the objects of torchattacks, foolbox and ART."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from layerwise.attacks.base import InputAttack, bare
from layerwise.attacks.external import package
from layerwise.core.layout import gradients_by_rows
from layerwise.core.modes import frozen
from layerwise.core.random import Source
from layerwise.core.sites import unwrap
from layerwise.core.threat import ThreatModel
from layerwise.errors import ConfigError

Perturb: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Gives adversarial images (B, C, H, W) of a network, images and labels."""

FORM = (
    "an attack is called as attack(model, x, y) and gives images of the shape of x (objects of torchattacks, foolbox and ART as they "
    "are); one of another form goes into a function, for example lambda model, x, y: theirs(x, y)"
)


def library_of(function: object) -> str:
    """Which package an object's class is of, its bases included: a subclass of one's own is called like them.

    >>> library_of(len)
    'builtins'
    """
    packages = [cls.__module__.partition(".")[0] for cls in type(function).__mro__]
    return next((name for name in packages if name in CALLS), packages[0])


def _torchattacks(attack: Any, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Any:
    """Made for a network, with a radius of its own."""
    del threat
    own = getattr(attack, "model", None)
    if isinstance(own, nn.Module) and unwrap(own) is not bare(model):
        raise ConfigError("it was made for another network; make it of the one that is evaluated")
    return attack(x, y)


def _foolbox(attack: Any, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Any:
    """Told the network and the radius; gives raw images, those within the radius, and which fool the network."""
    theirs = package("foolbox").PyTorchModel(model, bounds=(0, 1), device=x.device)
    _, clipped, _ = attack(theirs, x, y, epsilons=threat.eps)
    return clipped


def _art(attack: Any, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Any:
    """Made for a classifier of ART around the network, with a radius of its own; takes and gives arrays."""
    del model, threat
    return torch.from_numpy(attack.generate(x=x.cpu().numpy(), y=y.cpu().numpy()))


CALLS: dict[str, Callable[[Any, nn.Module, Tensor, Tensor, ThreatModel], Any]] = {
    "torchattacks": _torchattacks,
    "foolbox": _foolbox,
    "art": _art,
}
"""How the objects of other packages are called."""


def is_attack(value: object) -> bool:
    """Whether it can be called as an attack."""
    return not isinstance(value, type) and (callable(value) or library_of(value) in CALLS)


@final
@dataclass(frozen=True, eq=False)
class Foreign(InputAttack):
    """An attack that layerwise knows nothing of; its images are checked to lie in the threat model like all others.

    It keeps to the threat model by itself: it is not told. Its code is no part of a record, so that it is made anew after an
    interruption.

    Args:
        function: makes the images; an object of torchattacks or ART is of the network that is evaluated, and has its radius; one of
            foolbox is told both.

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
        del generator
        theirs = CALLS.get(library_of(self.function))
        try:
            with frozen(model), gradients_by_rows(model), torch.enable_grad():
                copies = x.clone(), y.clone()
                found = (
                    self.function(model, *copies) if theirs is None else theirs(self.function, model, *copies, threat)
                )
        except Exception as error:  # whatever somebody's code may raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ConfigError(f"attack {self} failed ({reason}); {FORM}") from error
        if not isinstance(found, Tensor):
            raise ConfigError(f"attack {self} gave {type(found).__name__}; {FORM}")
        return found.detach().to(x)

    def __str__(self) -> str:
        """Its name."""
        return self.name
