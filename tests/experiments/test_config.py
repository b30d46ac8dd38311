"""Settings: how trees, YAML and the command line become objects, and what is told about those that do not fit."""

from __future__ import annotations

import re
from abc import ABC
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from layerwise.core.checks import Radius
from layerwise.core.criteria import CrossEntropy
from layerwise.errors import ConfigError
from layerwise.experiments import experiment
from layerwise.experiments.config import Schema, dump_yaml, load_yaml
from layerwise.experiments.experiment import SCHEMA, make_phases
from layerwise.methods import ANP, FGSMRS, LAD, NFGSM, PGD, SLAT, TRADES, Standard
from layerwise.methods.lat import LAT
from layerwise.spelling import check_type, parse_yaml, spoken, tokens_to_tree, written
from layerwise.training import SGD, Adam, MultiStep


class Shape(ABC):  # noqa: B024 - only its subclasses are made
    """What can be chosen."""


@dataclass(kw_only=True)
class Circle(Shape):
    """Round.

    Args:
        radius: how large.
    """

    radius: Radius = 0.5
    center: tuple[float, float] = (0.0, 0.0)


@dataclass(kw_only=True)
class Frame(Shape):
    side: int = 1
    inner: Shape | None = None


@dataclass(kw_only=True)
class Page:
    width: float = 1.0
    title: str | None = None


@dataclass(kw_only=True)
class Drawing:
    shape: Shape
    other: Shape = field(default_factory=Circle)
    none: Shape | None = None
    page: Page = field(default_factory=Page)
    step: Radius | dict[str, Radius] = 8 / 255
    options: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    kind: Literal["plain", "rich"] = "plain"


DRAWING = Schema(Drawing, {Shape: {"Circle": Circle, "Frame": Frame}})
CIRCLE = Circle(radius=0.5)


def drawn(tree: dict[str, Any], *overrides: str) -> Drawing:
    """The drawing of a tree, whose resolved tree has to give the same again."""
    found, resolved = DRAWING.read(DRAWING.merge(tree), overrides)
    assert DRAWING.read(resolved) == (found, resolved)
    assert DRAWING.build(DRAWING.tree(found)) == found
    assert isinstance(found, Drawing)
    return found


