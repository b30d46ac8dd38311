"""The command line: `layerwise demo | train | evaluate | report | sites | list | reproduce | tune | bench | doctor`."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from layerwise.cli.arguments import parse
from layerwise.errors import ConfigError, LayerwiseError

Command = Callable[[Any, list[str]], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    from layerwise.cli.console import complain

    try:
        arguments, settings = parse(list(sys.argv[1:] if argv is None else argv))
        COMMANDS[arguments.command](arguments, settings)
        sys.stdout.flush()
    except LayerwiseError as error:
        complain(str(error), own=isinstance(error.__cause__, OSError))
        return 2
    except BrokenPipeError:  # `layerwise list recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free space" if full else "check the path and its permissions, or choose another folder"
        complain(f"the system refused{where}: {error.strerror or error}; {advice}, then run the same again", own=True)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, and torch need not be imported for this
            raise
        complain(
            "the accelerator's memory is full; type a smaller --training.batch_size, --training.accumulate 2 (the same batch in two "
            "parts), or a smaller --evaluation.batch_size",
            own=True,
        )
        return 2
    except KeyboardInterrupt as interrupt:
        complain(str(interrupt) or "stopped by Ctrl-C", what="")
        return 130
    return 0


def demo_command(arguments: Any, settings: list[str]) -> None:
    """`layerwise demo`."""
    from layerwise.cli.console import say, tell_messages
    from layerwise.cli.demo import demo

    tell_messages(quiet=arguments.quiet)
    say(demo(arguments.runs, seeds=arguments.seeds, progress=not arguments.quiet))


def train_command(arguments: Any, settings: list[str]) -> None:
    """`layerwise train`."""
    from layerwise.cli.console import say, tell_messages
    from layerwise.evaluation.ranks import rank_and_world
    from layerwise.experiments import experiment

    tell_messages(quiet=arguments.quiet)
    if arguments.help:
        _help(arguments, arguments.recipe, settings)
        return
    if arguments.recipe is None:
        raise ConfigError(
            "train needs a recipe; `layerwise list recipes` shows them, for example: layerwise train slat-digits"
        )
    folder, source, trust = _run_folder(arguments)
    chosen, tree = experiment.read(source, settings)
    if arguments.dry_run:
        from layerwise.experiments.plan import plan

        say(plan(chosen, trust=trust))
        return
    progress = not arguments.quiet
    if arguments.seeds is not None:
        from layerwise.report import compare

        try:
            folders = experiment.train_seeds(
                tree, folder=folder, seeds=arguments.seeds, resume=arguments.resume, progress=progress
            )
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"{stop}; for all seeds type the same again with --resume") from None
        say(compare(folders).to_markdown())
        return
    _, judgement = experiment.train(
        chosen, tree, folder=folder, resume=arguments.resume, progress=progress, trust=trust
    )
    if rank_and_world()[0]:
        return
    say(judgement.to_markdown())
    say(f"\nrun folder: {folder}")


def _run_folder(arguments: Any) -> tuple[Path, str, bool]:
    """The run's folder, the recipe or, for `--resume FOLDER`, the run's own configuration, and whether to import what it names."""
    from layerwise.experiments import experiment

    given = Path(arguments.recipe)
    is_run = (given / "config.yaml").is_file()
    if is_run and not arguments.resume:
        raise ConfigError(f"{given} is a run folder; type `layerwise train --resume {given}` to go on with it")
    if is_run:
        if arguments.seeds is not None or arguments.name is not None:
            raise ConfigError("--resume FOLDER goes on with that one run; leave out --seeds and --name")
        return given, str(given / "config.yaml"), arguments.trust
    if given.is_dir() or (arguments.resume and len(given.parts) > 1 and given.suffix not in (".yaml", ".yml")):
        experiment.check_run(given)
    return arguments.runs / (arguments.name or given.stem), arguments.recipe, True


def _help(arguments: Any, source: str | None, settings: list[str]) -> None:
    """The command's own arguments and, where a recipe or run is named, every setting of it."""
    from layerwise.cli.console import say
    from layerwise.experiments import experiment
    from layerwise.spelling import written

    say(arguments.parser.format_help())
    if source is None:
        return
    run = Path(source) / "config.yaml"
    _, tree = experiment.read(str(run) if run.is_file() else source, settings)
    say(f"settings of {source}, each with its value; the class of a .name decides which follow:\n")
    for leaf in experiment.SCHEMA.leaves(tree):
        if arguments.command == "train" or leaf.key.startswith("evaluation."):
            value: Any = tree
            for part in leaf.key.split("."):
                value = None if value is None else value[part]
            say(f"  --{leaf.key} {written(value, leaf.type)}\n        {leaf.help}")


def evaluate_command(arguments: Any, settings: list[str]) -> None:
    """`layerwise evaluate`, in as many processes as torchrun has started."""
    from layerwise.evaluation.ranks import launched

    with launched():
        _evaluate(arguments, settings)


