"""Settings: how trees, YAML and the command line become objects, and what is told about those that do not fit."""

from __future__ import annotations

import json
import re
import sys
from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from layerwise.core import registry
from layerwise.core.checks import Radius
from layerwise.core.criteria import CrossEntropy
from layerwise.errors import ConfigError
from layerwise.experiments import experiment
from layerwise.experiments.choices import Layer, Schema, command_line
from layerwise.experiments.experiment import SCHEMA, make_phases
from layerwise.experiments.trust import trusting
from layerwise.methods import ANP, FGSMCKPT, LAD, NFGSM, PAT, PGD, SLAT, TRADES
from layerwise.trees import at, dump_yaml


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
    found, resolved = DRAWING.read(tree, command_line(overrides))
    assert DRAWING.read(resolved) == (found, resolved)
    assert DRAWING.tree(found) == resolved
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
        ({"shape": "Circle"}, ("--title", "x"), "there is no setting '--title'; did you mean 'page.title'?"),
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
        ({"shape": "Circle", "step": {"a": "x"}}, (), "f.yaml: step.a=x does not fit; type a number or a fraction"),
        ({"shape": "Circle"}, ("--step.a", "x"), "command line: step.a=x does not fit; type a number or a fraction"),
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
        DRAWING.read(Layer(tree, "f.yaml"), command_line(overrides))
    assert "\n" not in str(caught.value)


def test_layers_lie_on_each_other() -> None:
    base = {"shape": {"name": "Frame", "side": 2, "inner": "Circle"}, "page": {"width": 2}, "options": {"a": 1}}
    over = {"shape": {"inner": {"radius": 0.1}}, "page": {"title": "x"}, "options": {"b": 2}}
    found, _ = DRAWING.read(base, over)
    assert found == Drawing(
        shape=Frame(side=2, inner=Circle(radius=0.1)), page=Page(width=2.0, title="x"), options={"a": 1, "b": 2}
    )
    assert base["options"] == {"a": 1}


def test_what_is_wrong_below_does_not_count_where_a_layer_replaces_it() -> None:
    wrong: list[Any] = [3, "Cirle", {"radius": 1}, {"name": "Circle", "radus": 1}]
    for below in wrong:
        assert DRAWING.read({"shape": below}, {"shape": "Frame"})[0] == Drawing(shape=Frame())
        with pytest.raises(ConfigError):
            DRAWING.read({"shape": below}, {"kind": "rich"})


def test_each_mistake_is_told_with_the_layer_that_made_it() -> None:
    base, own = Layer({"shape": "Circle", "page": {"width": "x"}}, "base.yaml"), Layer({"kind": 3}, "own.yaml")
    with pytest.raises(ConfigError, match=r"^base\.yaml: page\.width=x does not fit"):
        DRAWING.read(base, own)
    with pytest.raises(ConfigError, match=r"^own\.yaml: kind=3 does not fit"):
        DRAWING.read(base, own, command_line(["--page.width", "2"]))
    with pytest.raises(ConfigError, match=r"^own\.yaml: shape is not set"):
        DRAWING.read(Layer({}, "base.yaml"), Layer({}, "own.yaml"), command_line([]))


@dataclass(kw_only=True)
class Poster:
    shape: Shape = field(default_factory=lambda: Circle(radius=0.125))


def test_a_field_that_is_changed_in_part_keeps_the_rest_of_its_default() -> None:
    schema = Schema(Poster, DRAWING.choices)
    assert schema.read({})[0] == Poster()
    assert schema.read({"shape": {"center": [1, 2]}})[0].shape == Circle(radius=0.125, center=(1.0, 2.0))
    assert schema.read({"shape": {"name": "Circle", "center": [1, 2]}})[0].shape.radius == 0.125
    assert schema.read({"shape": {"name": "Frame"}}, {"shape": "Circle"})[0].shape.radius == 0.125


