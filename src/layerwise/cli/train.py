"""`layerwise train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerwise.cli.arguments import (
    JOBS,
    Command,
    add_jobs,
    add_quiet,
    add_runs,
    add_trust,
    crew_of,
    parse_name,
    without,
)
from layerwise.errors import ConfigError

if TYPE_CHECKING:
    from layerwise.experiments.jobs import Crew
    from layerwise.trees import Tree

TEXT = """\
Train a recipe and evaluate the result on the test set.

  layerwise train slat-digits                     seconds, nothing to download
  layerwise train slat-digits --method.eta 0.1    change a setting
  layerwise train slat-digits --method LAT        another method, same recipe
  layerwise train slat-digits --method.eta.conv1 0.01
                                                  one entry of a mapping
  layerwise train my.yaml --seeds 3               a recipe of your own
  layerwise train my.yaml --seeds 3 --jobs 3      the seeds side by side
  layerwise train slat-cifar10 --dry-run          what it would do and cost
  layerwise train --resume runs/slat-digits       go on after Ctrl-C

A recipe of your own is a YAML file of what differs from another recipe:

  extends: slat-digits
  method: {eta: {input: 0.2, conv1: 0.01, layer1: 0.01}}
  training: {epochs: 10}

Radii may be fractions, 8/255. Of a name such as `method` the class is chosen,
null is none. `layerwise train RECIPE --help` lists every setting.
"""


def add_arguments(parser: Any) -> None:
    """The command's arguments."""
    parser.add_argument("recipe", nargs="?", help="a recipe's name, a YAML file, or a run folder to --resume")
    parser.add_argument("--name", type=parse_name, help="name of the run folder (default: the recipe's)")
    add_runs(parser)
    parser.add_argument(
        "--seeds", type=int, help="train so many seeds, NAME-seed0, NAME-seed1, ..., and report their mean"
    )
    add_jobs(parser)
    parser.add_argument("--resume", action="store_true", help="go on where the run stopped, with the same settings")
    parser.add_argument("--dry-run", action="store_true", help="print sites, passes, memory and time, and stop")
    add_trust(parser)
    add_quiet(parser)
    parser.add_argument("-h", "--help", action="store_true", help="this, and with a recipe every setting of it")


def run(arguments: Any, settings: list[str]) -> None:
    """Train."""
    if arguments.help:
        show_help(arguments, arguments.recipe, settings)
        return
    if arguments.recipe is None:
        raise ConfigError(
            "train needs a recipe; `layerwise list recipes` shows them, for example: layerwise train slat-digits"
        )
    from layerwise.cli.console import tell_messages
    from layerwise.experiments.trust import trusting

    tell_messages(quiet=arguments.quiet)
    with trusting(arguments.trust):
        _train(arguments, settings)


def _train(arguments: Any, settings: list[str]) -> None:
    from layerwise.cli.console import say
    from layerwise.evaluation.ranks import rank_and_world
    from layerwise.experiments import experiment

    folder, is_run = _run_folder(arguments)
    chosen, tree = (
        experiment.read_run(folder, settings) if is_run else experiment.read(arguments.recipe, settings, trust=True)
    )
    if arguments.dry_run:
        from layerwise.experiments.plan import plan

        say(plan(chosen))
        return
    progress = not arguments.quiet
    crew = crew_of(arguments)
    if arguments.seeds is not None:
        from layerwise.report import compare

        if crew.alone:
            try:
                folders = experiment.train_seeds(
                    tree, folder=folder, seeds=arguments.seeds, resume=arguments.resume, progress=progress
                )
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt(f"{stop}; for all seeds type the same again with --resume") from None
        else:
            folders = _side_by_side(crew, arguments, tree, folder)
        say(compare(folders).to_markdown())
        say(_summary(folders))
        return
    if not crew.alone:
        raise ConfigError("one run is one job; --jobs and --cluster go with --seeds, such as --seeds 3 --jobs 3")
    _, evaluation = experiment.train(chosen, tree, folder=folder, resume=arguments.resume, progress=progress)
    if rank_and_world()[0]:
        return
    say(evaluation.to_markdown())
    say(f"\nrun folder: {folder}")


