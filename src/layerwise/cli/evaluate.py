"""`layerwise evaluate`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerwise.cli.arguments import JOBS, Command, add_jobs, add_quiet, add_trust, crew_of, parse_path, without
from layerwise.cli.train import show_help
from layerwise.errors import ConfigError

if TYPE_CHECKING:
    from layerwise.experiments.jobs import Crew

TEXT = """\
Evaluate finished runs, as their recipes say, by a suite, or otherwise.

  layerwise evaluate runs/slat-digits --suite quick
                                       a first look in minutes
  layerwise evaluate runs/slat-digits --suite standard --num-examples 1000
                                       PGD-50-10 and AutoAttack
  layerwise evaluate runs/slat-digits --weights best
  layerwise evaluate runs/* --suite quick
                                       several runs, one after the other
  layerwise evaluate runs/* --suite quick --jobs 4
                                       four at once
  layerwise evaluate runs/slat-digits --evaluation.attacks "[clean, pgd-50-10]"
  layerwise evaluate runs/a --evaluation.measures "[landscape, alignment]"
  layerwise evaluate runs/a --evaluation.measures corruptions \\
      --evaluation.baseline runs/standard --record evaluation-c
                                       mCE against a run with the same record
  layerwise evaluate runs/a --audit --sites layer1 layer2 --radii 0.1,0.3
                                       what noise each layer stands, too
  layerwise list suites                what is in each; also: list attacks,
                                       list measures, list corruptions

A suite's settings are changed by what is typed beside it. After Ctrl-C, or
whatever else stopped it, the same command goes on; --fresh begins anew.

The record goes into the run's folder (or --output): evaluation.json where nothing differs
from the run's own settings, evaluation-SUITE.json, evaluation-best.json for
other weights, evaluation-audit.json with --audit, evaluation-custom.json for
other settings, or where --record says. `layerwise evaluate RUN --help` lists every setting.
"""


def add_arguments(parser: Any) -> None:
    """The command's arguments."""
    parser.add_argument("folders", nargs="*", help="run folders, such as runs/slat-digits")
    parser.add_argument(
        "--suite", help="what to evaluate by: quick, standard, paper-slat, ... (`layerwise list suites`)"
    )
    parser.add_argument(
        "--num-examples", type=int, help="a random subset of so many images, the same for the same seed"
    )
    parser.add_argument("--seed", type=int, help="of the subset and of all random numbers (default: 0)")
    parser.add_argument(
        "--audit", action="store_true", help="also the latent audit: noise at each layer, over its relative size"
    )
    parser.add_argument("--sites", nargs="+", help="of the audit: which layers (default: some of the blocks)")
    parser.add_argument("--radii", help="of the audit: sizes relative to the activation, such as 0.05,0.1,0.3")
    parser.add_argument("--steps", type=int, help="of the audit: PGD's steps at each radius (default: 10)")
    parser.add_argument("--weights", default="last", help="last, best, ema or best-ema (default: last)")
    parser.add_argument("--record", help="name of the record in the run's folder, without .json")
    parser.add_argument("--fresh", action="store_true", help="begin anew, whatever an interrupted evaluation has done")
    parser.add_argument("--output", type=parse_path, help="folder of the record (default: the run's own)")
    add_jobs(parser)
    add_trust(parser)
    add_quiet(parser)
    parser.add_argument("-h", "--help", action="store_true", help="this, and with a run every setting")


def run(arguments: Any, settings: list[str]) -> None:
    """Evaluate, in as many processes as torchrun has started."""
    if arguments.help:
        show_help(arguments, next(iter(arguments.folders), None), settings)
        return
    if not arguments.folders:
        raise ConfigError("evaluate needs a run folder, for example: layerwise evaluate runs/slat-digits")
    folders = _folders(arguments.folders)
    if len(folders) > 1 and arguments.output is not None:
        raise ConfigError(f"--output takes the record of one run, not of {len(folders)}; evaluate them one by one")
    from layerwise.evaluation.ranks import launched
    from layerwise.experiments.experiment import check_run
    from layerwise.experiments.trust import trusting
    from layerwise.training.ranks import survived

    with survived(lambda: f"go on with: {_again(arguments, folders)}"), launched(), trusting(arguments.trust):
        for folder in folders:
            check_run(folder)
        crew = crew_of(arguments)
        if len(folders) > 1 and not crew.alone:
            _side_by_side(crew, folders, arguments, settings)
            return
        while folders:
            _evaluate(folders, arguments, settings)
            del folders[0]


def _side_by_side(crew: Crew, folders: list[Path], arguments: Any, settings: list[str]) -> None:
    """Evaluate each in a job, those that are others' baseline first; what a job says is shown when it has ended.

    Raises:
        ConfigError: torchrun has started this process: it shares out the images of one run, jobs the runs.
        LayerwiseError: a job did not end well.
    """
    from layerwise.cli.console import tell_messages
    from layerwise.experiments.experiment import read_run
    from layerwise.experiments.jobs import Job, not_all

    if "WORLD_SIZE" in os.environ:
        raise ConfigError("torchrun shares out the images of each run, --jobs the runs; leave out one of the two")
    tell_messages(quiet=arguments.quiet)
    found = [read_run(folder, [*_suite(arguments), *settings])[0].evaluation.baseline for folder in folders]
    bases = {Path(base).resolve() for base in found if base}
    own = [token for token in without(arguments.typed, *JOBS) if token not in arguments.folders]
    jobs = {folder: Job(name=folder.name, command=(*own, str(folder)), runs=folder.parent) for folder in folders}

    def ended(job: Job) -> None:
        folders.remove(next(folder for folder, other in jobs.items() if other is job))
        sys.stdout.write(job.out.read_text(encoding="utf-8") + "\n")
        sys.stdout.flush()

    def again() -> str:
        return _again(arguments, folders)

    for is_base in (True, False):
        now = [job for folder, job in jobs.items() if (folder.resolve() in bases) is is_base]
        if lost := crew.run(now, total=len(now), again=again, ended=ended, show=not arguments.quiet):
            raise not_all(lost, again())


def _folders(given: list[str]) -> list[Path]:
    """The folders, with those that a pattern in quotes stands for, each once."""
    found: list[Path] = []
    for text in given:
        named = [Path(text).expanduser()]
        if not named[0].exists() and any(sign in text for sign in "*?["):
            named = sorted(path for path in map(Path, glob(text)) if (path / "config.yaml").is_file())
            if not named:
                raise ConfigError(f"there is no run {text}")
        found += [path for path in named if path not in found]
    return found


def _evaluate(folders: list[Path], arguments: Any, settings: list[str]) -> None:
    """Evaluate the first of them."""
    from layerwise.cli.console import say, tell_messages
    from layerwise.evaluation.ranks import rank_and_world
    from layerwise.experiments import experiment

    tell_messages(quiet=arguments.quiet)
    folder, which = folders[0], arguments.weights
    output = arguments.output or folder
    if not os.access(next(path for path in (output, *output.parents) if path.exists()), os.W_OK):
        raise ConfigError(f"{output} may only be read; type --output FOLDER, where the record is to go")
    chosen, model, data = experiment.open_run(folder, [*_suite(arguments), *settings], which=which)
    # Where the data are changes nothing in the record.
    differs = any(s.startswith("--") and not s.startswith(("--data.root", "--data.download")) for s in settings)
    differs |= arguments.num_examples is not None or arguments.seed is not None
    audit = _audit(arguments)
    kind = arguments.suite or ("custom" if differs else "audit" if audit else None)
    record = arguments.record or "-".join(filter(None, ["evaluation", None if which == "last" else which, kind]))
    name = folder.resolve().name if which == "last" else f"{folder.resolve().name} ({which} weights)"
    try:
        evaluation = experiment.evaluate_run(
            model,
            data,
            _beside(replace(chosen.evaluation, measures=[*chosen.evaluation.measures, *audit]), folder, output),
            threat=chosen.threat,
            name=name,
            folder=output,
            record=record,
            progress=not arguments.quiet,
            load=experiment.load,
            fresh=arguments.fresh,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped by Ctrl-C, what is done is kept; go on with: {_again(arguments, folders)}"
        ) from None
    if rank_and_world()[0]:
        return
    say(evaluation.to_markdown())
    say(f"\nrecord: {output / record}.json")


def _beside(settings: Any, folder: Path, output: Path) -> Any:
    """The settings for a record that lies elsewhere: a run that is its own base is so there, too."""
    base = settings.baseline
    same = base and Path(base).resolve() == folder.resolve()
    return replace(settings, baseline=str(output)) if same else settings


def _audit(arguments: Any) -> list[str]:
    """The measure that `--audit` and what bounds it stand for.

    Raises:
        ConfigError: a bound without `--audit`.
    """
    bounds = {"radii": arguments.radii, "steps": arguments.steps}
    given = [f"{name}={value}" for name, value in bounds.items() if value is not None]
    if not arguments.audit:
        if named := [name for name in ("sites", "radii", "steps") if getattr(arguments, name) is not None]:
            raise ConfigError(f"--{named[0]} is the audit's; type --audit too")
        return []
    return [" ".join(["audit", *(arguments.sites or ()), *given])]


def _again(arguments: Any, folders: list[Path]) -> str:
    """What goes on with the evaluations that are not done."""
    options = [token for token in arguments.typed[1:] if token != "--fresh" and token not in arguments.folders]
    return f"layerwise {shlex.join(['evaluate', *map(str, folders), *options])}"


def _suite(arguments: Any) -> list[str]:
    """The settings that a suite and the command's own options stand for."""
    from layerwise.experiments.suites import find_suite

    settings: dict[str, Any] = dict(find_suite(arguments.suite).settings) if arguments.suite else {}
    own = {"num_examples": arguments.num_examples, "seed": arguments.seed}
    settings |= {key: value for key, value in own.items() if value is not None}
    dotted = {key if "." in key else f"evaluation.{key}": value for key, value in settings.items()}
    return [f"--{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in dotted.items()]


COMMAND = Command(
    summary="evaluate finished runs again", text=TEXT, add_arguments=add_arguments, run=run, takes_settings=True
)
