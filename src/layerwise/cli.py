"""The command line: `layerwise demo | train | evaluate | report | sites | list | doctor`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from layerwise.errors import LayerwiseError

DESCRIPTION = """\
Train image classifiers that stay right under attack and noise by perturbing every layer, and measure whether it worked.

  layerwise demo                                   standard, FGSM-RS and SLAT side by side on embedded data, two minutes
  layerwise train slat-digits                      train a recipe and judge it
  layerwise train slat-cifar10 --method.eta 4/255  change any setting of it
  layerwise train slat-cifar10 --help              every setting of it, explained
  layerwise evaluate runs/slat-digits --evaluation.attacks [clean,pgd-50-10]
  layerwise list methods                           what there is: methods, models, data, recipes, attacks
"""

Command = Callable[[Any, list[str]], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    # A console script has no current folder on its path, so that a user's own my_module:Net would not be found.
    sys.path.insert(0, str(Path.cwd()))
    try:
        arguments, rest = _split(list(sys.argv[1:] if argv is None else argv))
        arguments.run(arguments, rest)
    except LayerwiseError as error:
        _complain(str(error))
        return 2
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _complain(
            f"the system refused{where}: {error.strerror or error}; free space or choose another folder, then run the same again"
        )
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _complain(sentence: str) -> None:
    from rich.console import Console

    Console(stderr=True).print("error:", sentence, style="red", markup=False, highlight=False, soft_wrap=True)


def _split(argv: list[str]) -> tuple[Any, list[str]]:
    """The arguments of the command itself, and the settings (`--data.name ...`) that it passes on."""
    import argparse

    from layerwise import __version__

    parser = argparse.ArgumentParser(
        prog="layerwise", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"layerwise {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Command, help: str, *, settings: bool = False) -> Any:
        own_help = not settings
        sub = commands.add_parser(
            name, help=help, description=help, add_help=own_help, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.set_defaults(run=run, settings=settings)
        return sub

    demo = command(
        "demo",
        demo_command,
        "Train standard, FGSM-RS and SLAT on the embedded digits, three seeds each, and compare them.",
    )
    demo.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders (default: runs)")
    demo.add_argument("--seeds", type=int, default=3, help="seeds of each method (default: 3)")

    train = command("train", train_command, "Train a recipe and judge the result on the test set.", settings=True)
    train.add_argument("recipe", nargs="?", help="a recipe's name (`layerwise list recipes`) or a YAML file")
    train.add_argument("--name", help="name of the run folder (default: the recipe's)")
    train.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders (default: runs)")
    train.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="train so many seeds, in runs NAME-seed0, NAME-seed1, ..., and report their mean",
    )
    train.add_argument(
        "--resume", action="store_true", help="go on where the run stopped; refused if its settings have changed"
    )
    train.add_argument(
        "--dry-run", action="store_true", help="print sites, passes, memory and estimated time, and stop"
    )
    train.add_argument("--quiet", action="store_true", help="no progress bars")
    train.add_argument("-h", "--help", action="store_true", help="this, and every setting of the recipe")

    judge = command("evaluate", evaluate_command, "Judge a finished run on the test set.", settings=True)
    judge.add_argument("folder", nargs="?", type=Path, help="the run's folder, such as runs/slat-digits")
    judge.add_argument(
        "--weights", choices=("last", "best", "ema", "best-ema"), default="last", help="which weights (default: last)"
    )
    judge.add_argument("--trust", action="store_true", help="allow the run to import code outside layerwise")
    judge.add_argument("--quiet", action="store_true", help="no progress bars")
    judge.add_argument("-h", "--help", action="store_true", help="this, and every setting")

    report = command("report", report_command, "Put runs side by side in one table.")
    report.add_argument("folders", nargs="+", type=Path, help="run folders; those of one recipe's seeds become one row")
    report.add_argument(
        "--output", type=Path, default=Path("report"), help="where report.md and report.json go (default: report)"
    )

    sites = command("sites", sites_command, "Print every site of a network, or those that a selection chooses.")
    sites.add_argument("model", help="a network's name or import path")
    sites.add_argument("--shape", default="3,32,32", help="of one image, channels,height,width (default: 3,32,32)")
    sites.add_argument(
        "--select", nargs="*", help="names, or one regular expression or phrase such as 'affine outputs' or 'first(4)'"
    )
    sites.add_argument("--options", default="{}", help="the network's options, as YAML: '{width: 16}'")

    listing = command("list", list_command, "Show what there is.")
    listing.add_argument("what", choices=("methods", "models", "data", "recipes", "attacks"))

    command("doctor", doctor_command, "Print what a bug report needs, and check that the parts work together.")
    arguments, rest = parser.parse_known_args(argv)
    if rest and not arguments.settings:
        parser.error(f"unrecognized arguments: {' '.join(rest)}; see `layerwise {arguments.command} --help`")
    arguments.parser = commands.choices[arguments.command]
    return arguments, rest


def _say(*parts: object) -> None:
    from rich.console import Console

    Console().print(*parts, markup=False, highlight=False, soft_wrap=True)


def demo_command(arguments: Any, rest: list[str]) -> None:
    """`layerwise demo`."""
    from layerwise.demo import demo

    _say(demo(arguments.runs, seeds=arguments.seeds))


def train_command(arguments: Any, rest: list[str]) -> None:
    """`layerwise train`."""
    from layerwise import experiment

    if arguments.help:
        _help(arguments, rest)
        return
    if arguments.recipe is None:
        raise _usage(
            "train needs a recipe; `layerwise list recipes` shows them, for example: layerwise train slat-digits"
        )
    folder, source = _run_folder(arguments)
    chosen, tree = experiment.read(source, rest)
    if arguments.dry_run:
        from layerwise.planning import plan

        _say(plan(chosen))
        return
    if arguments.seeds > 1:
        from layerwise.report import compare

        folders = experiment.train_seeds(
            tree, folder=folder, seeds=arguments.seeds, resume=arguments.resume, progress=not arguments.quiet
        )
        _say(compare(folders).to_markdown())
        return
    _, judgement = experiment.train(chosen, tree, folder=folder, resume=arguments.resume, progress=not arguments.quiet)
    _say(judgement.to_markdown())
    _say(f"run folder: {folder}")


def _run_folder(arguments: Any) -> tuple[Path, str]:
    """The run's folder, and the recipe or, for `--resume FOLDER`, the run's own configuration."""
    given = Path(arguments.recipe)
    if arguments.resume and (given / "config.yaml").is_file():
        return given, str(given / "config.yaml")
    return arguments.runs / (arguments.name or given.stem), arguments.recipe


def _usage(sentence: str) -> LayerwiseError:
    from layerwise.errors import ConfigError

    return ConfigError(sentence)


def _help(arguments: Any, rest: list[str]) -> None:
    """The command's own arguments, and every setting of the recipe (of slat-digits where none is named)."""
    from layerwise import experiment
    from layerwise.config import flatten

    source = getattr(arguments, "recipe", None) or "slat-digits"
    _, tree = experiment.read(source, rest)
    leaves = experiment.SCHEMA.leaves(tree)
    arguments.parser.print_help()
    shown = [leaf for leaf in leaves if arguments.command == "train" or leaf.key.startswith("evaluation.")]
    _say(f"\nsettings of {source} (type `--KEY VALUE`; the class of a `.name` decides which settings follow):\n")
    for leaf in shown:
        value = dict(flatten(tree)).get(leaf.key, leaf.default)
        _say(f"  --{leaf.key} {value!r}\n        {leaf.help}")


