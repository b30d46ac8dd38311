"""`layerwise report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from layerwise.cli.arguments import Command, add_trust

TEXT = """\
Put runs side by side on one page: verdicts first, then tables and figures.

  layerwise report runs/slat-digits runs/pgd-digits
                                       writes report/report.html (one file that
                                       needs nothing else), .md and .json beside
  layerwise report runs/slat-digits --format md
                                       markdown for a pull request

The page shows what the run folders hold, and names the command for what they
lack. Seeds of one recipe (-seed0, -seed1, ...) are one entry.
"""


def add_arguments(parser: Any) -> None:
    """The command's arguments."""
    parser.add_argument("folders", nargs="+", type=Path, help="run folders; those of one recipe's seeds become one row")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("report"),
        help="folder of report.html, report.md and report.json (default: report)",
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

    made = report(arguments.folders, record=arguments.record, trust=arguments.trust)
    if arguments.format != "html":
        # As it is, not aligned for a terminal: it goes into a file or another program.
        sys.stdout.write(made.to_markdown() if arguments.format == "md" else made.to_json())
        return
    path = made.write(arguments.output)
    say(made.summary())
    say(f"\nreport: {path}")


COMMAND = Command(summary="put runs side by side on one page", text=TEXT, add_arguments=add_arguments, run=run)
