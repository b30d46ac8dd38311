"""`layerwise report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from layerwise.cli.arguments import Command, add_trust, parse_path

TEXT = """\
Put runs side by side on one page: verdicts first, then tables and figures.

  layerwise report runs/slat-digits runs/pgd-digits
                                       writes report/report.html (one file that
                                       needs nothing else), .md and .json beside
  layerwise report runs/slat-digits --format md
                                       markdown for a pull request

  layerwise report runs/* --baseline runs/standard-digits
                                       the others' differences from that run,
                                       with intervals and a paired test

The page shows what the run folders hold, and names the command for what they
lack. Seeds of one recipe (-seed0, -seed1, ...) are one entry; a run that is
still training has its curves. A report on other runs does not take the place
of one in the folder `report`: it goes to report-2, report-3, ...
"""


def add_arguments(parser: Any) -> None:
    """The command's arguments."""
    parser.add_argument(
        "folders", nargs="+", type=parse_path, help="run folders; those of one recipe's seeds become one row"
    )
    parser.add_argument(
        "--output",
        type=parse_path,
        help="folder of report.html, report.md and report.json (default: report, or report-2, ... beside one on other runs)",
    )
    parser.add_argument(
        "--baseline", type=parse_path, metavar="RUN", help="the run that others are compared with (default: the first)"
    )
    parser.add_argument(
        "--record", help="which record of the runs (default: evaluation-standard where all have it, else evaluation)"
    )
    add_trust(parser)
    parser.add_argument(
        "--format", choices=("html", "md", "json"), default="html",
        help="html writes the page and its markdown and JSON; md and json go to standard output instead (default: html)",
    )  # fmt: skip


def run(arguments: Any, settings: list[str]) -> None:
    """Write the page."""
    from layerwise.cli.console import say
    from layerwise.report import report

    made = report(arguments.folders, record=arguments.record, baseline=arguments.baseline, trust=arguments.trust)
    if arguments.format != "html":
        # As it is, not aligned for a terminal: it goes into a file or another program.
        sys.stdout.write(made.to_markdown() if arguments.format == "md" else made.to_json())
        return
    path = made.write(arguments.output or made.place(Path("report")))
    say(made.summary())
    say(f"\nreport: {path}")


COMMAND = Command(summary="put runs side by side on one page", text=TEXT, add_arguments=add_arguments, run=run)
