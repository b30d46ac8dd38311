"""Transfer: adversarial images of other networks, the attack of an adversary who does not have the target (black box)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor, nn

from layerwise.attacks.base import EVALUATED, Around, Attack, InputAttack
from layerwise.attacks.gradient import verdict
from layerwise.core import norms
from layerwise.core.calling import count_classes
from layerwise.core.modes import evaluation_mode
from layerwise.core.random import Source
from layerwise.core.registry import register
from layerwise.core.threat import ThreatModel
from layerwise.errors import ConfigError


@final
@register("attack", "transfer")
@dataclass(frozen=True)
class Transfer(Around):
    """Images made against hold-out networks by another attack, the worst of each image evaluated on the target.

    Of several sources that one counts, for each image, whose image fools the target (else the one of the highest loss there): a
    bound for every choice among them. ANP's and LAD's figure, the lowest of the accuracies that the sources give, is
    `black_box_worst` of an evaluation with one `Transfer` for each source.

    A source is attacked in evaluation mode, on the device and in the precision that it has. An attack with `stop_when_fooled` goes
    on to its last step, since what barely fools the source seldom fools another network.

    Args:
        attack: makes the images.
        sources: networks, or the names of what `resolve_sources` loads (on the command line: run folders).
        names: what the sources are called; by default the names given, or each network's class.

    Reference: Liu et al. 2020 (ANP), "Adversarial robustness" in the evaluation.
    """

    form: ClassVar[str] = "transfer:RUN:ATTACK, for example transfer:runs/a,runs/b:pgd-20"

    attack: InputAttack
    sources: tuple[nn.Module | str, ...]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the fields, and name the sources."""
        if not self.sources:
            raise ConfigError("transfer has no source; type transfer:RUN:ATTACK, for example transfer:runs/a:pgd-20")
        names = self.names or tuple(s if isinstance(s, str) else type(s).__name__ for s in self.sources)
        if len(names) != len(self.sources):
            raise ConfigError(f"transfer has {len(self.sources)} sources and {len(names)} names; name each, or none")
        if bad := [n for n in names if not n or "," in n or ":" in n]:
            raise ConfigError(f"{bad[0]!r} cannot name a source, since commas and colons separate them; rename it")
        if double := [n for n in names if names.count(n) > 1]:
            raise ConfigError(f"two sources are called {double[0]!r}; give each once, with names=(...) of their own")
        object.__setattr__(self, "names", names)

    @classmethod
    def read(cls, attack: InputAttack, word: str, *numbers: int) -> Self:
        """RUN,RUN."""
        return cls(attack, tuple(filter(None, word.split(","))))

    def passes(self, classes: int = 10) -> int:
        """Those of the attack inside on each source, and a look at what the target says."""
        return len(self.sources) * self.attack.passes(classes) + EVALUATED

    def check(self, x: Tensor, threat: ThreatModel) -> None:
        """Also whether the sources are there."""
        super().check(x, threat)
        if missing := [source for source in self.sources if isinstance(source, str)]:
            raise ConfigError(
                f"transfer: source {missing[0]!r} is only a name; give the network, or see resolve_sources"
            )

    def resolved(self, threat: ThreatModel) -> Self:
        """The sources become their names, which is what a record can hold."""
        return replace(self, attack=thorough(self.attack).resolved(threat), sources=self.names)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: Source = None
    ) -> Tensor:
        """The worst of the images made on the sources.

        Raises:
            ConfigError: a source is still a name, takes other images, or knows other classes.
        """
        self.check(x, threat)
        attack, worst = thorough(self.attack), x
        fooled, loss = torch.zeros_like(y, dtype=torch.bool), torch.full(y.shape, -torch.inf, device=x.device)
        networks = [source for source in self.sources if isinstance(source, nn.Module)]
        for source, name in zip(networks, self.names, strict=True):
            with evaluation_mode(source):
                a = _placed(x, source)
                _check_classes(name, source, a, model, x)
                found = attack(source, a, y.to(a.device), threat, generator=generator).to(x)
            fooled_now, loss_now = verdict(model, found, y)
            better = ~fooled & (fooled_now | (loss_now > loss))
            worst = torch.where(norms.rows(better, x), found, worst)
            fooled, loss = fooled | fooled_now, torch.where(better, loss_now.to(loss), loss)
        return worst

    def __str__(self) -> str:
        """Write `transfer:SOURCE,SOURCE:ATTACK`."""
        return f"transfer:{','.join(self.names)}:{self.attack}"


def thorough(attack: InputAttack) -> InputAttack:
    """The same attack, which goes on after the network is fooled; so does one inside it."""
    known = {f.name for f in fields(attack)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {"stop_when_fooled": False} if "stop_when_fooled" in known else {}
    if "attack" in known:
        changes["attack"] = thorough(attack.attack)  # type: ignore[attr-defined]
    changed: InputAttack = replace(attack, **changes)  # type: ignore[type-var]
    return changed


def resolve_sources(attacks: Sequence[Attack], load: Callable[[str], nn.Module]) -> list[Attack]:
    """The same attacks, with networks in place of the names of sources.

    Args:
        attacks: any; `Transfer` may be inside another one.
        load: gives the network that is called so; asked once for each name.
    """
    loaded: dict[str, nn.Module] = {}

    def resolve(attack: Attack) -> Attack:
        if isinstance(attack, Transfer):
            for name in attack.sources:
                if isinstance(name, str) and name not in loaded:
                    loaded[name] = load(name)
            networks = tuple(loaded[s] if isinstance(s, str) else s for s in attack.sources)
            return replace(attack, sources=networks)
        inner = getattr(attack, "attack", None)
        changes: dict[str, Any] = {"attack": resolve(inner)} if isinstance(inner, Attack) else {}
        changed: Attack = replace(attack, **changes) if changes else attack  # type: ignore[type-var]
        return changed

    return [resolve(attack) for attack in attacks]


def _placed(x: Tensor, network: nn.Module) -> Tensor:
    """The images where the network is, in its precision."""
    values = chain(network.parameters(), network.buffers())
    return x.to(next((v for v in values if v.is_floating_point()), x))


def _check_classes(name: str, source: nn.Module, a: Tensor, model: nn.Module, x: Tensor) -> None:
    try:
        found = count_classes(source, a[:2])
    except ConfigError as error:
        raise ConfigError(f"transfer: source {name!r}: {error}") from error
    with torch.no_grad():
        wanted = model(x[:1]).shape[1]
    if found != wanted:
        raise ConfigError(
            f"transfer: source {name!r} has {found} logits, the target {wanted}; it was made for other data"
        )