@pytest.mark.parametrize(
    ("tree", "overrides", "expected"),
    [
        ({"shape": "Circle"}, (), Drawing(shape=Circle())),
        ({"shape": {"name": "Circle", "radius": "8/255"}}, (), Drawing(shape=Circle(radius=8 / 255))),
        ({"shape": "Circle"}, ("--shape.radius", "2/255"), Drawing(shape=Circle(radius=2 / 255))),
        ({}, ("--shape", "Circle", "--shape.radius=0.1"), Drawing(shape=Circle(radius=0.1))),
        ({}, ("--shape.radius=0.1", "--shape", "Circle"), Drawing(shape=Circle(radius=0.1))),
        ({}, ("--shape.name", "Circle"), Drawing(shape=Circle())),
        ({}, ("--shape", "{name: Circle, radius: 1/4}"), Drawing(shape=Circle(radius=0.25))),
        # Another class keeps nothing of the old one, the same class all.
        ({"shape": {"name": "Circle", "radius": 0.1}}, ("--shape", "Frame"), Drawing(shape=Frame())),
        ({"shape": {"name": "Circle", "radius": 0.1}}, ("--shape", "Circle"), Drawing(shape=Circle(radius=0.1))),
        (
            {"shape": {"name": "Frame", "side": 3}},
            ("--shape.inner", "Circle"),
            Drawing(shape=Frame(side=3, inner=Circle())),
        ),
        (
            {"shape": {"name": "Frame", "inner": {"name": "Frame", "side": 2}}},
            ("--shape.inner.inner=Circle", "--shape.inner.inner.radius=1/255"),
            Drawing(shape=Frame(inner=Frame(side=2, inner=Circle(radius=1 / 255)))),
        ),
        ({"shape": {"name": "Frame", "inner": "Circle"}}, ("--shape.inner", "null"), Drawing(shape=Frame())),
        ({"shape": {"name": "Frame", "inner": None}}, (), Drawing(shape=Frame())),
        ({"shape": {"name": "Frame", "inner": {"name": None}}}, (), Drawing(shape=Frame())),
        # Fields without a class belong to the default's.
        ({"shape": "Circle", "other": {"radius": 0.2}}, (), Drawing(shape=Circle(), other=Circle(radius=0.2))),
        ({"shape": "Circle", "other": {"radius": 0.2}}, ("--other", "Frame"), Drawing(shape=Circle(), other=Frame())),
        # Mappings: whole, or entry by entry.
        ({"shape": "Circle", "step": {"a": "8/255"}}, (), Drawing(shape=Circle(), step={"a": 8 / 255})),
        (
            {"shape": "Circle", "step": {"a": 0.1}},
            ("--step.b", "1/2"),
            Drawing(shape=Circle(), step={"a": 0.1, "b": 0.5}),
        ),
        ({"shape": "Circle", "step": {"a": 0.1}}, ("--step", "0.2"), Drawing(shape=Circle(), step=0.2)),
        ({"shape": "Circle", "step": {"a": 0.1}}, ("--step", "{b: 1/2}"), Drawing(shape=Circle(), step={"b": 0.5})),
        ({"shape": "Circle", "step": 0.1}, ("--step.b", "1/2"), Drawing(shape=Circle(), step={"b": 0.5})),
        (
            {"shape": "Circle", "options": {"depth": 3, "text": "5"}},
            ("--options.width", "16", "--options.on", "true"),
            Drawing(shape=Circle(), options={"depth": 3, "text": "5", "width": 16, "on": True}),
        ),
        # Lists, with and without brackets; texts stay texts.
        ({"shape": "Circle"}, ("--names", "[a, b]"), Drawing(shape=Circle(), names=["a", "b"])),
        ({"shape": "Circle"}, ("--names", "a,b"), Drawing(shape=Circle(), names=["a", "b"])),
        ({"shape": "Circle", "names": ["a"]}, ("--names", "[]"), Drawing(shape=Circle())),
        ({"shape": "Circle", "page": {"title": "7"}}, (), Drawing(shape=Circle(), page=Page(title="7"))),
        ({"shape": "Circle", "page": {"title": "x"}}, ("--page.title", "null"), Drawing(shape=Circle())),
        ({"shape": "Circle", "page": None}, (), Drawing(shape=Circle())),
        ({"shape": "Circle"}, ("--page.width", "5e-1"), Drawing(shape=Circle(), page=Page(width=0.5))),
        ({"shape": {"name": "Circle", "center": [1, 2.5]}}, (), Drawing(shape=Circle(center=(1.0, 2.5)))),
    ],
)
def test_what_is_read(tree: dict[str, Any], overrides: tuple[str, ...], expected: Drawing) -> None:
    assert drawn(tree, *overrides) == expected