def evaluate_command(arguments: Any, rest: list[str]) -> None:
    """`layerwise evaluate`."""
    from layerwise import experiment

    if arguments.help:
        _help(arguments, rest)
        return
    if arguments.folder is None:
        raise _usage("evaluate needs a run folder, for example: layerwise evaluate runs/slat-digits")
    settings, model, data = experiment.open_run(arguments.folder, rest, trust=arguments.trust, which=arguments.weights)
    judgement = experiment.judge(
        model,
        data,
        settings.evaluation,
        name=arguments.folder.name,
        folder=arguments.folder,
        progress=not arguments.quiet,
    )
    _say(judgement.to_markdown())


def report_command(arguments: Any, rest: list[str]) -> None:
    """`layerwise report`."""
    from layerwise.report import compare, write

    path = write(compare(arguments.folders), arguments.output)
    _say(path.read_text(encoding="utf-8"))
    _say(f"report: {path}")


def sites_command(arguments: Any, rest: list[str]) -> None:
    """`layerwise sites`."""
    import torch
    import yaml

    from layerwise import models
    from layerwise.sites import Sites
    from layerwise.tracing import trace

    try:
        shape = tuple(int(part) for part in arguments.shape.replace("x", ",").split(","))
        options = yaml.safe_load(arguments.options)
    except (ValueError, yaml.YAMLError):
        raise _usage(
            f"--shape {arguments.shape} or --options {arguments.options} is not readable; type --shape 3,32,32"
        ) from None
    model = models.build(arguments.model, shape=shape, **options)
    example = torch.zeros(2, *shape)
    if arguments.select:
        selection = arguments.select[0] if len(arguments.select) == 1 else arguments.select
        with Sites(model, selection, example=example) as sites:
            _say(sites)
        return
    for candidate in trace(model, example):
        _say(f"{candidate.site!s:<32} {type(candidate.module).__name__:<20} {tuple(candidate.shape[1:])}")


def list_command(arguments: Any, rest: list[str]) -> None:
    """`layerwise list`."""
    from rich.console import Console
    from rich.table import Table

    from layerwise.listing import rows

    header, body = rows(arguments.what)
    table = Table(*header, box=None, pad_edge=False)
    for row in body:
        table.add_row(*row)
    Console().print(table, markup=False)


def doctor_command(arguments: Any, rest: list[str]) -> None:
    """`layerwise doctor`."""
    from layerwise.doctor import doctor

    report, healthy = doctor()
    _say(report)
    if not healthy:
        raise _usage("a check failed; see above")


if __name__ == "__main__":
    sys.exit(main())
