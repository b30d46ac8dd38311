"""The attacks by name, and how they are written on the command line."""

from __future__ import annotations

import re
import typing
from dataclasses import fields
from typing import Any

from layerwise.attacks.at import At
from layerwise.attacks.autoattack import APGDCE, APGDT, FABT, AutoAttack, Square
from layerwise.attacks.base import Attack, InputAttack
from layerwise.attacks.carlini_wagner import CW
from layerwise.attacks.gradient import BIM, FGSM, MIFGSM, PGD, Clean, DeepFoolAttack, StepLL
from layerwise.attacks.latent import LatentAttack
from layerwise.attacks.transfer import Transfer
from layerwise.attacks.wrappers import BPDA, EOT
from layerwise.core.checks import parse_radius
from layerwise.errors import ConfigError, did_you_mean

ATTACKS: dict[str, type[Attack]] = {
    cls.name: cls
    for cls in (
        *(Clean, FGSM, BIM, PGD, MIFGSM, StepLL, DeepFoolAttack, CW),
        *(APGDCE, APGDT, FABT, Square, AutoAttack),
        *(BPDA, EOT, At, Transfer, LatentAttack),
    )
}
"""Every attack by the name that `parse_attack` takes."""


def parse_attack(text: str) -> Attack:
    """Read an attack: its name, its numbers, and any other of its fields.

    Wrappers hold the inner attack after a colon: `eot-16:pgd-20`, `bpda:quantise:bim-5` (`quantise` is a module of the network),
    `transfer:runs/a,runs/b:pgd-20` (the folders are run folders; `resolve_sources` loads them), `at:12/255:fgsm` (another radius).

    >>> parse_attack("pgd-50-10")
    PGD(steps=50, restarts=10, alpha=None, random_start=True, stop_when_fooled=True)
    >>> str(parse_attack("bim-20 alpha=0.5/255"))
    'bim-20 alpha=0.5/255'

    Raises:
        ConfigError: unknown name or field, a number too many, a value that cannot be read.
    """
    head, colon, rest = text.strip().partition(":")
    found = re.fullmatch(r"(\S+?)((?:-\d+)*)((?:\s+\w+=\S+)*)", head)
    if found is None or found[1] not in ATTACKS:
        name = found[1] if found else head
        raise ConfigError(f"attack {text!r} is unknown; {did_you_mean(name, ATTACKS)} (`layerwise list attacks`)")
    cls, numbers = ATTACKS[found[1]], [int(n) for n in re.findall(r"\d+", found[2])]
    if cls in FORMS:
        return _wrapper(cls, numbers, rest, text)
    if colon or len(numbers) > len(cls.numbers):
        form = "-".join([cls.name, *map(str.upper, cls.numbers)])
        raise ConfigError(f"attack {text!r} has more than {cls.name} takes; type {form}, for example {cls()}")
    settings: dict[str, Any] = dict(zip(cls.numbers, numbers, strict=False))
    for item in found[3].split():
        key, _, value = item.partition("=")
        settings[key] = _value(cls, key, value, text)
    return cls(**settings)


FORMS: dict[type[Attack], str] = {
    BPDA: "bpda:MODULE:ATTACK, for example bpda:quantise:bim-5",
    EOT: "eot-16:ATTACK",
    At: "at:RADIUS:ATTACK, for example at:12/255:fgsm, or at:NORM,RADIUS:ATTACK, for example at:l2,0.5:pgd-20",
    Transfer: "transfer:RUN:ATTACK, for example transfer:runs/a,runs/b:pgd-20",
}
"""How attacks around attacks are written."""


def _wrapper(cls: type[Attack], numbers: list[int], rest: str, text: str) -> Attack:
    name, _, inner = ("", "", rest) if cls is EOT else rest.partition(":")
    attack = parse_attack(inner) if inner else None
    if not isinstance(attack, InputAttack) or len(numbers) > (cls is EOT):
        raise ConfigError(f"attack {text!r} has to hold an attack on the images; type {FORMS[cls]}")
    if cls is Transfer:
        return Transfer(attack, tuple(filter(None, name.split(","))))
    if cls is At:
        norm, _, radius = name.rpartition(",")
        return At(attack, parse_radius(radius), norm or None)  # type: ignore[arg-type]  # checked there
    return BPDA(attack, name) if cls is BPDA else EOT(attack, *numbers)


def _value(cls: type[Attack], key: str, value: str, text: str) -> Any:
    known = {f.name: typing.get_type_hints(cls)[f.name] for f in fields(cls)}  # type: ignore[arg-type]
    if key not in known:
        raise ConfigError(f"attack {text!r}: {cls.name} has no {key!r}; {did_you_mean(key, known)}")
    kinds = typing.get_args(known[key]) or (known[key],)
    if bool in kinds:
        if value.lower() not in ("true", "false"):
            raise ConfigError(f"attack {text!r}: {key}={value} has to be true or false")
        return value.lower() == "true"
    if str in kinds:
        return value
    if int in kinds:
        if not value.isdecimal():
            raise ConfigError(f"attack {text!r}: {key}={value} has to be a whole number")
        return int(value)
    return parse_radius(value)
