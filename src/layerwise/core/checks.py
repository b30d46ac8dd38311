"""What a number may be: types of fields that say it, such as `Count` and `Share`, and the radius, also written 8/255."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache, partial
from inspect import isabstract
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from layerwise.core.arguments import Named
from layerwise.errors import ConfigError

if TYPE_CHECKING:
    Radius = float
else:

    class Radius(float):
        """A radius or step in pixel units, pixels in [0, 1]; on the command line and in YAML also written `8/255`."""

        spoken = "a number or a fraction such as 8/255"

        @staticmethod
        def written(value: float) -> str:
            return format_radius(value)

        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
            from pydantic_core import core_schema

            number = core_schema.float_schema(strict=True, allow_inf_nan=False)
            text = core_schema.str_schema(pattern=r"^[-+.\de]+(/[-+.\de]+)?$")
            return core_schema.no_info_before_validator_function(
                _number, number, json_schema_input_schema=core_schema.union_schema([number, text])
            )


def _number(value: Any) -> Any:
    try:
        return parse_radius(value) if isinstance(value, str) else value
    except ConfigError:
        raise ValueError("radius") from None


def parse_radius(text: str | float) -> float:
    """Read a radius.

    >>> parse_radius("8/255") == 8 / 255
    True

    Raises:
        ConfigError: neither a number nor a fraction.
    """
    try:
        numerator, _, denominator = str(text).partition("/")
        return float(text) if not denominator else float(numerator) / float(denominator)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"{text!r} is not a radius; type a number or a fraction such as 8/255") from None


def format_radius(value: float) -> str:
    """Write a radius the way people read it: quarters of 1/255 as a fraction, unless a short decimal is exact.

    >>> format_radius(8 / 255), format_radius(0.1)
    ('8/255', '0.1')
    """
    decimal = f"{value:g}"
    if float(decimal) == value or not 0 < value <= 32 / 255:
        return decimal
    levels = round(value * 255 * 4) / 4
    return f"{levels:g}/255" if levels and abs(levels / 255 - value) < 1e-9 else decimal


def check_radius(name: str, value: float | None) -> None:
    """Complain about a radius that cannot be meant; None is the threat model's.

    Raises:
        ConfigError: text, negative, not finite, or above 1, which is the unit of 0 to 255 pixels.
    """
    if value is None:
        return
    _no_text(name, value)
    if not value >= 0 or value == float("inf"):
        raise ConfigError(f"{name}={value} is not a radius; type a number that is not negative, such as 8/255")
    if value > 1:
        raise ConfigError(
            f"{name}={value:g} is in units of 0 to 255 pixels, ours are 0 to 1; type {name}={value:g}/255"
        )


def of_kind(name: str, value: object, kind: Any, *, example: str) -> None:
    """Complain about an object of another kind, or about a class where an object is meant.

    Args:
        name: of the argument.
        value: what was given.
        kind: a class, several, or the name of an attribute that the object has.
        example: what to give.

    Raises:
        ConfigError: what it is, and what to give.
    """
    fits = hasattr(value, kind) if isinstance(kind, str) else isinstance(value, kind)
    if fits and not isinstance(value, type):
        return
    given = f"the class {value.__name__}" if isinstance(value, type) else " ".join(f"{value!r:.80}".split())
    raise ConfigError(f"{name} is {given}; give {example}")


def at_least(name: str, value: float, smallest: float) -> None:
    """Complain about a number that is too small (or not a number)."""
    _no_text(name, value)
    if not value >= smallest:
        raise ConfigError(f"{name}={value!r} is too small; type a number of at least {smallest}")


def whole(name: str, value: float, smallest: int) -> None:
    """Complain about a number that is not whole, or too small."""
    _no_text(name, value, example="5")
    at_least(name, value, smallest)
    if isinstance(value, float):
        raise ConfigError(f"{name}={value!r} is not a whole number; type {name}={max(round(value), smallest)}")


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Complain about a choice that does not exist."""
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is unknown; type one of {', '.join(map(repr, allowed))}")


def check_share(name: str, value: float) -> None:
    """Complain about a weight outside [0, 1]."""
    _no_text(name, value)
    if not 0 <= value <= 1:
        raise ConfigError(f"{name}={value} is not a share; type a number from 0 to 1")


def _no_text(name: str, value: object, example: str = "8/255") -> None:
    if value is None:
        raise ConfigError(f"{name}=None is not a number; leave it out for the default")
    if isinstance(value, str):
        raise ConfigError(
            f"{name}={value!r} is not a number; type for example {name}={example}, without quotation marks"
        )


def _an_object(name: str, value: object, kinds: tuple[type, ...]) -> None:
    """Complain about anything else where an object of ours is meant."""
    kind = kinds[0]
    of_kind(
        name, value, kinds, example=f"an object, such as layerwise.{'PGD' if isabstract(kind) else kind.__name__}()"
    )


Check: TypeAlias = Callable[[str, Any], None]
"""Complains about a value, given its name."""

Count: TypeAlias = Annotated[int, partial(whole, smallest=1)]
Whole: TypeAlias = Annotated[int, partial(whole, smallest=0)]
NonNegative: TypeAlias = Annotated[float, partial(at_least, smallest=0)]
Positive: TypeAlias = Annotated[float, partial(at_least, smallest=1e-9)]
Share: TypeAlias = Annotated[float, check_share]
Length: TypeAlias = Annotated[Radius, partial(at_least, smallest=0)]
"""Types of fields that `check_fields` holds to their ranges: from 1, from 0, from 0, above 0, from 0 to 1, and in any norm."""


def check_fields(thing: Any) -> None:
    """Complain about a field of a dataclass whose value its type does not allow: a range, a radius, or one of a `Literal`.

    Raises:
        ConfigError: naming the field, and what to type.
    """
    for name, optional, check in _checks(thing.__class__):
        value = getattr(thing, name)
        # A radius in l2 adds up over the pixels, and may be larger than a single one can be.
        if (value is None and optional) or (check is check_radius and getattr(thing, "norm", None) == "l2"):
            continue
        for key, each in value.items() if isinstance(value, Mapping) else [(name, value)]:
            check(key, each)


@cache
def _checks(kind: Any) -> list[tuple[str, bool, Check]]:
    """Each check of a dataclass's fields: the field, whether it may be None, and what complains."""
    try:
        hints = get_type_hints(kind, include_extras=True)
    except NameError:  # a class inside a function, of types that only the function knows
        return []
    found: list[tuple[str, bool, Check]] = []
    for f in fields(kind):
        hint = hints[f.name]
        parts = (hint,) if get_origin(hint) in (Annotated, Literal) else (hint, *get_args(hint))
        parts = tuple(part for part in parts if not isinstance(part, list))  # the arguments of a Callable
        ranges = [check for part in parts if get_origin(part) is Annotated for check in part.__metadata__]
        choices = [v for part in parts for v in (get_args(part) if get_origin(part) is Literal else ALSO.get(part, ()))]
        if any(get_origin(part) is Literal for part in parts):
            ranges.append(partial(one_of, allowed=tuple(choices)))
        if Radius in parts:
            ranges.append(check_radius)
        kinds = tuple(p for p in parts if isinstance(p, type) and p is not NoneType)
        if kinds and all(issubclass(kind, Named) for kind in kinds) and get_origin(hint) in (None, Union, UnionType):
            ranges.append(partial(_an_object, kinds=kinds))
        found += [(f.name, NoneType in parts, check) for check in ranges]
    return found


ALSO: dict[Any, tuple[object, ...]] = {bool: (True, False), NoneType: (None,)}
"""What stands for a type beside a `Literal`."""
