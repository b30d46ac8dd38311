"""`layerwise demo`: standard training, FGSM-RS and SLAT side by side on the embedded digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerwise.cli.arguments import Command, add_quiet, add_runs
from layerwise.errors import LayerwiseError

RECIPES = ("standard-digits", "fgsm-rs-digits", "slat-digits")


def demo(runs: Path, *, seeds: int = 3, progress: bool = True) -> str:
    """Train the three recipes with several seeds, evaluate them on the 540 held-out images, and write a report.

    Args:
        runs: folder of the run folders; finished runs there are kept.
        seeds: of each recipe.
        progress: show progress.

    Returns:
        The table, and where the report is.

    Raises:
        LayerwiseError: an earlier demo there was another version's.
    """
    from layerwise.experiments.experiment import read, train_seeds
    from layerwise.report import report

    folders: list[Path] = []
    for recipe in RECIPES:
        _, tree = read(recipe)
        try:
            folders += train_seeds(tree, folder=runs / "demo" / recipe, seeds=seeds, resume=True, progress=progress)
        except LayerwiseError as error:
            raise type(error)(f"{error}; or begin anew: layerwise demo --runs ANOTHER") from None
    made = report(folders)
    path = made.write(runs / "demo" / "report")
    return f"{made.summary()}\nreport: {path.resolve()}"


def add_arguments(parser: Any) -> None:
    """The command's arguments."""
    add_runs(parser)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each method (default: 3)")
    add_quiet(parser)


def run(arguments: Any, settings: list[str]) -> None:
    """Show it."""
    from layerwise.cli.console import say, tell_messages

    tell_messages(quiet=arguments.quiet)
    say(demo(arguments.runs, seeds=arguments.seeds, progress=not arguments.quiet))


COMMAND = Command(
    summary="train standard, FGSM-RS and SLAT on the embedded digits, and compare them",
    add_arguments=add_arguments,
    run=run,
)
