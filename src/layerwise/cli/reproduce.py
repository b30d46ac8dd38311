"""`layerwise reproduce`: the papers' tables and figures, ours beside theirs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerwise.cli.arguments import JOBS, Command, add_jobs, add_quiet, add_runs, crew_of, parse_path, without
from layerwise.errors import ConfigError, LayerwiseError, did_you_mean

if TYPE_CHECKING:
    from layerwise.reproduce.definitions import Item
    from layerwise.reproduce.scales import Scale

TEXT = """\
Run the papers' tables and figures, and put ours beside theirs.

  layerwise reproduce list                 every table and figure, and its cost
  layerwise reproduce slat/table-1         train what is missing, and compare
  layerwise reproduce anp deep-defense/table-1 --scale reduced
  layerwise reproduce all --scale full --plan
                                           what it would cost; nothing is run
  layerwise reproduce deep-defense/table-1 --scale full --rows "LeNet*"
                                           these rows; the others stay
  layerwise reproduce slat --scale full --jobs 8
                                           eight systems at once
  layerwise reproduce fastat               the leaderboard of fast training
  layerwise reproduce render results/full/deep-defense/table-1.json
                                           verdicts anew from a record's numbers

Scales: smoke (two cores, proves that the machinery runs), reduced (a GPU,
minutes a system), full (the paper's setting), sample (full training, 1,000 test
images: one CPU). What was trained or measured is
reused, what was interrupted goes on, what fails is told in the result.
"""


def add_arguments(parser: Any) -> None:
    """The command's arguments."""
    parser.add_argument(
        "what", nargs="+", help="list, all, a paper, PAPER/TABLE ..., or render and the records to render"
    )
    parser.add_argument("--scale", default="smoke", help="smoke, reduced, full or sample (default: smoke)")
    parser.add_argument(
        "--rows", nargs="+", default=[], metavar="ROW", help="run these rows only; * stands for any text (default: all)"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="so many runs a row (default: the item's own number)")
    parser.add_argument("--plan", action="store_true", help="say what it would cost, and stop")
    parser.add_argument(
        "--output", type=parse_path, default=Path("results"), help="folder of the results (default: results)"
    )
    parser.add_argument("--data.root", dest="root", metavar="FOLDER", help="folder that holds the data sets")
    parser.add_argument(
        "--data.download", dest="download", default="false", choices=("true", "false"), help="fetch what is missing"
    )
    parser.add_argument(
        "--only", metavar="SYSTEM", help="train and measure this run folder, and make no record: what --jobs starts"
    )
    add_jobs(parser)
    add_runs(parser)
    add_quiet(parser)


def run(arguments: Any, settings: list[str]) -> None:
    """Run them, or say what that would cost."""
    from layerwise.cli.console import say, show_table, tell_messages

    what, *rest = arguments.what
    if what == "list":
        if rest:
            raise ConfigError(f"`reproduce list` takes nothing more, found {rest[0]!r}; leave it out")
        _list()
        return
    from layerwise.core.checks import at_least
    from layerwise.experiments.jobs import not_all
    from layerwise.reproduce import costs, definitions, runner
    from layerwise.reproduce.record import failures, nothing_ran
    from layerwise.reproduce.render import INDEX, render, to_markdown
    from layerwise.reproduce.scales import scale

    tell_messages(quiet=arguments.quiet)
    if what == "render":
        if not rest:
            raise ConfigError(
                "render needs records; type for example: layerwise reproduce render results/full/deep-defense/table-1.json"
            )
        for record in render([Path(name) for name in rest]):
            say(to_markdown(record))
        return
    chosen = list({item.id: item for name in arguments.what for item in definitions.find(name)}.values())
    size = scale(arguments.scale).on_data(arguments.root, download=arguments.download == "true")
    if arguments.seeds is not None:
        at_least("--seeds", arguments.seeds, 1)
        size = replace(size, seeds=arguments.seeds)
    if arguments.plan:
        show_table(*costs.plan(chosen, size, arguments.runs / runner.PLACE / size.name))
        say(costs.ASSUMED)
        return
    if arguments.only is not None:
        _prepare_one(chosen, size, arguments)
        return
    lost, whole = _side_by_side(chosen, size, arguments)
    made = []
    try:
        places = {"output": arguments.output, "runs": arguments.runs}
        for record in runner.reproduce(whole, size, **places, rows=arguments.rows, progress=not arguments.quiet):
            say(to_markdown(record) if len(chosen) == 1 else f"{record.item}: done")
            made.append(record)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; type the same again, and it goes on where it was") from None
    if made:
        say(f"\nresults: {arguments.output / size.name / INDEX}")
    if lost:
        raise not_all(lost, _again(arguments))
    if made and all(map(nothing_ran, made)) and any(map(failures, made)):
        raise LayerwiseError("nothing could be run, and each reason is told above; mend it and type the same again")


def _side_by_side(chosen: list[Item], size: Scale, arguments: Any) -> tuple[Mapping[str, str], list[Item]]:
    """Let jobs train and measure the systems; those that did not end well, and the items whose systems all did."""
    import torch

    from layerwise.experiments.jobs import Job
    from layerwise.reproduce import runner

    crew = crew_of(arguments)
    if crew.alone:
        return {}, chosen
    cells = runner.cells_of(chosen, size, arguments.rows)
    place, own = arguments.runs / runner.PLACE / size.name, without(arguments.typed, *JOBS)
    jobs = [Job(name=name, command=(*own, "--only", name), runs=place) for name in cells]
    show = not arguments.quiet
    lost = crew.run(jobs, total=len(jobs), again=lambda: _again(arguments), show=show)
    torch.set_num_threads(crew.threads)  # as in the jobs, for what is left and for the record
    return lost, [item for item in chosen if not any(item is other for name in lost for other, *_ in cells[name])]


def _prepare_one(chosen: list[Item], size: Scale, arguments: Any) -> None:
    """Train and measure one system, as a job does."""
    from layerwise.reproduce import runner

    cells = runner.cells_of(chosen, size, arguments.rows)
    if arguments.only not in cells:
        raise ConfigError(f"--only: no row is of {arguments.only!r}; {did_you_mean(arguments.only, cells)}")
    runner.prepare(cells[arguments.only], size, runs=arguments.runs, progress=not arguments.quiet)


def _again(arguments: Any) -> str:
    return shlex.join(["layerwise", *arguments.typed])


def _list() -> None:
    """Every table and figure, and its cost."""
    from layerwise.cli.console import say, show_table
    from layerwise.reproduce import listed

    header, rows, assumed = listed.read()
    show_table(header, rows)
    say(assumed)


COMMAND = Command(
    summary="run the papers' tables and figures, and put ours beside theirs",
    text=TEXT,
    add_arguments=add_arguments,
    run=run,
)