def _summary(folders: list[Path]) -> str:
    """Mean and standard deviation of each accuracy over the seeds, and where their runs are."""
    from statistics import mean, stdev

    from layerwise.evaluation import Evaluation

    found = [Evaluation.read(folder, "evaluation").accuracies for folder in folders]
    told = []
    for attack in found[0]:
        shares = [100 * each[attack] for each in found]
        told.append(f"{attack} {mean(shares):.1f}" + (f" ± {stdev(shares):.1f}" if len(shares) > 1 else ""))
    spread = "mean ± standard deviation" if len(folders) > 1 else "one seed tells no spread"
    runs = shlex.join(map(str, folders))
    return f"over {len(folders)} seeds, {spread}: {', '.join(told)} %\nall of it on one page: layerwise report {runs}"


def _side_by_side(crew: Crew, arguments: Any, tree: Tree, folder: Path) -> list[Path]:
    """The run folders of several seeds, each a job.

    Raises:
        LayerwiseError: a job did not end well.
    """
    from layerwise.experiments import experiment
    from layerwise.experiments.jobs import Job, not_all

    folders = experiment.seed_folders(tree, folder=folder, seeds=arguments.seeds, resume=arguments.resume)
    own = without(arguments.typed, *JOBS, "--seeds=", "--name=", "--training.seed=", "--resume")
    jobs = [
        Job(
            name=run.name,
            command=(*own, "--name", str(run.relative_to(arguments.runs)), f"--training.seed={seed}", "--resume"),
            runs=run.parent,
        )
        for seed, run in folders.items()
        if not experiment.is_evaluated(run)
    ]
    again = shlex.join(["layerwise", *without(arguments.typed, "--resume"), "--resume"])
    if lost := crew.run(jobs, total=len(jobs), again=lambda: again, show=not arguments.quiet):
        raise not_all(lost, again)
    return list(folders.values())


def _run_folder(arguments: Any) -> tuple[Path, bool]:
    """The run's folder, and whether a run is there that names itself what to do, `--resume FOLDER`."""
    from layerwise.experiments import experiment, recipe

    given = Path(arguments.recipe)
    is_run = (given / "config.yaml").is_file()
    if is_run and not arguments.resume:
        raise ConfigError(
            f"{given} is a run folder; type `layerwise train --resume {shlex.quote(str(given))}` to go on with it"
        )
    if is_run:
        if arguments.seeds is not None or arguments.name is not None:
            raise ConfigError("--resume FOLDER goes on with that one run; leave out --seeds and --name")
        return given, True
    named = arguments.runs / given
    if arguments.resume and arguments.recipe not in recipe.names() and (named / "config.yaml").is_file():
        again = f"layerwise train --resume {shlex.quote(str(named))}"
        raise ConfigError(f"{given} is no recipe, but a run has that name; type `{again}` to go on with it")
    if given.is_dir() or (arguments.resume and len(given.parts) > 1 and given.suffix not in (".yaml", ".yml")):
        experiment.check_run(given)
    return arguments.runs / (arguments.name or given.stem), False


def show_help(arguments: Any, source: str | None, settings: list[str]) -> None:
    """The command's own arguments and, where a recipe or run is named, every setting of it."""
    from layerwise.cli.console import say

    say(arguments.parser.format_help())
    if source is None:
        return
    from layerwise.experiments import experiment
    from layerwise.experiments.trust import trusting
    from layerwise.reading import written
    from layerwise.trees import at

    folder = Path(source)
    with trusting(arguments.trust):
        is_run = (folder / "config.yaml").is_file()
        _, tree = experiment.read_run(folder, settings) if is_run else experiment.read(source, settings, trust=True)
    say(f"settings of {source}, each with its value; the class of a .name decides which follow:\n")
    for leaf in experiment.SCHEMA.leaves(tree):
        if arguments.command == "train" or leaf.key.startswith(("evaluation.", "threat.")):
            say(f"  --{leaf.key} {written(at(tree, leaf.key), leaf.type)}\n        {leaf.help}")


COMMAND = Command(
    summary="train a recipe and evaluate the result",
    text=TEXT,
    add_arguments=add_arguments,
    run=run,
    takes_settings=True,
)
