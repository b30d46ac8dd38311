"""The arguments of the command line, and sentences about those that do not exist."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, final

from layerwise.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from layerwise.experiments.jobs import Crew

DESCRIPTION = """\
Train image classifiers that stay right under attack and noise by perturbing
every layer, and measure whether it worked.

  layerwise demo                       standard, FGSM-RS and SLAT side by side,
                                       on embedded data, in minutes
  layerwise train slat-digits          train a recipe and evaluate it
  layerwise train slat-cifar10 --method.eta 4/255
                                       change any setting of it
  layerwise train slat-cifar10 --help  every setting of it, explained
  layerwise evaluate runs/slat-digits --suite standard
                                       evaluate it again, with AutoAttack
  layerwise report runs/slat-digits runs/pgd-digits
                                       runs side by side on one page
  layerwise reproduce list             the papers' tables and figures beside
                                       ours, and what they cost
  layerwise list methods               what there is; `layerwise list --help`
                                       names the lists
"""

SECTIONS = ("data", "model", "threat", "method", "phases", "training", "evaluation")
"""The settings that may be typed without a dot, `--method ANP`."""

MEANT = {
    "--device": "--training.accelerator cuda (or cpu, mps); evaluations take the accelerator that there is",
    "--gpus": "--training.devices 2, for two devices",
    "--dataset": "--data NAME",
    "--arch": "--model NAME",
    "--batch-size": "--training.batch_size 128",
    "--learning-rate": "--training.optimizer.lr 0.1",
    "--config": "the file in the recipe's place, such as layerwise train my.yaml",
    "--attack": "--evaluation.attacks '[clean, pgd-20]'",
    "--attacks": "--evaluation.attacks '[clean, pgd-20]'",
    "--measures": "--evaluation.measures '[corruptions, landscape]'",
    "--eps": "--threat.eps 8/255",
    "--epsilon": "--threat.eps 8/255",
    "--norm": "--threat.norm l2",
    "--optimizer": "--training.optimizer Adam",
    "--amp": "--training.precision bf16-mixed",
}
"""What other programs call settings, and what they are here."""


@final
@dataclass(frozen=True, kw_only=True)
class Command:
    """A command. A module of this package that holds one as `COMMAND` is found by itself; the command has the module's name.

    Args:
        summary: what `layerwise --help` says of it.
        text: what its own help says; empty is the summary.
        add_arguments: adds its arguments to its parser.
        run: does it, given the arguments and the settings (`--data.name ...`).
        takes_settings: whether there may be settings; such a command shows its help itself.
    """

    summary: str
    text: str = ""
    add_arguments: Callable[[Any], None] = lambda parser: None
    run: Callable[[Any, list[str]], None]
    takes_settings: bool = False


class _Version(argparse.Action):
    """`--version`, whose text takes longer to find than all the rest of the help."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object, **options: object) -> None:
        import platform
        from importlib import metadata

        from layerwise import __version__

        # Not torch.__version__: importing torch takes seconds.
        versions = {"layerwise": __version__, "torch": metadata.version("torch"), "Python": platform.python_version()}
        told = "".join(f"{name} {version}, " for name, version in versions.items())
        sys.stdout.write(f"{told}{platform.platform()}\n")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """One sentence in place of usage and exit."""

    def error(self, message: str) -> NoReturn:
        shown = re.search(r"^  (layerwise .*?)(?: {2,}|$)", self.description or "", re.MULTILINE)
        hint = f", for example: {shown[1]}" if shown and "required" in message else f"; see `{self.prog} --help`"
        for kind, words in {"int": "no whole number", "float": "no number"}.items():
            message = re.sub(f"invalid {kind} value: (.*)", rf"\1 is {words}", message)
        raise ConfigError(f"{message}{hint}")


def parse(argv: list[str], known: Mapping[str, Command]) -> tuple[Any, list[str]]:
    """The arguments of the command itself, and the settings (`--data.name ...`) that it passes on.

    Args:
        argv: what was typed.
        known: every command by its name.

    Raises:
        ConfigError: no such command, or one that does not take what was typed.
    """
    parser, commands = parsers(known)
    if not argv:
        parser.print_help()
        parser.exit()
    if argv[0] == "help":
        argv = [*argv[1:], "--help"]
    if not argv[0].startswith("-") and argv[0] not in commands:
        raise ConfigError(f"there is no command {argv[0]!r}; {did_you_mean(argv[0], commands)}")
    if section := next((t[2:].rpartition(".")[0] for t in argv if t.startswith("--") and t.endswith(".help")), ""):
        raise ConfigError(
            f"`layerwise train RECIPE --help` explains every setting, those of {section} too; for example: "
            "layerwise train slat-digits --help"
        )
    options = commands[argv[0]]._option_string_actions if argv[0] in commands else {}
    own, settings = [], []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        name = token[2:].partition("=")[0]
        is_setting = token.startswith("--") and ("." in name or name in SECTIONS) and f"--{name}" not in options
        if not is_setting:
            own.append(token)
            continue
        settings.append(token)
        if "=" not in token and rest and not rest[0].startswith("--"):
            settings.append(rest.pop(0))
    arguments, unknown = parser.parse_known_args(own)
    arguments.parser, arguments.typed = commands[arguments.command], argv
    takes_settings = known[arguments.command].takes_settings
    if settings and not takes_settings:
        unknown = settings
    if unknown:
        raise ConfigError(_unknown(arguments, unknown, takes_settings=takes_settings))
    return arguments, settings


