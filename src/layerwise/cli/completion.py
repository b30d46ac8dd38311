"""Tab completion: a script for the shell, which shtab writes from the parser, with recipes, lists and settings filled in.

A script costs nothing at the tab. argcomplete was tried too: it starts Python at every tab, 0.1 s where a shell answers at once.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from layerwise.errors import ConfigError

LISTED = {
    ("train", "recipe"): "recipes",
    ("tune", "recipe"): "recipes",
    ("evaluate", "suite"): "suites",
    ("sites", "model"): "models",
    ("bench", "network"): "models",
    ("bench", "methods"): "methods",
}
"""Arguments whose values `layerwise list` knows, by command and argument."""

FOLDERS = ("folders", "baseline")
"""Arguments that are folders without saying it by their type."""


class PrintCompletion(argparse.Action):
    """`--print-completion SHELL`."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: object = None) -> None:
        from layerwise.cli.arguments import parsers
        from layerwise.cli.main import commands

        sys.stdout.write(script(str(values), *parsers(commands())))
        parser.exit()


def script(shell: str, parser: argparse.ArgumentParser, commands: Mapping[str, Any]) -> str:
    """The script for a shell.

    Args:
        shell: `bash`, `zsh`, `fish`, `tcsh` or `powershell`.
        parser: of the program.
        commands: the parser of each command, which get the settings as options.

    Raises:
        ConfigError: another shell, or shtab is not installed.
    """
    from layerwise.cli.arguments import parse_path

    try:
        import shtab
    except ImportError:
        raise ConfigError(
            "tab completion needs shtab; type pip install 'layerwise[completion]', then the same again"
        ) from None
    if shell not in shtab.SUPPORTED_SHELLS:
        raise ConfigError(f"there is no completion for {shell!r}; type one of {', '.join(shtab.SUPPORTED_SHELLS)}")
    for name, command in commands.items():
        for action in command._actions:
            if listed := LISTED.get((name, action.dest)):
                action.complete = _names_or_files(_listed(listed))
            elif action.type is parse_path or action.dest in FOLDERS:
                action.complete = shtab.FILE
        if name == "list":
            command._actions[-1].choices = _lists()
    for key, text, values in _settings():
        for name in ("train", "tune", "evaluate") if key.startswith(("evaluation", "threat")) else ("train", "tune"):
            commands[name].add_argument(f"--{key}", help=text, choices=values)
    found: str = shtab.complete(parser, shell)
    return found


def _lists() -> list[str]:
    from layerwise.cli.list import LISTS

    return list(LISTS)


def _listed(what: str) -> list[str]:
    """The names in a list; a row of one cell is a heading."""
    from layerwise.cli.list import rows

    return [row[0] for row in rows(what)[1] if len(row) > 1]


def _settings() -> Iterator[tuple[str, str, Sequence[str] | None]]:
    """Every setting of any method with its explanation, without `%`, which argparse would read, and the names that it takes."""
    from layerwise.core import registry
    from layerwise.experiments import experiment

    _, tree = experiment.read("slat-digits")
    found = {
        leaf.key: leaf.help.replace("%", "%%")
        for method in registry.entries("method")
        for leaf in experiment.SCHEMA.leaves({**tree, "method": {"name": method}})
    }
    named = {"method": "methods", "model": "models", "data": "data"}
    for section, what in named.items():
        yield section, f"{section}.name", _listed(what)
    for key, text in found.items():
        if key.removesuffix(".name") not in named:
            yield key, text, None


def _names_or_files(names: Sequence[str]) -> dict[str, Any]:
    """What completes to one of some names, or to a path, in each shell's words."""
    words = " ".join(map(shlex.quote, names))
    function = f"_layerwise_names_{zlib.crc32(words.encode())}"
    return {
        "bash": function,
        "zsh": function,
        "tcsh": "f",
        "fish": f"(printf '%s\\n' {words}; __fish_complete_path (commandline -ct))",
        "powershell": "_shtab_powershell_compgen_files",
        "preamble": {
            "bash": f'{function}() {{\n  compgen -W "{words}" -- "$1"; compgen -f -- "$1"\n}}',
            "zsh": f"{function}() {{\n  compadd -- {words}; _files\n}}",
        },
    }