@pytest.mark.parametrize(
    ("tree", "overrides", "message"),
    [
        ({}, (), "f.yaml: shape is not set; add it, or type --shape NAME, one of Circle, Frame"),
        ({"shape": None}, (), "f.yaml: shape=null does not fit; type one of Circle, Frame"),
        ({"shape": 3}, (), "f.yaml: shape=3 does not fit; type one of Circle, Frame"),
        ({"shape": "Cirle"}, (), "f.yaml: shape: there is no 'Cirle'; did you mean 'Circle'?"),
        ({"shape": {"name": ["Circle"]}}, (), "f.yaml: shape: there is no ['Circle']"),
        ({"shape": "Circle"}, ("--shape", "Cirle"), "command line: shape: there is no 'Cirle'; did you mean 'Circle'?"),
        ({"shape": "Circle"}, ("--shape", "my:Own"), "classes of your own are used from Python"),
        ({"shape": "Circle"}, ("--other", "null"), "command line: other=null does not fit; type one of Circle, Frame"),
        (
            {"shape": "Frame"},
            ("--shape.inner.side", "2"),
            "command line: shape.inner has settings but no class; name it",
        ),
        (
            {"shape": {"radius": 1}},
            (),
            "f.yaml: shape has settings but no class; name it, --shape NAME, one of Circle, Frame",
        ),
        (
            {"shape": {"name": "Circle", "radus": 1}},
            (),
            "f.yaml: there is no setting 'shape.radus'; did you mean 'shape.radius'",
        ),
        (
            {"shape": "Circle", "pages": {"width": 1}},
            (),
            "f.yaml: there is no setting 'pages.width'; did you mean 'page.width'",
        ),
        (
            {"shape": "Circle"},
            ("--shape.radus", "1"),
            "there is no setting '--shape.radus'; did you mean 'shape.radius'",
        ),
        ({"shape": "Circle"}, ("--shape.side", "1"), "there is no setting '--shape.side'"),
        ({"shape": "Circle", "page": 3}, (), "f.yaml: page=3 does not fit; set its parts: width, title"),
        ({"shape": "Circle", "page": {"width": "wide"}}, (), "f.yaml: page.width=wide does not fit; type a number"),
        ({"shape": "Circle"}, ("--page.width", "wide"), "command line: page.width=wide does not fit; type a number"),
        ({"shape": "Circle"}, ("--page.width.x", "1"), 'page.width={"x": 1} does not fit; type a number'),
        ({"shape": "Frame"}, ("--shape.side", "1.5"), "shape.side=1.5 does not fit; type a whole number"),
        ({"shape": "Frame"}, ("--shape.side", "true"), "shape.side=true does not fit; type a whole number"),
        ({"shape": "Circle"}, ("--shape.radius", "8/ten"), "does not fit; type a number or a fraction such as 8/255"),
        (
            {"shape": {"name": "Circle", "radius": True}},
            (),
            "shape.radius=true does not fit; type a number or a fraction",
        ),
        ({"shape": "Circle", "step": {"a": "x"}}, (), 'step={"a": "x"} does not fit; type a number or a fraction'),
        ({"shape": "Circle"}, ("--kind", "poor"), "kind=poor does not fit; type one of plain, rich"),
        ({"shape": "Circle", "names": {"a": 1}}, (), 'names={"a": 1} does not fit; type a list in brackets, [a, b]'),
        ({"shape": "Circle"}, ("--options", "[1]"), "options=[1] does not fit; type {name: value, ...} in quotes"),
        ({"shape": "Circle"}, ("--options", "{a: ["), "does not fit"),
        ({"shape": "Circle"}, ("--shape", "{a: ["), "command line is not YAML"),
        ({"shape": "Circle"}, ("--kind",), "--kind has no value; type --kind VALUE"),
        ({"shape": "Circle"}, ("--kind", "--names"), "--kind has no value; type --kind VALUE"),
        ({"shape": "Circle"}, ("kind",), "unexpected argument 'kind'; settings are typed as --key value"),
    ],
)
def test_what_is_refused(tree: dict[str, Any], overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        DRAWING.read(DRAWING.merge(tree), overrides, where="f.yaml")
    assert "\n" not in str(caught.value)


def test_merging_lays_trees_on_each_other() -> None:
    base = {"shape": {"name": "Frame", "side": 2, "inner": "Circle"}, "page": {"width": 2}, "options": {"a": 1}}
    over = {"shape": {"inner": {"radius": 0.1}}, "page": {"title": "x"}, "options": {"b": 2}}
    assert DRAWING.merge(base, over) == {
        "shape": {"name": "Frame", "side": 2, "inner": {"name": "Circle", "radius": 0.1}},
        "page": {"width": 2, "title": "x"},
        "options": {"a": 1, "b": 2},
    }
    assert base["options"] == {"a": 1}


def test_defaults_are_not_shared() -> None:
    one, other = drawn({"shape": "Circle"}), drawn({"shape": "Circle"})
    one.options["a"] = 1
    assert other.options == drawn({"shape": "Circle"}).options == {}


def test_an_objects_own_complaint_names_its_place() -> None:
    with pytest.raises(ConfigError, match=re.escape("method.base: eps=8 is in units of 0 to 255 pixels")):
        experiment.read("slat-digits", ["--method.base", "FGSMRS", "--method.base.eps", "8"])


def test_every_leaf_is_explained() -> None:
    _, tree = experiment.read("slat-digits", ["--method.base", "FGSMRS"])
    leaves = {leaf.key: leaf.help for leaf in SCHEMA.leaves(tree)}
    assert {"method.base.eps", "training.optimizer.lr", "data.name"} <= set(leaves)
    assert [key for key, help in leaves.items() if not help.strip()] == []
    assert "One of SGD, Adam, AdamW." in leaves["training.optimizer.name"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--method", "ANP"], ANP()),
        (["--method", "ANP", "--method.k", "2"], ANP(k=2)),
        (["--method.eta", "0.1"], SLAT(sites=["conv1", "layer1"], eta=0.1)),
        (
            ["--method.eta.layer1", "2/255"],
            SLAT(sites=["conv1", "layer1"], eta={"input": 0.2, "conv1": 0.03, "layer1": 2 / 255}),
        ),
        (
            ["--method.sites", "[layer1]", "--method.eta", "{input: 8/255, layer1: 4/255}"],
            SLAT(sites=["layer1"], eta={"input": 8 / 255, "layer1": 4 / 255}),
        ),
        (
            ["--method.base", "NFGSM", "--method.base.eps", "4/255", "--method.eta", "0.1"],
            SLAT(sites=["conv1", "layer1"], eta=0.1, base=NFGSM(eps=4 / 255)),
        ),
        (
            ["--method", "LAD", "--method.base", "TRADES", "--method.base.criterion.label_smoothing", "0.1"],
            LAD(base=TRADES(criterion=CrossEntropy(label_smoothing=0.1))),
        ),
        (["--method", "{name: LAD, base: {name: PGD, steps: 3}}"], LAD(base=PGD(steps=3))),
    ],
)
def test_methods_from_the_command_line(overrides: list[str], expected: object) -> None:
    found, tree = experiment.read("slat-digits", overrides)
    assert found.method == _listed(expected)
    assert SCHEMA.read(tree) == (found, tree)