def _unknown(arguments: Any, tokens: list[str], *, takes_settings: bool) -> str:
    """A sentence about an option or argument that a command does not have."""
    first = next((t for t in tokens if t.startswith("-")), tokens[0])
    name = first.partition("=")[0]
    if not first.startswith("-"):
        return f"{arguments.command} does not take {first!r}; see `layerwise {arguments.command} --help`"
    known = [option for action in arguments.parser._actions for option in action.option_strings if option[:2] == "--"]
    if takes_settings:
        from layerwise.experiments import experiment, recipe

        source = getattr(arguments, "recipe", None)
        _, tree = experiment.read(source if source in recipe.names() else "slat-digits")
        known += [f"--{leaf.key}" for leaf in experiment.SCHEMA.leaves(tree)]
    if takes_settings and name in MEANT and name not in known:
        return f"{arguments.command} has no option '{name}'; type {MEANT[name]}"
    same = [key for key in known if key.rpartition(".")[2] == name.lstrip("-")]
    return f"{arguments.command} has no option {name!r}; {did_you_mean(name, same or known)}"


def parsers(known: Mapping[str, Command]) -> tuple[argparse.ArgumentParser, dict[str, Any]]:
    """The parser, and that of each command."""
    from layerwise.cli.completion import PrintCompletion

    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="layerwise", description=DESCRIPTION, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="show versions of what a bug report needs")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        metavar="SHELL",
        help="print the script of tab completion for bash, zsh, fish",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in known.items():
        sub = commands.add_parser(
            name,
            help=command.summary,
            description=command.text or command.summary,
            add_help=not command.takes_settings,
            formatter_class=raw,
            allow_abbrev=False,
        )
        command.add_arguments(sub)
    return parser, dict(commands.choices)


def add_runs(parser: Any) -> None:
    """`--runs`."""
    parser.add_argument(
        "--runs", type=parse_path, default=Path("runs"), help="folder of the run folders (default: runs)"
    )


def add_jobs(parser: Any) -> None:
    """`--jobs`, and where they run."""
    parser.add_argument("--jobs", type=int, help="so many at once, each a process with its share of the cores")
    parser.add_argument("--cluster", help="send the jobs to a cluster by submitit: slurm (or local, for a trial)")
    parser.add_argument(
        "--cluster-options", help="what each job asks for, such as '{slurm_partition: gpu, gpus_per_node: 1}'"
    )


def crew_of(arguments: Any) -> Crew:
    """What `add_jobs` has read: without a number one job at a time, on a cluster as many as there are."""
    from layerwise.experiments.jobs import Crew

    given = arguments.cluster_options
    options = {} if given is None else parse_options(given, "--cluster-options")
    count = arguments.jobs if arguments.jobs is not None else 1 if arguments.cluster is None else MANY
    return Crew(at_once=count, cluster=arguments.cluster, options=options)


MANY = 1000
"""Jobs that a cluster has at once, where nobody says how many."""


def without(typed: Sequence[str], *options: str) -> list[str]:
    """What was typed without these options; those that end with `=` take a value.

    >>> without(["train", "a", "--seeds", "3", "--jobs=2", "--resume"], "--seeds=", "--jobs=", "--resume")
    ['train', 'a']
    """
    kept, rest = list[str](), list(typed)
    while rest:
        token = rest.pop(0)
        name, sign, _ = token.partition("=")
        if f"{name}=" in options:
            rest = rest if sign else rest[1:]
        elif token not in options:
            kept.append(token)
    return kept


JOBS = ("--jobs=", "--cluster=", "--cluster-options=")
"""What a job's own command leaves out."""


def add_quiet(parser: Any) -> None:
    """`--quiet`."""
    parser.add_argument("--quiet", action="store_true", help="no progress, only results and warnings")


def add_trust(parser: Any) -> None:
    """`--trust`."""
    parser.add_argument(
        "--trust", action="store_true", help="let run folders, and recipes in them, name code outside layerwise"
    )


def parse_path(text: str) -> Path:
    """A path, of which `~` is the user's folder; shells leave it in `--runs=~/runs`."""
    return Path(text).expanduser()


def parse_name(text: str) -> str:
    """A name of a folder below another one.

    >>> parse_name("slat-2")
    'slat-2'

    Raises:
        ConfigError: it would lead elsewhere.
    """
    parts = Path(text).parts
    if not parts or Path(text).is_absolute() or ".." in parts or parts[0].startswith("~"):
        raise ConfigError(
            f"--name {text!r} is no name; type a word, such as --name slat-2, and --runs FOLDER for another place"
        )
    return text


def parse_shape(text: str) -> tuple[int, ...]:
    """The shape of an image, as `--shape` has it.

    >>> parse_shape("3,32,32"), parse_shape("1x28x28")
    ((3, 32, 32), (1, 28, 28))
    """
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise ConfigError(f"--shape {text} is no shape; type channels,height,width, such as --shape 3,32,32") from None


def parse_options(text: str, option: str = "--options") -> dict[str, Any]:
    """A mapping, as `--options` has a network's.

    >>> parse_options("{width: 16}")
    {'width': 16}
    """
    from layerwise.trees import parse_yaml

    options = parse_yaml(text, option)
    if not isinstance(options, dict) or not all(isinstance(k, str) for k in options):
        raise ConfigError(f"{option} {text} does not fit; type a mapping in quotes, such as {option} '{{width: 16}}'")
    return options
