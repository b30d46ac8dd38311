"""How attacks are written: in recipes, on the command line, in records."""

from __future__ import annotations

import re
import typing
from dataclasses import fields
from functools import cache
from typing import Any

from layerwise.attacks.base import Around, Attack, InputAttack
from layerwise.core.checks import Radius
from layerwise.core.registry import find, name_of, names
from layerwise.errors import ConfigError, did_you_mean
from layerwise.reading import read_items

_TEXT = re.compile(r"([^\s:]+?|[\w.]+:[\w-]+?)((?:-\d+)*)((?:\s+\w+=\S+)*)")
"""A name, or `my_module:Name`; its numbers; its other fields."""


def parse_attack(text: str, *, trust: bool = False) -> Attack:
    """Read an attack: its name, its numbers, and any other of its fields.

    Wrappers hold the inner attack after a colon: `eot-16:pgd-20`, `bpda:quantise:bim-5` (`quantise` is a module of the network),
    `transfer:runs/a,runs/b:pgd-20` (the folders are run folders; `resolve_sources` loads them), `at:12/255:fgsm` (another radius).

    Args:
        text: how it is written.
        trust: whether the user wrote it, so that it may name one of the user's own, `my_module:Attack-20 alpha=2/255`.

    >>> parse_attack("pgd-50-10")
    PGDAttack(steps=50, restarts=10, alpha=None, random_start=True, stop_when_fooled=True)
    >>> str(parse_attack("bim-20 alpha=0.5/255"))
    'bim-20 alpha=0.5/255'

    Raises:
        ConfigError: unknown name or field, a number too many, a value that cannot be read.
    """
    head, colon, rest = text.strip().partition(":")
    found = _TEXT.fullmatch(head)
    if colon and (found is None or found[1] not in names("attack")):
        found, colon = _TEXT.fullmatch(text.strip()), ""
    if found is None or not (":" in found[1] or found[1] in names("attack")):
        name = found[1] if found else head
        # `pgd50` is `pgd-50` without its dash.
        parted = re.fullmatch(r"([a-z]+)(\d+)", name.lower())
        meant = [f"{parted[1]}-{parted[2]}"] if parted and parted[1] in names("attack") else []
        raise ConfigError(
            f"attack {text!r} is unknown; {did_you_mean(name, [*names('attack'), *meant])} (`layerwise list attacks`)"
        )
    cls: type[Attack] = find("attack", found[1], trust=trust).thing
    numbers = [int(n) for n in re.findall(r"\d+", found[2])]
    if issubclass(cls, Around):
        return _around(cls, numbers, rest, text, trust)
    if colon or len(numbers) > len(cls.numbers):
        name = name_of("attack", cls)
        form = "-".join([name, *map(str.upper, cls.numbers)])
        raise ConfigError(f"attack {text!r} has more than {name} takes; type {form}, for example {cls()}")
    settings = read_items(found[3].split(), _kinds(cls), where=f"attack {text!r}: ", owner=name_of("attack", cls))
    return cls(**dict(zip(cls.numbers, numbers, strict=False)) | settings)


@cache
def _kinds(cls: type[Attack]) -> dict[str, Any]:
    """The types of an attack's fields; every number may be a fraction."""
    hints = typing.get_type_hints(cls)
    return {f.name: Radius if hints[f.name] is float else hints[f.name] for f in fields(cls)}  # type: ignore[arg-type]


def _around(cls: type[Around], numbers: list[int], rest: str, text: str, trust: bool) -> Attack:
    word, _, inner = rest.partition(":") if cls.prefixed else ("", "", rest)
    attack = parse_attack(inner, trust=trust) if inner else None
    if not isinstance(attack, InputAttack) or len(numbers) > len(cls.numbers):
        raise ConfigError(f"attack {text!r} has to hold an attack on the images; type {cls.form}")
    return cls.read(attack, word, *numbers)
