"""Networks by name or import path."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from layerwise.core import registry
from layerwise.core.checks import of_kind
from layerwise.core.registry import Entry
from layerwise.errors import ConfigError
from layerwise.models.checks import integer, sizes
from layerwise.models.libraries import LIBRARIES, from_library
from layerwise.models.normalize import Normalize, Normalized, Statistics, per_channel

Builder = Callable[..., nn.Module]
_B = TypeVar("_B", bound=Builder)

_WRN = re.compile(r"wrn-(\d+)-(\d+)")


def register(name: str, **fixed: Any) -> Callable[[_B], _B]:
    """A decorator that makes a function or class available to `build` under a name.

    `build` passes it, by keyword, those of `num_classes` (int), `shape` (tuple of int) and `normalize` (the layer to put
    first) that its signature has, then the user's options. Without `normalize` in the signature, the network is wrapped in
    `Normalized` when statistics are given. The first line of the docstring is what `describe` tells.

    Args:
        name: the name, without `.` and `:`, which mark import paths.
        fixed: options that this name settles, so that one function can serve several names.

    Returns:
        The decorator; it returns its argument unchanged.

    Raises:
        ConfigError: the name looks like an import path or belongs to another network.

    A network of your own::

        @register("linear")
        def linear(*, num_classes, shape):
            'One linear layer.'
            return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), num_classes))

        build("linear", shape=(1, 8, 8))
    """
    if _WRN.fullmatch(name):
        raise ConfigError(f"the network name {name!r} is taken; register yours under another")
    return registry.register("model", name, **fixed)


def names() -> list[str]:
    """The names that `build` knows, sorted; `wrn-DEPTH-WIDTH` stands for `wide_resnet` and is not listed.

    >>> "preact_resnet18" in names()
    True
    """
    return registry.names("model")


def describe(name: str) -> str:
    """One line about a network: the first of its docstring, and the options that its name settles.

    Raises:
        ConfigError: the name is unknown.

    >>> describe("toy")
    'The two-layer network of the 2-D toy problem'
    """
    entry = find(name)
    line = entry.summary or "No description."
    return "; ".join([line.rstrip("."), *(f"{key}={value}" for key, value in entry.facts.items())])


def build(
    name: str,
    *,
    num_classes: int = 10,
    shape: Iterable[int] = (3, 32, 32),
    mean: Statistics | None = None,
    std: Statistics | None = None,
    trust: bool = False,
    **options: Any,
) -> nn.Module:
    """A new network, in training mode, that takes pixels in [0, 1] and returns logits.

    Args:
        name: one of `names()`, `wrn-DEPTH-WIDTH`, or the import path of a function or class of your own,
            `package.module:function`, or `timm:NAME` or `torchvision:NAME`. Only names with a `:` are ever imported.
        num_classes: the number of logits; like `shape` it is given to an imported function if its signature has it.
        shape: (channels, height, width) of the images, or (dimensions,) of points.
        mean: each channel's mean, or one for all, of pixels in [0, 1]; None means 0.
        std: each channel's standard deviation, or one for all; None means 1. Without both the first layer is an identity.
        trust: import the code that an import path names, which runs it; one that was imported so stays known.
        options: the network's own, such as `width`.

    Returns:
        The network. Its first submodule is `normalize`; one of your own is wrapped in `Normalized` if statistics are given.

    Raises:
        ConfigError: unknown name or option, an option out of range, a shape that the network cannot take, a path that
            cannot be imported or does not make an `nn.Module`.

    >>> network = build("preact_resnet18", width=8, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
    >>> list(dict(network.named_children()))[:4]
    ['normalize', 'conv1', 'layer1', 'layer2']
    """
    of_kind("a network's name", name, str, example="'digits_cnn'; a network of your own is used as it is")
    entry = find(name, trust=trust)
    size = sizes(shape)
    statistics = _statistics(mean, std, size)
    parameters = _parameters(name, entry.thing)
    offered: dict[str, Any] = {"num_classes": integer("num_classes", num_classes), "shape": size}
    # A network that does not know of us may have an option of that name.
    if ":" not in entry.name or (
        "normalize" in parameters and parameters["normalize"].default is inspect.Parameter.empty
    ):
        offered["normalize"] = nn.Identity() if statistics is None else Normalize(*statistics)
    given = {key: value for key, value in offered.items() if key in parameters} | dict(entry.facts)
    _check_options(name, parameters, given=given, options=options)
    made = entry.thing(**given, **options)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{name!r} made a {type(made).__name__}; it has to return a torch.nn.Module.")
    network = made if "normalize" in given or statistics is None else Normalized(made, *statistics)
    how = Built(name, options, integer("num_classes", num_classes), size, statistics)
    network.__dict__[BUILT] = how
    return network


BUILT = "_layerwise_built"


@dataclass(frozen=True)
class Built:
    """How `build` has made a network, so that a run folder can say it: its arguments."""

    name: str
    options: Mapping[str, Any]
    num_classes: int
    shape: tuple[int, ...]
    statistics: tuple[list[float], list[float]] | None


def built(network: nn.Module) -> Built | None:
    """How `build` has made a network; None if it did not."""
    return network.__dict__.get(BUILT)


def find(name: str, *, trust: bool = False) -> Entry:
    """The entry of a name, of the pattern `wrn-28-10`, or of an import path.

    Args:
        name: as a recipe or the command line gives it; `package.module.function` is `package.module:function`, and
            `timm:NAME` and `torchvision:NAME` are networks of these libraries.
        trust: whether the name came from the user, and so may import (that is, run) a module.

    Raises:
        ConfigError: see `layerwise.core.registry.find`.
    """
    if match := _WRN.fullmatch(name):
        builder = registry.find("model", "wide_resnet").thing
        return Entry("model", name, builder, {"depth": int(match[1]), "width": int(match[2])})
    if "." in name and ":" not in name:
        name = ":".join(name.rsplit(".", 1))
    library, _, inside = name.partition(":")
    if trust and library in LIBRARIES:
        return registry.remember(name, Entry("model", name, from_library(library, inside)))
    return registry.find("model", name, trust=trust)


def _statistics(
    mean: Statistics | None, std: Statistics | None, shape: tuple[int, ...]
) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation, one number a channel, or None if neither is given."""
    if mean is None and std is None:
        return None
    if len(shape) != 3:
        raise ConfigError(f"mean and std need images of shape (channels, height, width), not {shape}; leave them out.")
    return _expanded("mean", 0.0 if mean is None else mean, shape), _expanded("std", 1.0 if std is None else std, shape)


def _expanded(name: str, values: Statistics, shape: tuple[int, ...]) -> list[float]:
    """One number a channel."""
    numbers = per_channel(name, values)
    if len(numbers) not in (1, shape[0]):
        raise ConfigError(f"{name} has {len(numbers)} values, but images of shape {shape} have {shape[0]} channels.")
    return numbers * shape[0] if len(numbers) == 1 else numbers


def _parameters(name: str, builder: Builder) -> Mapping[str, inspect.Parameter]:
    """The parameters of a builder."""
    try:
        return inspect.signature(builder).parameters
    except ValueError as error:
        raise ConfigError(
            f"{name!r} has no signature; name a Python function or class that makes a network."
        ) from error


def _check_options(
    name: str,
    parameters: Mapping[str, inspect.Parameter],
    *,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """Refuse options that the network does not have, and say which are missing."""
    by_keyword = [p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    accepted = [p.name for p in by_keyword if p.name not in given]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    listed = "its options are " + ", ".join(accepted) if accepted else "it has none"
    for option in options:
        if option in given or not (option in accepted or takes_any):
            raise ConfigError(f"the network {name!r} has no option {option!r}; {listed}.")
    missing = [p.name for p in by_keyword if p.default is p.empty and p.name not in given and p.name not in options]
    if missing:
        raise ConfigError(f"the network {name!r} needs the option {missing[0]!r}; {listed}.")