OWN = """
from dataclasses import dataclass
from pathlib import Path
import torch
from layerwise.data import ImageData, from_tensors
from layerwise.methods import PGD
from layerwise.training import Constant
Path("imported").write_text("")

@dataclass(kw_only=True)
class Mine(PGD):
    extra: int = 1

@dataclass(frozen=True, kw_only=True)
class Slow(Constant):
    share: float = 0.5

class Nothing: ...

def images(root, *, validation, download, seed, classes: int = 2) -> ImageData:
    return from_tensors(torch.arange(512.0).view(8, 1, 8, 8) / 512, torch.arange(8) % classes, validation=4)
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module of the user's in the current folder, which leaves a trace when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"own_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    yield name
    sys.modules.pop(name, None)
    for key in [key for key in registry._IMPORTED if name in key[1]]:
        del registry._IMPORTED[key]


@pytest.mark.parametrize("typed", [True, False])
def test_classes_of_the_users(own_module: str, tmp_path: Path, typed: bool) -> None:
    settings = {
        "method": {"name": "AWP", "base": {"name": f"{own_module}:Mine", "extra": 3, "steps": 2}},
        "training": {"schedule": f"{own_module}:Slow"},
        "phases": [{"epochs": 20, "method": {"name": f"{own_module}:Mine", "extra": 4}}],
    }
    overrides = [f"--{key}={json.dumps(value)}" for key, value in settings.items()] if typed else []
    (tmp_path / "own.yaml").write_text(dump_yaml({"extends": "slat-digits", **({} if typed else settings)}))
    found, tree = experiment.read("own.yaml", overrides, trust=True)
    base = found.method.base  # type: ignore[attr-defined]
    assert (type(base).__name__, base.extra, base.steps, type(found.training.schedule).__name__) == (
        "Mine",
        3,
        2,
        "Slow",
    )
    assert make_phases(found)[0].method.extra == 4  # type: ignore[union-attr]
    assert at(tree, "method.base.name") == f"{own_module}:Mine"
    assert SCHEMA.read(tree) == (found, tree)


def test_a_data_set_of_the_users(own_module: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"extends: slat-digits\ndata: {{name: '{own_module}:images'}}\n")
    chosen, _ = experiment.read("config.yaml")
    with pytest.raises(ConfigError, match="add --trust to allow it"):
        experiment.load_data(chosen.data)
    assert not (tmp_path / "imported").exists()
    chosen, _ = experiment.read("slat-digits", ["--data.name", f"{own_module}:images", "--data.options.classes", "4"])
    assert experiment.load_data(chosen.data).num_classes == 4
    with pytest.raises(ConfigError, match=r"command line: data\.name: .* holds no 'image'; did you mean 'images'"):
        experiment.read("slat-digits", ["--data.name", f"{own_module}:image"])


@pytest.mark.parametrize(
    "text",
    [
        "method: OWN:Mine",
        "method: {name: AWP, base: OWN:Mine}",
        "training: {schedule: {name: 'OWN:Slow'}}",
        "phases: [{epochs: 20, method: OWN:Mine}]",
        "evaluation: {attacks: [clean, 'OWN:Mine']}",
        "evaluation: {attacks: [clean, 'eot-4:OWN:Mine-3']}",
    ],
)
def test_text_of_somebody_else_imports_nothing(own_module: str, tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(f"extends: slat-digits\n{text.replace('OWN', own_module)}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: .*add --trust to allow it"):
        experiment.read("config.yaml", ["--training.seed", "1"])
    assert not (tmp_path / "imported").exists()


def test_a_recipe_that_extends_a_run_does_not_trust_it(own_module: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"extends: slat-digits\nmethod: {own_module}:Mine\n")
    (tmp_path / "own.yaml").write_text("extends: config.yaml\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: method: the run names code of its own"):
        experiment.read("own.yaml", trust=True)
    assert not (tmp_path / "imported").exists()
    with trusting(True):
        assert type(experiment.read("own.yaml", trust=True)[0].method).__name__ == "Mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OWN:Nothing", "is Nothing, no method; name a class derived from layerwise.methods.base.Method"),
        ("OWN:Mime", "holds no 'Mime'; did you mean 'Mine'"),
        ("nowhere_to_be_found:Mine", "cannot be imported (No module named 'nowhere_to_be_found')"),
        (
            "slatt",
            "there is no 'slatt'; did you mean 'SLAT' or 'LAT' or 'SMART'? ('my_module:Name' takes one of yours)",
        ),
    ],
)
def test_classes_that_are_no_methods(own_module: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as told:
        experiment.read("slat-digits", ["--method", name.replace("OWN", own_module)])
    assert str(told.value).startswith("command line: method: ")


def test_a_base_that_perturbs_no_input_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"command line: method\.base: there is no 'Parseval'"):
        experiment.read("slat-digits", ["--method.base", "Parseval"])


def test_names_are_found_in_any_case() -> None:
    assert experiment.read("slat-digits", ["--method", "anp"])[1]["method"]["name"] == "ANP"


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
    assert "One of Adam, AdamW, SGD." in leaves["training.optimizer.name"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--method", "ANP"], ANP()),
        (["--method", "ANP", "--method.k", "2"], ANP(k=2)),
        (["--method.eta", "0.1"], SLAT(sites=["conv1", "layer1"], eta=0.1)),
        (
            ["--method.eta.layer1", "2/255"],
            SLAT(sites=["conv1", "layer1"], eta={"conv1": 0.03, "layer1": 2 / 255}),
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
        (["--method", "{name: TRADES, attack: {name: PGD, steps: 3}}"], TRADES(attack=PGD(steps=3))),
        (["--method", "PAT", "--method.attack.steps", "5"], PAT(attack=PGD(steps=5, random_start=False))),
        (["--method", "FGSMCKPT", "--method.attack", "NFGSM"], FGSMCKPT(attack=NFGSM())),
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
