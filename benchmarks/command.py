"""The command line of a benchmark that times training steps: the options of `layerwise bench step`, and its record."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from layerwise.cli.bench import add_setup, measured
from layerwise.cli.console import complain
from layerwise.errors import LayerwiseError
from layerwise.experiments.bench.steps import Record


def timed(
    name: str,
    text: str | None,
    measure: Callable[..., Record],
    table: Callable[[Record], Any],
    methods: Sequence[str],
    argv: Sequence[str] | None,
) -> int:
    """Measure, print the table, and write the record.

    Args:
        name: of the module below `benchmarks`.
        text: what its help says.
        measure: makes the record, as `bench_steps` does.
        table: header and rows of it.
        methods: those that are measured where none is typed.
        argv: what was typed; None is the process's own.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=text, formatter_class=argparse.RawTextHelpFormatter
    )
    add_setup(parser)
    arguments = parser.parse_args(argv)
    try:
        measured(arguments, measure, table, arguments.methods or methods)
    except LayerwiseError as error:
        complain(str(error))
        return 2
    return 0