def _listed(method: Any) -> Any:
    """The method as YAML gives it: lists for tuples."""
    if isinstance(getattr(method, "sites", None), tuple):
        method.sites = list(method.sites)
    return method


def test_another_optimizer_keeps_nothing_of_the_recipes(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("extends: slat-digits\ntraining: {optimizer: {lr: 0.3, momentum: 0.5}, schedule: null}\n")
    with pytest.raises(ConfigError, match=re.escape("training.schedule=null does not fit; type one of Constant")):
        experiment.read(str(own))
    own.write_text("extends: slat-digits\ntraining: {optimizer: {lr: 0.3, momentum: 0.5}, schedule: MultiStep}\n")
    chosen, _ = experiment.read(str(own))
    assert isinstance(chosen.training.optimizer, SGD)
    assert (chosen.training.optimizer.lr, chosen.training.schedule) == (0.3, MultiStep())
    assert experiment.read(str(own), ["--training.optimizer", "Adam"])[0].training.optimizer == Adam()


def test_a_recipe_beside_the_extending_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "base.yaml").write_text("extends: slat-digits\ntraining: {epochs: 3}\n")
    (folder / "own.yaml").write_text("extends: base.yaml\nmethod: LAT\n")
    monkeypatch.chdir(tmp_path)
    chosen, _ = experiment.read("recipes/own.yaml")
    assert (chosen.training.epochs, chosen.method, chosen.evaluation.eps) == (3, LAT(), 0.2)


@pytest.mark.parametrize("text", ["extends: [slat-digits]\n", "extends: {a: 1}\n"])
def test_extends_takes_one_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match="does not fit; type one recipe's name or file"):
        experiment.read(str(tmp_path / "own.yaml"))


PHASES = """
extends: slat-digits
method: {name: SLAT, eta: 0.1, base: {name: FGSMRS, eps: 8/255}}
phases:
  - {epochs: 1, fields: {eta: 4/255}}
  - {epochs: 2, fields: {base.eps: 2/255, num_probes: 2}}
  - {epochs: 3, fields: {base: {step: 1.0}}}
  - {epochs: 4, method: {name: PGD, eps: 6/255}}
  - {epochs: 5, method: Standard}
training: {epochs: 15}
"""


