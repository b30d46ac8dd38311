"""The arguments of the command line, and sentences about those that do not exist."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any, NoReturn

from layerwise.errors import ConfigError, did_you_mean

DESCRIPTION = """\
Train image classifiers that stay right under attack and noise by perturbing
every layer, and measure whether it worked.

  layerwise demo                       standard, FGSM-RS and SLAT side by side,
                                       on embedded data, in minutes
  layerwise train slat-digits          train a recipe and judge it
  layerwise train slat-cifar10 --method.eta 4/255
                                       change any setting of it
  layerwise train slat-cifar10 --help  every setting of it, explained
  layerwise evaluate runs/slat-digits --suite standard
                                       judge it again, with AutoAttack
  layerwise report runs/slat-digits runs/pgd-digits
                                       runs side by side on one page
  layerwise reproduce list             the papers' tables and figures beside
                                       ours, and what they cost
  layerwise list methods               what there is: methods, models, data,
                                       recipes, attacks, suites, diagnostics,
                                       corruptions
"""

TRAIN = """\
Train a recipe and judge the result on the test set.

  layerwise train slat-digits                     seconds, nothing to download
  layerwise train slat-digits --method.eta 0.1    change a setting
  layerwise train slat-digits --method LAT        another method, same recipe
  layerwise train slat-digits --method.eta.conv1 0.01
                                                  one entry of a mapping
  layerwise train my.yaml --seeds 3               a recipe of your own
  layerwise train slat-cifar10 --dry-run          what it would do and cost
  layerwise train --resume runs/slat-digits       go on after Ctrl-C

A recipe of your own is a YAML file of what differs from another recipe:

  extends: slat-digits
  method: {eta: {input: 0.2, conv1: 0.01, layer1: 0.01}}
  training: {epochs: 10}

Radii may be fractions, 8/255. Of a name such as `method` the class is chosen,
null is none. `layerwise train RECIPE --help` lists every setting.
"""

EVALUATE = """\
Judge a finished run, as its recipe says, by a suite, or otherwise.

  layerwise evaluate runs/slat-digits --suite quick
                                       a first look in minutes
  layerwise evaluate runs/slat-digits --suite standard --num-examples 1000
                                       PGD-50-10 and AutoAttack
  layerwise evaluate runs/slat-digits --weights best
  layerwise evaluate runs/slat-digits --evaluation.attacks "[clean, pgd-50-10]"
  layerwise evaluate runs/a --evaluation.corruptions common \\
      --evaluation.corruption_base runs/standard --record evaluation-c
                                       mCE against a run with the same record
  layerwise evaluate runs/a --evaluation.diagnostics "[landscape, alignment]"
  layerwise list suites                what is in each; also: list attacks,
                                       list diagnostics, list corruptions

A suite's settings are changed by what is typed beside it. After Ctrl-C, or
whatever else stopped it, the same command goes on; --fresh begins anew.

The record goes into the run's folder: evaluation.json where nothing differs
from the run's own settings, evaluation-SUITE.json, evaluation-best.json for
other weights, evaluation-custom.json for other settings, or where --record
says. `layerwise evaluate RUN --help` lists every setting.
"""

REPORT = """\
Put runs side by side on one page: verdicts first, then tables and figures.

  layerwise report runs/slat-digits runs/pgd-digits
                                       writes report/report.html (one file that
                                       needs nothing else), .md and .json beside
  layerwise report runs/slat-digits --format md
                                       markdown for a pull request

The page shows what the run folders hold, and names the command for what they
lack. Seeds of one recipe (-seed0, -seed1, ...) are one entry.
"""

SECTIONS = ("data", "model", "method", "phases", "training", "evaluation")
"""The settings that may be typed without a dot, `--method ANP`."""


class _Parser(argparse.ArgumentParser):
    """One sentence in place of usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def parse(argv: list[str]) -> tuple[Any, list[str]]:
    """The arguments of the command itself, and the settings (`--data.name ...`) that it passes on."""
    parser, commands = _parsers()
    if not argv:
        parser.print_help()
        parser.exit()
    if not argv[0].startswith("-") and argv[0] not in commands:
        raise ConfigError(f"there is no command {argv[0]!r}; {did_you_mean(argv[0], commands)}")
    own, settings = [], []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        name = token[2:].partition("=")[0]
        if not token.startswith("--") or not ("." in name or name in SECTIONS):
            own.append(token)
            continue
        settings.append(token)
        if "=" not in token and rest and not rest[0].startswith("--"):
            settings.append(rest.pop(0))
    arguments, unknown = parser.parse_known_args(own)
    arguments.parser, arguments.typed = commands[arguments.command], argv
    if settings and not arguments.takes_settings:
        unknown = settings
    if unknown:
        raise ConfigError(_unknown(arguments, unknown))
    return arguments, settings


