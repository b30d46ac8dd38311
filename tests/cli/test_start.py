"""A start without waiting: what needs no tensor imports no torch. No test looks at a time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from layerwise.cli import list as listing
from layerwise.cli.main import commands
from layerwise.cli.without_torch import HEAVY
from layerwise.core import registry
from layerwise.experiments import recipe
from tests.command import Command, Said, layerwise

__all__ = ["layerwise"]

WATCH = f"""
import sys
ran = set()
def watch(event, arguments):
    if event == "exec" and hasattr(arguments[0], "co_filename"):
        ran.update(set(arguments[0].co_filename.split("/site-packages/")[-1].split("/")[:1]) & set({HEAVY!r}))
sys.addaudithook(watch)
"""
"""Remembers which of the heavy packages have run any code."""


def fresh(code: str) -> str:
    """What a fresh process prints; it says at the end which heavy packages have run."""
    done = subprocess.run([sys.executable, "-c", WATCH + code + "\nprint(sorted(ran))"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_watch_sees_what_runs() -> None:
    assert "'numpy'" in fresh("import numpy")


def test_help_imports_nothing_heavy() -> None:
    for argv in (["--help"], ["--version"], *([name, "--help"] for name in commands())):
        out = fresh(f"from layerwise.cli.main import main\ntry:\n    main({argv!r})\nexcept SystemExit:\n    pass")
        assert out.endswith("\n[]\n"), argv
        assert len(out.splitlines()) > 1


def test_what_reproduction_costs_is_data() -> None:
    assert fresh("from layerwise.cli.main import main\nmain(['reproduce', 'list'])").endswith("\n[]\n")


def test_lists_without_torch_are_those_with_torch() -> None:
    code = f"""
import json
from layerwise.cli.list import rows
print(json.dumps({{what: rows(what) for what in {list(listing.LISTS)!r}}}))
assert not set({HEAVY!r}) & set(sys.modules), "a stand-in was left behind"
import layerwise
assert "methods" not in vars(layerwise)
"""
    found, ran = fresh(code).splitlines()
    assert json.loads(found) == json.loads(json.dumps({what: listing.rows(what) for what in listing.LISTS}))
    assert ran == "[]"


def test_what_a_stand_in_cannot_do_is_done_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def once() -> listing.Rows:
        calls.append(1)
        if len(calls) == 1:
            raise TypeError("a stand-in has no arithmetic")
        return ("a",), [("b",)]

    monkeypatch.setattr(listing, "LISTS", {"things": once})
    assert listing.rows("things") == (("a",), [("b",)])


def test_torch_works_after_a_listing() -> None:
    code = """
from layerwise.cli.list import rows
rows("methods")
import layerwise as lw
from layerwise.core import registry
from layerwise.experiments import recipe
print(float(lw.CrossEntropy()(__import__("torch").zeros(1, 2), __import__("torch").tensor([0]))))
"""
    assert fresh(code).startswith("0.693")


def test_every_kind_that_is_listed_has_a_list() -> None:
    assert {kind.listed for kind in registry.KINDS.values() if kind.listed} <= set(listing.LISTS)


def test_recipes_are_grouped(layerwise: Command) -> None:
    groups = layerwise("list", "recipes").out.split("\n\n")[1:]
    heads = {group.partition("\n")[0]: group.splitlines()[1:] for group in groups}
    assert list(heads) == list(recipe.protocols())
    (found,) = [head for head, rows in heads.items() if any(row.startswith("slat-digits ") for row in rows)]
    assert "digits" in found
    assert all(row[:1].isalnum() for rows in heads.values() for row in rows)


@pytest.mark.parametrize("argv", [["train", "slat-digits", "--quiet"], ["list", "measures"], ["doctor"]])
def test_ctrl_c_during_imports_is_a_sentence(tmp_path: Path, argv: list[str]) -> None:
    """The signal comes at the import of a module of the package, wherever that is."""
    code = """
import os, signal, sys
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Stop())
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background may have it ignored
from layerwise.cli.main import main
sys.exit(main(sys.argv[2:]))
"""
    at = {"train": "layerwise.core.sites", "list": "layerwise.attacks.base", "doctor": "layerwise.training.run"}
    command = [sys.executable, "-c", code, at[argv[0]], *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped by Ctrl-C\n")


def test_ctrl_c_that_an_import_makes_another_error_of_is_a_sentence(
    layerwise: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when NumPy is stopped, whose next import fails with an ImportError."""

    def broken() -> listing.Rows:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("cannot load module more than once per process") from None
        raise AssertionError("not reached")

    monkeypatch.setattr(listing, "LISTS", {"things": broken})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert layerwise("list", "things") == Said(130, "", "stopped by Ctrl-C\n")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
