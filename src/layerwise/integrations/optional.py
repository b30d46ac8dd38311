"""Libraries that an integration needs, and the package alone does not."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from layerwise.errors import ConfigError


def library(name: str) -> ModuleType:
    """A library by its name.

    Raises:
        ConfigError: it is not installed, with the command that installs it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ConfigError(f"this integration needs {name}; type pip install {name}") from None
