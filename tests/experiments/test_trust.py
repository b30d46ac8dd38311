"""Trust belongs to where a text comes from: nothing that is reached through a run folder imports or starts anything.

A stranger's run folder names a module whose import leaves a trace, `subprocess:Popen`, and recipes that do so. Every setting that can hold
a text is given each of them, in an own recipe, on the command line and in the run folder itself; the list of settings is generated.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

import layerwise as lw
from layerwise.core import registry
from layerwise.errors import ConfigError
from layerwise.evaluation.store import Store
from layerwise.experiments import experiment
from layerwise.experiments.settings import SCHEMA, read
from layerwise.experiments.trust import is_in_run, trusted, trusting
from layerwise.experiments.tune.trials import TRIALS, add_trial, read_trials
from layerwise.reproduce import bench, systems
from layerwise.trees import dump_yaml, load_yaml, nested, put
from tests.command import Command, layerwise, told

__all__ = ["layerwise"]  # a fixture

MODULE = "strangers_code"
CODE = """
from pathlib import Path

from torch import nn

Path("RAN").touch()

class Net(nn.Sequential):
    "A network."
    def __init__(self, num_classes=10):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))
"""
OWN = f"{MODULE}:Net"
SHELL = {"name": "subprocess:Popen", "options": {"args": "touch RAN", "shell": True}}
QUICK = [
    "--training.max_steps=2",
    "--training.eval_every=0",
    "--evaluation.attacks=[clean]",
    "--evaluation.num_examples=4",
]
SOURCES = ("stranger", "stranger/p.yaml", "stranger/deep/p.yaml", "stranger/config.yaml", "stranger/shell.yaml")
"""What a setting may name: a run folder, and recipes in it."""


def forget() -> None:
    """As in a fresh process: the stranger's module is not imported, and nobody has named it."""
    sys.modules.pop(MODULE, None)
    for key in [key for key in registry._IMPORTED if MODULE in key[1]]:
        del registry._IMPORTED[key]
    Path("RAN").unlink(missing_ok=True)


