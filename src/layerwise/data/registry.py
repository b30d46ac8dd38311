"""The data sets by name or import path."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from layerwise.core import registry
from layerwise.core.registry import Entry
from layerwise.data.files import data_root
from layerwise.data.splits import ImageData
from layerwise.errors import ConfigError, did_you_mean

_COMMON = {"root", "validation", "download", "seed"}

VALIDATION = 0.1
"""Held out of a data set that does not say how much."""


def names() -> tuple[str, ...]:
    """The names that `load` knows.

    >>> "digits" in names()
    True
    """
    return tuple(registry.names("data"))


def describe(name: str) -> str:
    """What a data set is, where its files are looked for and which options it has, in one paragraph.

    >>> print(describe("digits").splitlines()[0])
    Handwritten digits (UCI Optdigits, test part): 1,797 real images, 8 x 8, grey, embedded in scikit-learn.
    """
    entry = registry.find("data", name)
    options = ", ".join(f"{option}={each.default!r}" for option, each in _options(entry).items())
    held_out = 100 * entry.facts.get("validation", VALIDATION)
    lines = [inspect.getdoc(entry.thing) or "", "", f"Files: {entry.facts.get('where', 'its own')}."]
    lines.append(f"Held out for validation by default: {held_out:g} % of the training images.")
    return "\n".join(lines + ([f"Options: {options}."] if options else []))


def load(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    validation: float | None = None,
    download: bool = False,
    seed: int = 0,
    trust: bool = False,
    **options: object,
) -> ImageData:
    """A data set by name.

    Args:
        name: one of `names()`, or the import path of a function of your own that gives an `ImageData`, `package.module:function`; it
            is given those of `root` (Path), `validation`, `download` and `seed` that its signature has, and the options.
        root: the folder of the data; else LAYERWISE_DATA, else ~/.cache/layerwise.
        validation: held out of the training set, stratified by class, never from the test set: below 1 a fraction, from 1 on a
            number of images, 0 for none; None for what `describe(name)` says.
        download: fetch what is missing; nothing is fetched otherwise.
        seed: of the validation split (and of generated data).
        trust: import the code that an import path names, which runs it; one that was imported so stays known.
        options: those of the set, see `describe(name)`.

    Raises:
        ConfigError: an unknown name or option, or `validation` out of range.
        DataError: files are missing, cut off or corrupt.

    >>> data = load("digits")
    >>> len(data.train), len(data.validation), len(data.test), data.shape, data.num_classes
    (1131, 126, 540, (1, 8, 8), 10)
    """
    entry = registry.find("data", name, trust=trust)
    known = _options(entry)
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) if known else "it has none; all have root, validation, download and seed"
            raise ConfigError(f"data set {name!r} has no option {option!r}; {hint}")
    amount = entry.facts.get("validation", VALIDATION) if validation is None else validation
    common = {"root": data_root(root), "validation": amount, "download": download, "seed": seed}
    parameters = inspect.signature(entry.thing).parameters
    data = entry.thing(**{key: value for key, value in common.items() if key in parameters}, **options)
    if not isinstance(data, ImageData):
        raise ConfigError(f"data set {name!r} gave a {type(data).__name__}; it has to give a layerwise.data.ImageData")
    # Other splits than the usual ones are nothing that a recipe can say.
    origin = {"name": name, "root": None if root is None else os.fspath(root), "validation": validation}
    return replace(data, origin=None if seed else {**origin, "download": download, "options": options})


def _options(entry: Entry) -> Mapping[str, Any]:
    parameters = inspect.signature(entry.thing).parameters
    return {key: value for key, value in parameters.items() if key not in _COMMON}