def _evaluate(arguments: Any, settings: list[str]) -> None:
    from layerwise.cli.console import say, tell_messages
    from layerwise.evaluation.ranks import rank_and_world
    from layerwise.experiments import experiment

    tell_messages(quiet=arguments.quiet)
    folder, which = arguments.folder, arguments.weights
    if arguments.help:
        _help(arguments, None if folder is None else str(folder), settings)
        return
    if folder is None:
        raise ConfigError("evaluate needs a run folder, for example: layerwise evaluate runs/slat-digits")
    chosen, model, data = experiment.open_run(
        folder, [*_suite(arguments), *settings], trust=arguments.trust, which=which
    )
    # Where the data are changes nothing in the record.
    differs = any(s.startswith("--") and not s.startswith(("--data.root", "--data.download")) for s in settings)
    differs |= arguments.num_examples is not None or arguments.seed is not None
    kind = arguments.suite or ("custom" if differs else None)
    record = arguments.record or "-".join(filter(None, ["evaluation", None if which == "last" else which, kind]))
    name = folder.resolve().name if which == "last" else f"{folder.resolve().name} ({which} weights)"
    try:
        judgement = experiment.judge(
            model,
            data,
            chosen.evaluation,
            name=name,
            folder=folder,
            record=record,
            progress=not arguments.quiet,
            load=partial(experiment.load, trust=arguments.trust),
            fresh=arguments.fresh,
        )
    except KeyboardInterrupt:
        again = shlex.join(t for t in arguments.typed if t != "--fresh")
        raise KeyboardInterrupt(f"stopped by Ctrl-C, what is done is kept; go on with: layerwise {again}") from None
    if rank_and_world()[0]:
        return
    say(judgement.to_markdown())
    say(f"\nrecord: {folder / record}.json")


def _suite(arguments: Any) -> list[str]:
    """The settings that a suite and the command's own options stand for."""
    from layerwise.experiments.suites import find_suite

    settings: dict[str, Any] = dict(find_suite(arguments.suite).settings) if arguments.suite else {}
    own = {"num_examples": arguments.num_examples, "seed": arguments.seed}
    settings |= {key: value for key, value in own.items() if value is not None}
    return [f"--evaluation.{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in settings.items()]


def report_command(arguments: Any, settings: list[str]) -> None:
    """`layerwise report`."""
    from layerwise.cli.console import say
    from layerwise.report import report

    made = report(arguments.folders, record=arguments.record)
    if arguments.format != "html":
        # As it is, not aligned for a terminal: it goes into a file or another program.
        sys.stdout.write(made.to_markdown() if arguments.format == "md" else made.to_json())
        return
    path = made.write(arguments.output)
    say(made.summary())
    say(f"\nreport: {path}")


def sites_command(arguments: Any, settings: list[str]) -> None:
    """`layerwise sites`."""
    import torch

    from layerwise import models
    from layerwise.cli.console import say, show_table
    from layerwise.core.sites import Sites
    from layerwise.core.tracing import trace
    from layerwise.experiments import recipe
    from layerwise.experiments.experiment import current_folder_on_path
    from layerwise.spelling import parse_options, parse_shape

    if arguments.model in recipe.names():
        raise ConfigError(
            f"{arguments.model} is a recipe; type `layerwise train {arguments.model} --dry-run` for the sites of its method"
        )
    current_folder_on_path()
    shape = parse_shape(arguments.shape)
    model = models.build(arguments.model, shape=shape, **parse_options(arguments.options))
    example = torch.zeros(2, *shape)
    if arguments.select:
        selection = arguments.select[0] if len(arguments.select) == 1 else arguments.select
        with Sites(model, selection, example=example) as sites:
            say(str(sites))
        return
    rows = [(str(c.site), type(c.module).__name__, str(tuple(c.shape[1:]))) for c in trace(model, example)]
    show_table(("site", "module", "shape of one image there"), rows)
    say(
        "\nchoose with --select: names (conv1 layer1), a regular expression ('layer[12]'), 'affine outputs', 'first(4)'"
    )


def list_command(arguments: Any, settings: list[str]) -> None:
    """`layerwise list`."""
    from layerwise.cli.console import show_table
    from layerwise.cli.listing import rows

    show_table(*rows(arguments.what))


def reproduce_command(arguments: Any, settings: list[str]) -> None:
    """`layerwise reproduce`."""
    from layerwise.cli.reproduce import reproduce_command as run

    run(arguments, settings)


def tune_command(arguments: Any, settings: list[str]) -> None:
    """`layerwise tune`."""
    from layerwise.cli.tune import tune_command as run

    run(arguments, settings)


def bench_command(arguments: Any, settings: list[str]) -> None:
    """`layerwise bench`."""
    from layerwise.cli.bench import bench_command as run

    run(arguments, settings)


def doctor_command(arguments: Any, settings: list[str]) -> None:
    """`layerwise doctor`."""
    from layerwise.cli.console import say
    from layerwise.cli.doctor import doctor

    report, healthy = doctor()
    say(report)
    if not healthy:
        raise LayerwiseError("a check failed; put what is above into a bug report")


COMMANDS: dict[str, Command] = {
    "demo": demo_command,
    "train": train_command,
    "evaluate": evaluate_command,
    "report": report_command,
    "sites": sites_command,
    "list": list_command,
    "reproduce": reproduce_command,
    "tune": tune_command,
    "bench": bench_command,
    "doctor": doctor_command,
}

if __name__ == "__main__":
    sys.exit(main())
