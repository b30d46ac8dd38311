"""`layerwise tune`."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path
from typing import Any

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

logger = logging.getLogger("layerwise")

TEXT = """\
Search for better settings of a recipe, on the validation split.

  layerwise tune slat-digits                   the ranges of its section tune:
  layerwise tune slat-digits --trials 27 --budget 30
                                               more settings, a longer last run
  layerwise tune slat-digits --range method.eta.conv1=0.003:0.1:log \\
      --range training.batch_size=32,64        other ranges beside or instead
  layerwise tune slat-digits --method.eta.input 0.15
                                               any setting of the recipe, fixed
  layerwise tune deep-defense-digits --objective rho --max-clean-drop 0.01
  layerwise tune slat-digits --jobs 4          four trials at once
  layerwise tune slat-digits --resume          go on after Ctrl-C
  layerwise train runs/tune/slat-digits/best.yaml --name slat-tuned
                                               the winner, on the test images

Successive halving: every trial trains for a fraction of the budget, the best
third three times as long, and so on. The first trial is the recipe as it is.
Trials are evaluated by PGD, the last ones by five times the steps; those that
the training monitor or the self-checks take for overfitted or masked cannot
win.

A recipe's own section says what to search:

  tune:
    method.eta.conv1: {low: 0.003, high: 0.1, log: true}
    training.optimizer.lr: [0.05, 0.1, 0.2]

runs/tune/NAME holds trials.jsonl (every trial, every rung), tune.md, tune.png,
best.yaml and the trials' run folders.
"""


def add_arguments(parser: Any) -> None:
    """The command's arguments."""
    parser.add_argument("recipe", nargs="?", help="a recipe's name or a YAML file")
    parser.add_argument("--trials", type=int, default=9, help="how many settings to try (default: 9)")
    parser.add_argument("--budget", type=int, help="epochs of the last rung (default: the recipe's)")
    parser.add_argument(
        "--range",
        action="append",
        default=[],
        metavar="RANGE",
        help="KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=A,B,C; may be repeated",
    )
    parser.add_argument(
        "--objective", choices=("robust", "clean", "rho"), default="robust",
        help="what is to be high: accuracy under PGD, without attack, or Deep Defense's rho_2 (default: robust)",
    )  # fmt: skip
    parser.add_argument("--weights", default="last", help="of each trial: last, best, ema or best-ema (default: last)")
    parser.add_argument(
        "--max-clean-drop", type=float, help="clean accuracy that may be lost against model.start, such as 0.01"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the settings that are tried (default: 0)")
    parser.add_argument("--name", type=parse_name, help="name of the search (default: the recipe's)")
    add_jobs(parser)
    parser.add_argument(
        "--only", metavar="N.R", help="try trial N at rung R of a search that is going on: what --jobs starts"
    )
    add_runs(parser)
    parser.add_argument("--resume", action="store_true", help="go on where the search stopped, with the same arguments")
    add_trust(parser)
    add_quiet(parser)
    parser.add_argument("-h", "--help", action="store_true", help="this")


def run(arguments: Any, settings: list[str]) -> None:
    """Search."""
    from layerwise.cli.console import say, tell_messages

    if arguments.help:
        say(arguments.parser.format_help())
        return
    if arguments.recipe is None:
        raise ConfigError("tune needs a recipe, for example: layerwise tune slat-digits")
    from layerwise.experiments.trust import trusting

    tell_messages(quiet=arguments.quiet)
    with trusting(arguments.trust):
        _tune(arguments, settings)


def _tune(arguments: Any, settings: list[str]) -> None:
    from layerwise.cli.console import say
    from layerwise.experiments import experiment, recipe
    from layerwise.experiments.ranges import overlap, parse_range
    from layerwise.experiments.trust import trusted
    from layerwise.experiments.tune.halving import Plan, try_one, tune
    from layerwise.experiments.tune.workers import Workers
    from layerwise.trees import load_yaml

    asked = ("trials", "budget", "objective", "max_clean_drop", "weights", "seed")
    plan = Plan(**{key: getattr(arguments, key) for key in asked})
    _, tree = experiment.read(arguments.recipe, settings, trust=True)
    fixed = {token[2:].partition("=")[0].replace("-", "_") for token in settings if token.startswith("--")}
    given = dict(map(parse_range, arguments.range))
    own = recipe.ranges(arguments.recipe)
    for key in [key for key in own if any(overlap(key, typed, tree) for typed in (*fixed, *given))]:
        logger.info("the recipe's own range of %s is left out: what was typed sets it", key)
        del own[key]
    name = arguments.name or Path(arguments.recipe).stem
    folder = arguments.runs / "tune" / name
    places: Any = {"folder": folder, "runs": arguments.runs, "progress": not arguments.quiet}
    places["trust"] = trusted(recipe.path_of(arguments.recipe), named=True)
    ranges = own | given
    if arguments.only is not None:
        number, rung = _numbers(arguments.only)
        try_one(tree, ranges, plan, number=number, rung=rung, **places)
        return
    typed, crew = without(arguments.typed, *JOBS, "--resume"), crew_of(arguments)
    workers = Workers(
        crew=crew,
        command=lambda number, rung: (*typed, "--only", f"{number}.{rung}"),
        again=shlex.join(["layerwise", *without(arguments.typed, "--resume"), "--resume"]),
    )
    found = tune(
        tree,
        ranges,
        plan,
        name=arguments.recipe,
        resume=arguments.resume,
        workers=None if crew.alone else workers,
        **places,
    )
    say(found.to_markdown())
    best, tuned = shlex.quote(str(folder / "best.yaml")), shlex.quote(f"{name}-tuned")
    again = f"layerwise train {best} --name {tuned}"
    if _names_code(load_yaml(folder / "best.yaml")):
        again += " --trust"
    if plan.weights != "last":
        again += f", then layerwise evaluate runs/{tuned} --weights {plan.weights}"
    say(f"\nsearch: {folder}\nthe winner on the test images: {again}")


def _numbers(text: str) -> tuple[int, int]:
    """Trial and rung.

    >>> _numbers("12.0")
    (12, 0)
    """
    if not re.fullmatch(r"\d+\.\d+", text):
        raise ConfigError(f"--only {text} is no trial and rung; type for example --only 3.0")
    number, rung = text.split(".")
    return int(number), int(rung)


def _names_code(value: Any) -> bool:
    """Whether settings name something of the user's own, which a recipe in a search's folder may do only with --trust.

    >>> _names_code({"method": {"name": "my_module:Mine"}}), _names_code({"attacks": ["at:12/255:fgsm"]})
    (True, False)
    """
    if isinstance(value, str):
        return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*.*", value) is not None and ":" not in value.partition(":")[2]
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_names_code, below))


COMMAND = Command(
    summary="search for better settings of a recipe",
    text=TEXT,
    add_arguments=add_arguments,
    run=run,
    takes_settings=True,
)
