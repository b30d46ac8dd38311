"""`layerwise schema`."""

from __future__ import annotations

import sys
from typing import Any

from layerwise.cli.arguments import Command

TEXT = """\
Print the JSON schema of recipes, with which editors complete and check them.

  layerwise schema > recipe.schema.json

An editor with the YAML language server (VS Code's YAML extension, Neovim, ...)
then completes every setting of a recipe that begins with the line

  # yaml-language-server: $schema=recipe.schema.json
"""


def run(arguments: Any, settings: list[str]) -> None:
    """Print it as it is, for a file."""
    from importlib import resources

    # Not by `layerwise.experiments.schema`, which makes it: the classes that it is made of need torch.
    file = resources.files("layerwise") / "experiments" / "recipe.schema.json"
    sys.stdout.write(file.read_text(encoding="utf-8"))


COMMAND = Command(summary="print the JSON schema of recipes, for editors", text=TEXT, run=run)
