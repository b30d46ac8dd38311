"""Ranges of settings: what `layerwise tune` searches, as recipes and the command line write it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, final

from layerwise.core.checks import parse_radius
from layerwise.errors import ConfigError
from layerwise.trees import Tree, at, parse_yaml

USAGE = "type {low: 0.01, high: 0.3, log: true} or a list of values, [0.01, 0.05, 0.1]"
TYPED = "type KEY=0.01:0.3, KEY=0.01:0.3:log or KEY=0.01,0.05,0.1"


@final
@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`; whole ones if both are.

    Args:
        low: the smallest.
        high: the largest.
        log: equal factors are equally likely, not equal differences.
    """

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def plain(self) -> Any:
        """As a recipe writes it."""
        return {"low": self.low, "high": self.high, "log": self.log}

    def __contains__(self, value: object) -> bool:
        """Whether a setting's value lies in it."""
        number = isinstance(value, int if self.whole else int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high  # type: ignore[operator]

    @property
    def first(self) -> float:
        """A value of it."""
        return self.low

    @property
    def size(self) -> float:
        """How many values it has."""
        return self.high - self.low + 1 if self.whole else math.inf


@final
@dataclass(frozen=True)
class Choice:
    """A list of values of any kind.

    Args:
        values: as a recipe would write them.
    """

    values: tuple[Any, ...]

    def plain(self) -> Any:
        """As a recipe writes it."""
        return list(self.values)

    def __contains__(self, value: object) -> bool:
        """Whether a setting's value is one of them."""
        return value in self.values

    @property
    def first(self) -> Any:
        """A value of it."""
        return self.values[0]

    @property
    def size(self) -> float:
        """How many values it has."""
        return sum(value not in self.values[:i] for i, value in enumerate(self.values))


Range: TypeAlias = Interval | Choice


def overlap(one: str, other: str, tree: Tree) -> bool:
    """Whether two dotted settings are the same, or one holds the other and more than the choice of a class.

    >>> tree = {"method": {"name": "SLAT", "eta": {"conv1": 0.1}}}
    >>> overlap("method.eta", "method.eta.conv1", tree), overlap("method", "method.eta", tree)
    (True, False)
    """
    outer, inner = sorted((one, other), key=len)
    return inner == outer or (inner.startswith(f"{outer}.") and at(tree, f"{outer}.name") is None)


def read_ranges(tree: Any, *, where: str) -> dict[str, Range]:
    """The ranges of a recipe's `tune:` section, {dotted setting: range}.

    >>> read_ranges({"method.eta": {"low": "2/255", "high": 0.1}, "training.epochs": [10, 20]}, where="")["training.epochs"]
    Choice(values=(10, 20))

    Args:
        tree: from YAML; None is empty.
        where: the file, for messages.

    Raises:
        ConfigError: something that is no range.
    """
    if not isinstance(tree, Mapping | None):
        raise ConfigError(f"{where}tune does not fit; give it settings, method.eta: ..., and {USAGE}")
    return {str(key): _range(f"{where}tune: {key}", value) for key, value in (tree or {}).items()}


def _range(where: str, value: Any) -> Range:
    if isinstance(value, list) and value:
        return Choice(tuple(value))
    if not isinstance(value, Mapping) or not {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
        raise ConfigError(f"{where}={value!r:.80} is no range; {USAGE}")
    low, high, log = _number(where, value["low"]), _number(where, value["high"]), value.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{where}: log={log} does not fit; type true or false")
    if not low < high < float("inf") or (log and low <= 0):
        above = "a low end above 0 and below the high one" if log else "a low end below the high one"
        raise ConfigError(f"{where}: from {low:g} to {high:g} is no range; type {above}")
    return Interval(low, high, log)


def _number(where: str, value: Any) -> float:
    """A number, or a fraction as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ConfigError(f"{where}: {value!r:.40} is no number; {USAGE}")
    if isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip())):
        return int(value)
    try:
        return parse_radius(value)
    except ConfigError:
        raise ConfigError(f"{where}: {value!r:.40} is no number; {USAGE}") from None


def parse_range(text: str) -> tuple[str, Range]:
    """A range as the command line gives it.

    >>> parse_range("method.eta=0.01:0.3:log")
    ('method.eta', Interval(low=0.01, high=0.3, log=True))
    >>> parse_range("method=SLAT,LAT")
    ('method', Choice(values=('SLAT', 'LAT')))

    Raises:
        ConfigError: it is none.
    """
    key, equals, value = text.partition("=")
    key = key.removeprefix("--")
    if not equals or not key or not value:
        raise ConfigError(f"--range {text} is no range; {TYPED}")
    where = f"--range {key}"
    if ":" in value and not re.search(r"[{\[]", value):
        low, high, *rest = value.split(":")
        if rest not in ([], ["log"]):
            raise ConfigError(f"{where}={value} is no range; {TYPED}")
        return key, _range(where, {"low": low, "high": high, "log": bool(rest)})
    return key, _range(where, parse_yaml(value if value.startswith("[") else f"[{value}]", where))
