"""`layerwise sites`."""

from __future__ import annotations

from typing import Any

from layerwise.cli.arguments import Command, parse_options, parse_shape
from layerwise.errors import ConfigError

HINT = "choose with --select: names (conv1 layer1), a regular expression ('layer[12]'), 'affine outputs', 'first(4)'"


def add_arguments(parser: Any) -> None:
    """The command's arguments."""
    parser.add_argument("model", nargs="?", help="a network's name or import path")
    parser.add_argument("--shape", default="3,32,32", help="of one image, channels,height,width (default: 3,32,32)")
    parser.add_argument(
        "--select", nargs="+", help="names, or one regular expression or phrase such as 'affine outputs' or 'first(4)'"
    )
    parser.add_argument("--inputs", action="store_true", help="inputs of layers too, beside their outputs")
    parser.add_argument("--options", default="{}", help="the network's options, as YAML: '{width: 16}'")


def run(arguments: Any, settings: list[str]) -> None:
    """Print the sites."""
    import torch

    from layerwise import models
    from layerwise.cli.console import say, show_table
    from layerwise.core.sites import Sites
    from layerwise.core.tracing import trace
    from layerwise.experiments import recipe

    if arguments.model is None:
        raise ConfigError("sites needs a network, for example: layerwise sites digits_cnn --shape 1,8,8")
    if arguments.model in recipe.names():
        raise ConfigError(
            f"{arguments.model} is a recipe; type `layerwise train {arguments.model} --dry-run` for the sites of its "
            "method"
        )
    shape = parse_shape(arguments.shape)
    model = models.build(arguments.model, shape=shape, **parse_options(arguments.options))
    example = torch.zeros(2, *shape)
    if arguments.select:
        selection = arguments.select[0] if len(arguments.select) == 1 else arguments.select
        with Sites(model, selection, example=example) as sites:
            say(str(sites))
        return
    say(HINT if arguments.inputs else f"{HINT}; inputs of layers are sites too: --inputs")
    found = [c for c in trace(model, example) if arguments.inputs or c.site.side == "output" or not c.site.module]
    rows = [(str(c.site), type(c.module).__name__, str(tuple(c.shape[1:]))) for c in found]
    show_table(("site", "module", "shape of one image there"), rows)


COMMAND = Command(
    summary="print every site of a network, or those that a selection chooses", add_arguments=add_arguments, run=run
)