def _unknown(arguments: Any, tokens: list[str]) -> str:
    """A sentence about an option or argument that a command does not have."""
    first = next((t for t in tokens if t.startswith("-")), tokens[0])
    name = first.partition("=")[0]
    if not first.startswith("-"):
        return f"{arguments.command} does not take {first!r}; see `layerwise {arguments.command} --help`"
    known = [option for action in arguments.parser._actions for option in action.option_strings if option[:2] == "--"]
    if arguments.takes_settings:
        from layerwise.experiments import experiment, recipe

        source = getattr(arguments, "recipe", None)
        _, tree = experiment.read(source if source in recipe.names() else "slat-digits")
        known += [f"--{leaf.key}" for leaf in experiment.SCHEMA.leaves(tree)]
    same = [key for key in known if key.rpartition(".")[2] == name.lstrip("-")]
    return f"{arguments.command} has no option {name!r}; {did_you_mean(name, same or known)}"


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, Any]]:
    """The parser, and that of each command."""
    import torch

    from layerwise import __version__

    about = (
        f"layerwise {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}"
    )
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="layerwise", description=DESCRIPTION, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=about)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, *, text: str = "", settings: bool = False) -> Any:
        sub = commands.add_parser(
            name, help=help, description=text or help, add_help=not settings, formatter_class=raw, allow_abbrev=False
        )
        sub.set_defaults(takes_settings=settings)
        return sub

    demo = command("demo", "train standard, FGSM-RS and SLAT on the embedded digits, and compare them")
    _add_runs(demo)
    demo.add_argument("--seeds", type=int, default=3, help="seeds of each method (default: 3)")
    _add_quiet(demo)

    train = command("train", "train a recipe and judge the result", text=TRAIN, settings=True)
    train.add_argument("recipe", nargs="?", help="a recipe's name, a YAML file, or a run folder to --resume")
    train.add_argument("--name", help="name of the run folder (default: the recipe's)")
    _add_runs(train)
    train.add_argument(
        "--seeds", type=int, help="train so many seeds, NAME-seed0, NAME-seed1, ..., and report their mean"
    )
    train.add_argument("--resume", action="store_true", help="go on where the run stopped, with the same settings")
    train.add_argument("--dry-run", action="store_true", help="print sites, passes, memory and time, and stop")
    _add_trust(train, "a run folder that is resumed")
    _add_quiet(train)
    train.add_argument("-h", "--help", action="store_true", help="this, and with a recipe every setting of it")

    judge = command("evaluate", "judge a finished run again", text=EVALUATE, settings=True)
    judge.add_argument("folder", nargs="?", type=Path, help="the run's folder, such as runs/slat-digits")
    judge.add_argument("--suite", help="what to judge by: quick, standard, paper-slat, ... (`layerwise list suites`)")
    judge.add_argument("--num-examples", type=int, help="a random subset of so many images, the same for the same seed")
    judge.add_argument("--seed", type=int, help="of the subset and of all random numbers (default: 0)")
    judge.add_argument("--weights", default="last", help="last, best, ema or best-ema (default: last)")
    judge.add_argument("--record", help="name of the record in the run's folder, without .json")
    judge.add_argument("--fresh", action="store_true", help="begin anew, whatever an interrupted evaluation has done")
    _add_trust(judge, "the run")
    _add_quiet(judge)
    judge.add_argument("-h", "--help", action="store_true", help="this, and with a run every setting")

    report = command("report", "put runs side by side on one page", text=REPORT)
    report.add_argument("folders", nargs="+", type=Path, help="run folders; those of one recipe's seeds become one row")
    report.add_argument(
        "--output",
        type=Path,
        default=Path("report"),
        help="folder of report.html, report.md and report.json (default: report)",
    )
    report.add_argument(
        "--record", help="which record of the runs (default: evaluation-standard where all have it, else evaluation)"
    )
    report.add_argument(
        "--format", choices=("html", "md", "json"), default="html",
        help="html writes the page and its markdown and JSON; md and json go to standard output instead (default: html)",
    )  # fmt: skip

    sites = command("sites", "print every site of a network, or those that a selection chooses")
    sites.add_argument("model", help="a network's name or import path")
    sites.add_argument("--shape", default="3,32,32", help="of one image, channels,height,width (default: 3,32,32)")
    sites.add_argument(
        "--select", nargs="+", help="names, or one regular expression or phrase such as 'affine outputs' or 'first(4)'"
    )
    sites.add_argument("--options", default="{}", help="the network's options, as YAML: '{width: 16}'")

    listing = command("list", "show what there is: methods, models, data, recipes, attacks, suites, ...")
    listing.add_argument(
        "what", help="methods, models, data, recipes, attacks, suites, diagnostics or corruptions (and sequences)"
    )

    from layerwise.cli.reproduce import TEXT, add_arguments

    add_arguments(command("reproduce", "run the papers' tables and figures, and put ours beside theirs", text=TEXT))

    from layerwise.cli.tune import TEXT as TUNE
    from layerwise.cli.tune import add_arguments as add_tuning

    add_tuning(command("tune", "search for better settings of a recipe", text=TUNE, settings=True))

    from layerwise.cli import bench as bench

    timing = command("bench", "measure what a training step costs here", text=bench.TEXT)
    timing.set_defaults(takes_settings=True)
    bench.add_arguments(timing)

    command("doctor", "print what a bug report needs, and check that the parts work together")
    return parser, dict(commands.choices)


def _add_runs(parser: Any) -> None:
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders (default: runs)")


def _add_quiet(parser: Any) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress, only results and warnings")


def _add_trust(parser: Any, what: str) -> None:
    parser.add_argument("--trust", action="store_true", help=f"let {what} import code outside layerwise")