def test_phases_are_typed_like_the_methods_fields(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(PHASES)
    first, second, third, fourth, fifth = make_phases(experiment.read(str(tmp_path / "own.yaml"))[0])
    assert [p.epochs for p in (first, second, third, fourth, fifth)] == [1, 2, 3, 4, 5]
    assert first.fields == {"eta": 4 / 255}
    assert second.fields == {"base.eps": 2 / 255, "num_probes": 2}
    # What an earlier phase changed stays so.
    assert third.fields == {"base": FGSMRS(eps=2 / 255, step=1.0)}
    assert (fourth.method, fifth.method) == (PGD(eps=6 / 255), Standard())


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (
            "[{epochs: 15, fields: {etaa: 1}}]",
            "phases[0]: there is no setting 'method.etaa'; did you mean 'method.eta'",
        ),
        ("[{epochs: 15, fields: {eta: x}}]", "phases[0]: method.eta=x does not fit; type a number or a fraction"),
        ("[{epochs: 15, fields: {eta: 8}}]", "method: eta=8 is in units of 0 to 255 pixels"),
        ("[{epochs: 15, fields: {base.eps: 8}}]", "method.base: eps=8 is in units of 0 to 255 pixels"),
        (
            "[{epochs: 15, fields: {name: ANP}}]",
            "phases[0]: fields={'name': 'ANP'} does not fit; type {k: 1}, or method:",
        ),
        ("[{epochs: 15, fields: [k]}]", "phases[0]: fields=['k'] does not fit"),
        ("[{epochs: 15, field: {k: 1}}]", "phases[0]: {'epochs': 15, 'field': {'k': 1}} is no phase; type {epochs: 40"),
        ("[{epochs: many}]", "phases[0]: {'epochs': 'many'} is no phase"),
        ("[{epochs: 15, method: SLTA}]", "phases[0]: method: there is no 'SLTA'; did you mean 'SLAT'"),
        ("[{epochs: 15, method: PGD, fields: {eps: 1}}]", "not both; leave one"),
        ("[{epochs: 14}]", "the phases have 14 epochs and the run 15; type training.epochs=14"),
        ("[3]", "does not fit; type a list in brackets"),
    ],
)
def test_phases_that_do_not_fit_are_told(tmp_path: Path, phases: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(PHASES)
    with pytest.raises(ConfigError, match=re.escape(message)):
        experiment.read(str(tmp_path / "own.yaml"), ["--phases", phases])


def test_yaml_round_trip(tmp_path: Path) -> None:
    tree = {"a": {"b": [1, 2.5, None, "8/255"], "c": True}, "d": (1, 2)}
    (tmp_path / "t.yaml").write_text(dump_yaml(tree))
    assert load_yaml(tmp_path / "t.yaml") == {**tree, "d": [1, 2]}


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: [", b"- a\n", b"1: 2\n", b""])
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "t.yaml"))) as caught:
        load_yaml(tmp_path / "t.yaml")
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_yaml(tmp_path)


def test_tokens() -> None:
    assert tokens_to_tree(["--a.b", "1", "--a={c: 2}"]) == {"a": "{c: 2}"}
    assert tokens_to_tree(["--a.b-c", "1", "--a.d=x=y", "--e", "-1"]) == {"a": {"b_c": "1", "d": "x=y"}, "e": "-1"}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (float | None, "a number or null"),
        (str | list[str] | tuple[str, ...], "a text or a list in brackets, [a, b]"),
        (Radius | dict[str, Radius], "a number or a fraction such as 8/255 or {name: value, ...} in quotes"),
        (bool, "true or false"),
    ],
)
def test_types_in_words(kind: Any, words: str) -> None:
    assert spoken(kind) == words


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (8 / 255, Radius),
        ({"input": 8 / 255, "conv1": 0.03}, Radius | dict[str, Radius]),
        (["clean", "pgd-50-10"], list[str]),
        (None, int | None),
        (True, bool),
        (5e-4, float),
        (17, int),
        ("layer[12]", str | list[str]),
    ],
)
def test_what_help_shows_can_be_typed(value: object, kind: Any) -> None:
    assert check_type("key", written(value, kind), kind) == value


def test_numbers_with_an_exponent_need_no_point() -> None:
    assert parse_yaml("[5e-4, 1E3, -2e+1, .5e1, 4.0e-3]", "it") == [5e-4, 1e3, -20.0, 5.0, 4e-3]
    assert parse_yaml("[8/255, e4, 1e, 5e-4x, '5e-4']", "it") == ["8/255", "e4", "1e", "5e-4x", "5e-4"]
    text = dump_yaml({"name": "5e-4", "lr": 5e-4})
    assert parse_yaml(text, "it") == {"name": "5e-4", "lr": 5e-4}
