"""Attacks around attacks: through modules without a useful gradient, and against networks with randomness."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

from torch import Tensor, nn

from layerwise.attacks.base import EVALUATED, Around, Averaged, InputAttack, bare
from layerwise.core.checks import Count
from layerwise.core.random import Source
from layerwise.core.registry import register
from layerwise.core.threat import ThreatModel
from layerwise.errors import ConfigError, SiteError, did_you_mean


@final
@register("attack", "bpda")
@dataclass(frozen=True)
class BPDA(Around):
    """An attack that sees the identity as the gradient of one module, whose values stay exact.

    Args:
        attack: the inner attack; the paper's figures have BIM inside, 5 steps.
        module: dotted path of a module whose output has the shape of its input: an input filter, a quantiser, a step function.

    Reference: Athalye et al. 2018, section 4.1.
    """

    form: ClassVar[str] = "bpda:MODULE:ATTACK, for example bpda:quantise:bim-5"

    attack: InputAttack
    module: str

    @classmethod
    def read(cls, attack: InputAttack, word: str, *numbers: int) -> Self:
        """MODULE."""
        return cls(attack, word)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """Those of the attack inside, through the module.

        Raises:
            SiteError: the module does not exist, or changes the shape.
        """
        with identity_gradient(bare(model), self.module):
            return self.attack(model, x, y, threat, generator=generator)

    def __str__(self) -> str:
        """Write `bpda:MODULE:ATTACK`."""
        return f"bpda:{self.module}:{self.attack}"


@contextmanager
def identity_gradient(network: nn.Module, name: str) -> Iterator[None]:
    """The module called `name` keeps its values and has the identity as its gradient, for the duration."""
    modules = dict(network.named_modules())
    if not name or name not in modules:
        raise SiteError(f"the network has no module {name!r}; {did_you_mean(name, filter(None, modules))}")

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
        shapes = [tuple(v.shape) for v in (*args[:1], output) if isinstance(v, Tensor)]
        if len(shapes) != 2 or shapes[0] != shapes[1]:
            raise SiteError(f"module {name!r} has no identity gradient: {' -> '.join(map(str, shapes)) or 'no tensor'}")
        x: Tensor = args[0]
        # Exactly the output's value, since x - x is 0, with the gradient of x.
        value: Tensor = output.detach() + (x - x.detach())
        return value

    handle = modules[name].register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@final
@register("attack", "eot")
@dataclass(frozen=True)
class EOT(Around):
    """Expectation over transformations: an attack whose every gradient is the mean over several passes.

    Logits (for decisions inside the attack, and DeepFool's boundaries) are means over as many passes. For networks that draw random
    numbers in evaluation mode; the images are then classified by the network as it is, in one pass.

    Args:
        attack: the inner attack.
        count: how many passes.

    Reference: Athalye et al. 2018, section 4.2.
    """

    form: ClassVar[str] = "eot-16:ATTACK"
    prefixed: ClassVar[bool] = False
    """A number stands there instead."""
    numbers: ClassVar[tuple[str, ...]] = ("count",)

    attack: InputAttack
    count: Count = 16

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if isinstance(self.attack, EOT):
            raise ConfigError(f"{self.attack} averages already; give eot the attack inside it")

    @classmethod
    def read(cls, attack: InputAttack, word: str, *numbers: int) -> Self:
        """The number of passes."""
        return cls(attack, *numbers)

    def passes(self, classes: int = 10) -> int:
        """So many times those of the attack inside; its images are evaluated once."""
        return self.count * (self.attack.passes(classes) - EVALUATED) + EVALUATED

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """Those of the attack inside, on the averaged network."""
        return self.attack(Averaged(bare(model), self.count), x, y, threat, generator=generator)

    def __str__(self) -> str:
        """Write `eot-COUNT:ATTACK`."""
        return f"eot-{self.count}:{self.attack}"
