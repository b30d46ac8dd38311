"""Checks of the networks' options: each returns its value or raises the sentence that says what to type."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral

from layerwise.errors import ConfigError


def integer(name: str, value: object, *, at_least: int = 1) -> int:
    """A whole number not below `at_least`.

    >>> integer("width", 16)
    16
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < at_least:
        raise ConfigError(f"{name} is {value!r}; give a whole number of at least {at_least}.")
    return int(value)


def sizes(shape: object) -> tuple[int, ...]:
    """The shape of one input.

    >>> sizes([3, 32, 32])
    (3, 32, 32)
    """
    if not isinstance(shape, Iterable) or not (found := tuple(shape)):
        raise ConfigError(f"shape is {shape!r}; give (channels, height, width), or (dimensions,) for points.")
    return tuple(integer("an entry of shape", side) for side in found)


def fraction(name: str, value: float) -> float:
    """A probability in [0, 1).

    >>> fraction("dropout", 0.3)
    0.3
    """
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ConfigError(f"{name} is {value!r}; give a number from 0 to below 1.")
    return value


def images(
    network: str, shape: tuple[int, ...], *, at_least: int = 1, at_most: int | None = None, hint: str = ""
) -> tuple[int, int, int]:
    """Channels, height and width of images whose sides a network can take.

    >>> images("lenet", (1, 28, 28), at_least=16)
    (1, 28, 28)
    """
    if len(shape) == 3 and min(shape[1:]) >= at_least and (at_most is None or max(shape[1:]) <= at_most):
        return shape[0], shape[1], shape[2]
    sides = f"sides of at least {at_least}" if at_most is None else f"sides from {at_least} to {at_most}"
    raise ConfigError(f"{network} takes images of shape (channels, height, width) with {sides}, not {shape}{hint}.")