def ran() -> bool:
    """Whether the stranger's code has run."""
    return Path("RAN").exists() or MODULE in sys.modules


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stranger's finished run, and a module beside it that can be imported from there."""
    place = tmp_path_factory.mktemp("place")
    (place / f"{MODULE}.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "path", list(sys.path))
        # Plain, since the walk below would otherwise only find that the sites are not there.
        chosen, tree = read("standard-digits", [*QUICK, f"--model.name={OWN}"])
        experiment.train(chosen, tree, folder=Path("stranger"), progress=False)
        forget()
    deep = place / "stranger/deep"
    deep.mkdir()
    for folder in (deep, place / "stranger"):
        (folder / "p.yaml").write_text(dump_yaml({"extends": "standard-digits", "model": {"name": OWN}}))
        (folder / "shell.yaml").write_text(dump_yaml({"extends": "standard-digits", "model": SHELL}))
    return place


@pytest.fixture
def place(made: Path, layerwise: Command, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, as the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    yield tmp_path
    forget()


def is_text(kind: Any) -> bool:
    """Whether a value of a type can hold a text that could name something."""
    if kind in (str, Any):
        return True
    return get_origin(kind) is not None and any(map(is_text, get_args(kind)))


def holding(kind: Any, text: str) -> Any:
    """A value of the type that holds the text."""
    if get_origin(kind) is list:
        if get_origin(get_args(kind)[0]) is dict:  # phases
            return [{"epochs": 20, "method": {"name": "EAT", "sources": [text]}}]
        return [text]
    return {"name": text, "start": text} if get_origin(kind) is dict else text


def walked() -> list[tuple[str, str, Any]]:
    """(method, dotted setting, its type) of every setting that can hold a text; settings of a method once for each."""
    found: dict[tuple[str, str], Any] = {}
    for method, entry in registry.entries("method").items():
        looks_at_others = [f.name for f in fields(entry.thing) if f.metadata.get("networks")]
        for leaf in SCHEMA.leaves({"method": method}):
            common = not leaf.key.startswith("method.")
            if is_text(leaf.type) and (not common or method == "Standard") and (common or looks_at_others):
                found.setdefault((method, leaf.key), leaf.type)
    return [(method, key, kind) for (method, key), kind in found.items()]


WALKED = walked()


def test_the_walk_meets_what_is_known_to_name_something() -> None:
    keys = {(method, key) for method, key, _ in WALKED}
    assert {
        ("Standard", "model.start"),
        ("Standard", "model.name"),
        ("Standard", "data.name"),
        ("Standard", "phases"),
        ("Standard", "evaluation.attacks"),
        ("Standard", "evaluation.sources"),
        ("Standard", "evaluation.measures"),
        ("Standard", "evaluation.baseline"),
        ("EAT", "method.sources"),
        ("AdvTrainI", "method.network"),
    } <= keys


def recipe(method: str, key: str, value: Any) -> None:
    """Write own.yaml, in which a setting has a value, and everything that makes others take effect is set."""
    used = {
        "method.name": method,
        "evaluation.attacks": ["clean", "transfer:each:fgsm"],
        "evaluation.measures": ["adversarialness images=4", "reassignment images=4"],
        "evaluation.num_examples": 4,
        "training.max_steps": 2,
        "training.eval_every": 0,
    }
    tree = {"extends": "standard-digits", **nested({**used, key: value})}
    Path("own.yaml").write_text(dump_yaml(tree))


@pytest.mark.parametrize(("method", "key", "kind"), WALKED, ids=lambda value: value if isinstance(value, str) else "")
def test_an_own_recipe_that_names_a_strangers_run_runs_none_of_its_code(
    layerwise: Command, place: Path, method: str, key: str, kind: Any
) -> None:
    for source in SOURCES:
        values = [f"transfer:{source}:fgsm"] if key == "evaluation.attacks" else [source]
        for value in values:
            recipe(method, key, holding(kind, value))
            said = layerwise("train", "own.yaml", "--quiet", "--name", "own")
            assert not ran(), (source, said)
            assert "Traceback" not in said.err
            shutil.rmtree("runs", ignore_errors=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.start", "stranger/p.yaml"),
        ("evaluation.sources", ["stranger"]),
        ("evaluation.attacks", ["clean", "transfer:stranger:fgsm"]),
        ("evaluation.baseline", "stranger"),
    ],
)
def test_with_trust_it_does(layerwise: Command, place: Path, key: str, value: Any) -> None:
    """So that what the walk looks at would be seen; and without, it is an error that says what to type."""
    recipe("Standard", key, value)
    told(
        layerwise("train", "own.yaml", "--quiet"),
        f"names code of its own, '{OWN}', which would be executed; add --trust",
    )
    assert not ran()
    shutil.rmtree("runs", ignore_errors=True)
    layerwise("train", "own.yaml", "--quiet", "--trust")
    assert ran()


@pytest.mark.parametrize(("method", "key", "kind"), WALKED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_strangers_run_runs_none_of_its_code(
    layerwise: Command, place: Path, method: str, key: str, kind: Any
) -> None:
    config = load_yaml(Path("stranger/config.yaml"))
    plain: Any = {"name": "digits_cnn", "normalize": True, "start": None, "options": {"width": 2}}
    names = [f"{OWN}-20", "bpda:0:bim-5"] if key == "evaluation.attacks" else [OWN, "subprocess:Popen"]
    for value in (*SOURCES, *names):
        tree = copy.deepcopy(config)
        tree["model"] = plain if not key.startswith("model.") else {**plain, "options": {}}
        tree["method"] = method
        put(tree, key, holding(kind, value))
        Path("stranger/config.yaml").write_text(dump_yaml(tree))
        shutil.rmtree("stranger/checkpoints", ignore_errors=True)
        for argv in (["train", "--resume", "stranger", "--quiet"], ["evaluate", "stranger", "--quiet", "--fresh"]):
            said = layerwise(*argv)
            assert not ran(), (value, argv, said)
            assert "Traceback" not in said.err


def test_the_run_itself_is_not_loaded(layerwise: Command, place: Path) -> None:
    names = f"names code of its own, '{OWN}', which would be executed; add --trust to allow it"
    for argv in (
        ["evaluate", "stranger"],
        ["train", "--resume", "stranger"],
        ["train", "--resume", "stranger", "--dry-run"],
        ["train", "stranger/config.yaml"],
        ["train", "stranger/p.yaml"],
        ["tune", "stranger/config.yaml", "--range", "training.batch_size=8,16"],
    ):
        told(layerwise(*argv), names)
    with pytest.raises(ConfigError, match="add --trust to allow it"):
        lw.load("stranger")
    layerwise("report", "stranger")
    assert f"--model.name {OWN}" in layerwise("train", "stranger", "--resume", "--help").out
    assert not ran()
    assert layerwise("evaluate", "stranger", "--quiet", "--trust").code == 0
    assert ran()
    forget()
    assert lw.load("stranger", trust=True)(__import__("torch").rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("flags", [[], ["--trust"]])
def test_a_program_is_never_started(layerwise: Command, place: Path, flags: list[str]) -> None:
    """Even where the name is trusted, what it may make is looked at before it is called."""
    said = [
        layerwise("train", "stranger/shell.yaml", *flags),
        layerwise("train", "standard-digits", "--model.start=stranger/shell.yaml", "--name=a", *QUICK, *flags),
        layerwise("train", "standard-digits", "--model", json.dumps(SHELL), "--name=b", *QUICK, *flags),
    ]
    for each in said[: 2 if not flags else 3]:
        told(
            each,
            r"names code of its own, 'subprocess:Popen'" if not flags else r"'subprocess:Popen' is Popen, no network",
        )
    told(said[2], "'subprocess:Popen' is Popen, no network; name a class derived from torch.nn.Module")
    assert not ran()


def test_a_recipe_that_extends_something_in_a_run_folder(layerwise: Command, place: Path) -> None:
    for way in SOURCES[1:]:
        Path("own.yaml").write_text(f"extends: {way}\n")
        told(layerwise("train", "own.yaml", *QUICK), "names code of its own")
    # From a run folder back to a recipe of one's own: it is the stranger who names that.
    Path("mine.yaml").write_text(dump_yaml({"extends": "standard-digits", "model": {"name": OWN}}))
    Path("stranger/p.yaml").write_text("extends: ../mine.yaml\n")
    told(layerwise("train", "--model.start=stranger/p.yaml", "standard-digits", *QUICK), "names code of its own")
    assert not ran()
    assert layerwise("train", "mine.yaml", *QUICK, "--quiet").code == 0
    assert ran()


def test_what_the_user_writes_may_name_code_of_the_users_wherever_it_is(layerwise: Command, place: Path) -> None:
    Path("recipes").mkdir()
    Path("recipes/first.yaml").write_text(dump_yaml({"extends": "standard-digits", "model": {"name": OWN}}))
    own = {"extends": "standard-digits", "model": {"name": OWN, "start": "recipes/first.yaml"}}
    Path("own.yaml").write_text(dump_yaml(own))
    assert layerwise("train", "own.yaml", *QUICK, "--quiet").code == 0
    forget()
    told(layerwise("evaluate", "runs/own"), "add --trust to allow it")
    assert layerwise("evaluate", "runs/own", f"--model.name={OWN}", "--quiet").code == 0  # the user has typed it


def test_a_search_that_is_resumed_takes_its_own_settings_only(layerwise: Command, place: Path) -> None:
    argv = [
        "tune",
        "standard-digits",
        *QUICK[:2],
        "--trials=1",
        "--budget=1",
        "--range=training.batch_size=8,16",
        "--quiet",
    ]
    assert layerwise(*argv).code == 0
    folder = Path("runs/tune/standard-digits")
    (trial,) = read_trials(Store(folder / TRIALS))
    for settings in ({"training.batch_size": 8, "model.start": "stranger/p.yaml"}, {"training.batch_size": 5}):
        (folder / TRIALS).unlink()
        add_trial(Store(folder / TRIALS), replace(trial, settings=settings))
        told(
            layerwise(*argv, "--resume"),
            r"trials.jsonl: the settings of trial 0 are not of this search; remove the file",
        )
    assert not ran()


def test_reproduction_does_not_load_a_strangers_runs(layerwise: Command, place: Path) -> None:
    from tests.reproduce.cases import TINY, item

    table = item(rows={"standard": "standard-digits"})
    system = systems.resolve(table.rows[0].system, TINY, seed=0)
    shutil.copytree("stranger", Path("runs/tiny") / system.name)
    subject = bench.Bench(item=table, scale=TINY, place=Path("runs/tiny"), seed=0).subject(table.rows[0].system)
    with pytest.raises(ConfigError, match="add --trust to allow it"):
        _ = subject.network
    assert not ran()


def test_a_strangers_run_downloads_nothing(layerwise: Command, place: Path) -> None:
    config = load_yaml(Path("stranger/config.yaml"))
    config["model"] = {"name": "digits_cnn", "normalize": True, "start": None, "options": {}}
    config["data"] |= {"name": "mnist", "root": "elsewhere", "download": True}
    Path("stranger/config.yaml").write_text(dump_yaml(config))
    Path("stranger/data.json").unlink()
    said = layerwise("evaluate", "stranger")
    told(said, r"mnist: .* not found in elsewhere.*; add --data.download true")
    assert not Path("elsewhere").exists()
    assert read("stranger/config.yaml", ["--data.download=true"])[0].data.download
    with trusting(True):
        assert read("stranger/config.yaml")[0].data.download


def test_where_a_file_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, own = tmp_path / "project/runs/a", tmp_path / "project/recipes"
    for folder in (run / "deep", own):
        folder.mkdir(parents=True)
    (run / "config.yaml").touch()
    (own / "mine.yaml").touch()
    (own / "link.yaml").symlink_to(run / "p.yaml")
    (run / "p.yaml").touch()
    monkeypatch.chdir(tmp_path / "project")
    assert [is_in_run(Path(p)) for p in ("runs/a/p.yaml", "runs/a/deep/p.yaml", "recipes/link.yaml")] == [True] * 3
    assert is_in_run(run / "p.yaml")
    assert not is_in_run(Path("recipes/mine.yaml"))
    # A project's own config.yaml makes no run of it; in a run folder it takes more.
    (tmp_path / "project/config.yaml").touch()
    assert not is_in_run(Path("recipes/mine.yaml"))
    assert is_in_run(Path("config.yaml"))
    monkeypatch.chdir(run)
    (run / "versions.json").touch()
    assert is_in_run(Path("p.yaml"))
    assert not trusted(Path("p.yaml"), named=True)
    assert trusted(own / "mine.yaml", named=True)
    assert not trusted(own / "mine.yaml", named=False)
    with trusting(True), trusting(False):
        assert trusted(Path("p.yaml"), named=False)
    assert not trusted(Path("p.yaml"), named=True)


def test_recipes_that_train_each_other_first_are_told(layerwise: Command, place: Path) -> None:
    for name, other in (("a.yaml", "b.yaml"), ("b.yaml", "a.yaml")):
        Path(name).write_text(f"extends: standard-digits\nmodel: {{start: {other}}}\n")
    told(layerwise("train", "a.yaml"), r"recipes train each other first, in a circle: b.yaml -> a.yaml -> b.yaml")
