"""How long does one wait for a command that needs no tensor, before and after?

    python benchmarks/start.py ../before .
    python benchmarks/start.py . --repeats 7 --json benchmarks/results/start.json

runs each command in a fresh process, the checkouts in turn, and prints the median processor time (user
and system, of the process and its children) and whether torch was imported. The first run of each is
left out: it compiles. A command that a checkout does not have is shown by a dash.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from both import use

COMMANDS: dict[str, list[str]] = {
    "layerwise --help": ["-m", "layerwise", "--help"],
    "layerwise train --help": ["-m", "layerwise", "train", "--help"],
    "layerwise list methods": ["-m", "layerwise", "list", "methods"],
    "layerwise list recipes": ["-m", "layerwise", "list", "recipes"],
    "layerwise schema": ["-m", "layerwise", "schema"],
    "layerwise reproduce list": ["-m", "layerwise", "reproduce", "list"],
    "import torch": ["-c", "import torch"],
    "import torch, layerwise": ["-c", "import torch, layerwise"],
    "and look at SLAT, fit, evaluate": [
        "-c",
        "import torch, layerwise as lw; lw.SLAT, lw.fit, lw.evaluate",
    ],
}
"""What is typed, and what Python is given for it."""

BEYOND = ("import torch, layerwise", "and look at SLAT, fit, evaluate")
"""Rows of which the time beyond `import torch` is what counts."""


def seconds(arguments: list[str], checkout: Path) -> float | None:
    """Processor time of one run; None if the command fails."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=use(checkout),
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return None if process.returncode else used.ru_utime + used.ru_stime


def imports_torch(arguments: list[str], checkout: Path) -> bool:
    """Whether torch is among the modules that a run imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, env=use(checkout), cwd="/", capture_output=True, text=True, check=False)
    # Its compiled part: a module of that name may stand in for it where only definitions are read.
    return any(line.rpartition("|")[2].strip() == "torch._C" for line in done.stderr.splitlines())


def measure(checkouts: dict[str, Path], repeats: int) -> dict[str, dict[str, Any]]:
    """{command: {checkout: {seconds, runs, torch}}}."""
    found: dict[str, dict[str, Any]] = {}
    for command, arguments in COMMANDS.items():
        runs: dict[str, list[float]] = {name: [] for name in checkouts}
        for turn in range(repeats + 1):
            for name, checkout in checkouts.items():
                used = seconds(arguments, checkout)
                if turn and used is not None:
                    runs[name].append(used)
        found[command] = {
            name: {
                "seconds": round(statistics.median(each), 3),
                "runs": [round(value, 3) for value in each],
                "torch": imports_torch(arguments, checkouts[name]),
            }
            for name, each in runs.items()
            if each
        }
        print(row(command, found, checkouts), flush=True)
    return found


def row(command: str, found: dict[str, dict[str, Any]], checkouts: dict[str, Path]) -> str:
    """A line of the table."""
    cells = []
    for name in checkouts:
        each = found[command].get(name)
        if each is None:
            cells.append(f"{'-':>20}")
            continue
        mark = "torch" if each["torch"] else ""
        value = each["seconds"]
        if command in BEYOND:
            beyond = value - found["import torch"][name]["seconds"]
            each["beyond torch"], mark = round(beyond, 3), f"({beyond:+.2f})"
        cells.append(f"{value:12.2f} {mark:7}")
    return f"{command:32}" + "".join(cells)


def machine() -> dict[str, Any]:
    """What computed."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
    }


def main() -> None:
    """Measure, print and write."""
    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_is)
    parser.add_argument("checkout", type=Path, nargs="+", help="folders, one or two")
    parser.add_argument("--name", nargs="*", default=[], help="what the table calls them")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    usual = ["before", "after"] if len(args.checkout) == 2 else [args.checkout[0].resolve().name]
    names = args.name or usual
    if len(names) != len(args.checkout):
        parser.error("give one or two checkouts, and a name for each of them or none")
    checkouts = dict(zip(names, args.checkout, strict=True))
    print(f"{'processor seconds':32}" + "".join(f"{name:>12}        " for name in checkouts))
    record = {"machine": machine(), "processor seconds": measure(checkouts, args.repeats)}
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
