"""The page: what stands on it and in which order, that nothing in a run folder can break out of its place, and what damage costs."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from layerwise.errors import CheckpointError
from layerwise.evaluation import Measured, Rho
from layerwise.evaluation.measures import (
    Examples,
    FeatureGradients,
    InputGradients,
    Landscape,
    RadiusCurve,
)
from layerwise.evaluation.record import escape
from layerwise.report import Report, figures, report
from layerwise.training.monitor import OVERFITTING
from tests.report.folders import Words, config, evaluated, metrics, put, record, without

SECTIONS = [
    "Comparison",
    "Adversarial examples",
    "Training",
    "Accuracy over radius",
    "Corruptions",
    "Loss landscape",
    "Gradient alignment",
    "Feature gradients",
    "Boundary distance",
    "Insensitivity",
    "Jacobian spectrum",
    "Features (t-SNE)",
    "Input gradients",
    "Perturbations by layer",
    "Cost",
    "Not measured",
    "Settings",
    "Provenance",
]


MEASURED = SECTIONS[1:2] + SECTIONS[3:13]
"""Those that are there only where something was measured."""


class Page(HTMLParser):
    """The tags of a page in order, with the names of their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.shape: list[tuple[str, ...]] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.shape.append((tag, *(name for name, _ in attrs)))
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if data.strip() and self.tags:
            self.texts.append((self.tags[-1][0], data.strip()))

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for found, attributes in self.tags if found == tag]

    def said(self, tag: str) -> list[str]:
        return [text for found, text in self.texts if found == tag]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Two recipes with everything; the second of two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [put(folder / "plain", evaluated(wrong=20), settings=config(method="Standard"))]
    runs += [put(folder / f"slat-seed{i}", evaluated(wrong=10)) for i in range(2)]
    return report(runs)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but not turned into files, which takes most of the time."""
    skip_drawing(monkeypatch)


def skip_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_encoded", lambda figure: (f"data:image/png;base64,{PIXEL}", (400, 300)))


PIXEL = base64.b64encode(b"\x89PNG").decode()


@pytest.fixture(scope="module")
def page(two: Report) -> Page:
    return Page(two.to_html())


def test_everything_is_there_in_order(page: Page) -> None:
    assert len(page.of("h1")) == 1
    assert page.said("h2") == ["plain", "slat", *SECTIONS]
    order = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(order))
    anchors = {attributes["href"] for attributes in page.of("a")}
    assert anchors == {"#" + attributes["id"] for attributes in page.of("h2") if "id" in attributes}
    assert not re.search("cannot be drawn", " ".join(text for _, text in page.texts))


def test_the_page_needs_nothing_beside_it(page: Page) -> None:
    assert not {tag for tag, _ in page.tags} & {"iframe", "object", "embed", "form", "svg"}
    assert page.of("script") == [{}]
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#")), tag
    (policy,) = [m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    (script,) = page.said("script")
    digest = base64.b64encode(hashlib.sha256(f"{script}\n".encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "url(" not in " ".join(page.said("style"))


def test_it_can_be_read_without_seeing(page: Page) -> None:
    assert page.of("html") == [{"lang": "en"}]
    assert page.said("title")
    assert all(image["alt"].strip() for image in page.of("img"))
    assert {cell.get("scope") for cell in page.of("th")} == {"row", "col"}
    assert all(attributes["aria-label"] for attributes in page.of("table"))


def test_every_figure_is_drawn(two: Report, page: Page) -> None:
    """One of all, three of training, one of corruptions, ten diagnostics (one of them of each network alone), three pictures an example."""
    sources = [image["src"] for image in page.of("img")]
    assert len(sources) == 1 + 3 + 1 + 11 + 2 * 3
    for source in sources:
        kind, _, data = source.partition(";base64,")
        if kind == "data:image/svg+xml":
            ElementTree.fromstring(base64.b64decode(data))
        else:
            assert base64.b64decode(data).startswith(b"\x89PNG")
    alts = " ".join(image["alt"] for image in page.of("img"))
    assert (
        "Gradient alignment. plain: mean cosine 0.500 over 2 images at eps 0.2, 1 without a gradient left out." in alts
    )


def test_the_weight_is_told(two: Report) -> None:
    html = two.to_html()
    (told,) = re.findall(r"weighs ([\d.]+) MB", html)
    assert float(told) == pytest.approx(len(html.encode()) / 1e6, abs=0.05)
    assert len(html) < 3e6


def test_mean_accuracy_comes_first_and_mce_beside_it_against_the_standard_run(two: Report) -> None:
    """Twice as many errors of the base everywhere: 50 %; the relative one is (10 - 2) / (20 - 2). The base has no interval."""
    markdown = two.to_markdown()
    between = r"\S+, \S+\]"
    assert re.search(
        rf"^\| slat \| 90\.0 {between} \| plain \| 50\.0 {between} \| 44\.4 {between} \|$", markdown, re.MULTILINE
    )
    assert re.search(rf"^\| plain \| 80\.0 {between} \| plain \| 100 \| 100 \|$", markdown, re.MULTILINE)
    assert re.search(r"^\| fog \| 100 \| 50\.0 ", markdown, re.MULTILINE)
    assert re.search(rf"^\| mFR, % of plain \| 100 \| 100\.0 {between} \|$", markdown, re.MULTILINE)


def test_sizes_cost_and_settings_are_told(two: Report) -> None:
    markdown = two.to_markdown()
    assert "| conv1 | 0.5 | 1 | 1 | 25 % | 12.5 % | 75 % |" in markdown
    assert "| plain | Standard | 5 | 4.0 s | 1,000 | 0.3 s | cpu |" in markdown
    assert "| slat | SLAT | 5 | 4.0 s | 1,000 | 0.3 s | cpu |" in markdown
    assert "| method.name | Standard | SLAT |" in markdown
    assert "layerwise train " in markdown
    assert "held" not in markdown
    assert "- fooled: zero: seen as zero (90 %), attacked as one (50 %), linf distance 0.2" in markdown


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    folder = put(tmp_path / "a", without(evaluated(), Examples, Landscape, InputGradients))
    one, again = report([folder]), report([folder])
    assert (one.to_html(), one.to_markdown(), one.to_json()) == (again.to_html(), again.to_markdown(), again.to_json())


def test_the_json_holds_the_verdicts_the_table_and_the_runs(two: Report) -> None:
    found = json.loads(two.to_json())
    assert [v["name"] for v in found["verdicts"]] == ["plain", "slat"]
    assert found["rows"][1]["cells"]["fgsm"]["value"] == 0.4
    assert [len(found["runs"][name]) for name in ("plain", "slat")] == [1, 2]
    assert found["runs"]["slat"][0]["epochs"][1]["robust"] == 0.4
    assert found["runs"]["slat"][0]["evaluation"]["measures"][0]["says"].startswith("rho_2 with 5 DeepFool steps: 0.2")


def test_what_is_missing_stands_in_one_place_with_one_command(tmp_path: Path) -> None:
    bare = replace(record(clean=90, fgsm=40), measures=(Measured("rho steps=5", Rho(0.2, 90, 10, 0.0, 5, 2.0)),))
    folder = put(tmp_path / "bare", bare, lines=[])
    made = report([folder])
    html = made.to_html()
    page = Page(html)
    assert page.said("h2") == ["bare", "Comparison", "Cost", "Not measured", "Settings", "Provenance"]
    # That AutoAttack was not run, everything that is missing, and how to evaluate again.
    typed = f"<code>layerwise evaluate {shlex.quote(str(folder))} --"
    assert html.replace("&#39;", "'").count(typed) == 3
    assert not page.of("img")
    markdown = made.to_markdown()
    assert re.search(r"^\| Validation accuracy \| layerwise train \.\.\. --training\.eval", markdown, re.MULTILINE)
    assert re.search(r"^\| Perturbations by layer \| .* layerwise train slat-digits", markdown, re.MULTILINE)
    for title in MEASURED:
        assert re.search(rf"^\| {re.escape(escape(title))} \| [a-z]", markdown, re.MULTILINE), title
    (command,) = re.findall("`(layerwise evaluate [^`]*landscape[^`]*)`", markdown)
    # What is there stays there.
    assert "[rho steps=5, " in command
    assert "two networks" not in command
    assert "reassignment" not in command


def test_overfitting_is_marked_in_the_curves(tmp_path: Path) -> None:
    lines = metrics(robust=(0.6, 0.02), flags=(OVERFITTING,))
    html = report([put(tmp_path / "a", record(clean=90, fgsm=40), lines=lines)]).to_html()
    (image,) = [i for i in Page(html).of("img") if i["alt"].startswith("Validation accuracy")]
    assert "a overfitted catastrophically in epoch 2" in image["alt"]
    assert b"overfitting" in base64.b64decode(image["src"].partition(",")[2])


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Report:
    made = everything(tmp_path_factory.mktemp("harmless"), None)
    with pytest.MonkeyPatch.context() as patch:
        skip_drawing(patch)
        assert made.sections
    return made


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a|b\n| c |\n|---|\n```\n<details>`` ** _x_ [l](javascript:1) ![i](http://e.x/p)",
    "$x^{2$ \\frac{ $_ _a",
    "]]>&amp;&lt;--></style></title></code>{{ 7*7 }}{% raw %}",
    "long" * 200,
    "\u202eevil\u0000\u001b[31m \U0001f600\u200d\U0001f525 مرحبا HALF",
]


def folder_name(word: str) -> str:
    """What a file system takes of a word."""
    return re.sub("[/\0]", "", word)[:60]


def halve(folder: Path) -> Path:
    """Put half a character, which JSON can hold and a text file cannot, where the text says HALF."""
    for file in folder.glob("*.json*"):
        file.write_text(file.read_text(encoding="utf-8").replace("HALF", "\\ud800"), encoding="utf-8")
    return folder


def everything(folder: Path, word: str | None) -> Report:
    words = Words() if word is None else Words(*[word] * 6)
    settings = config(words) | {"note": words.setting}
    names = ("one", "two") if word is None else (f"1{folder_name(word)}", f"2{folder_name(word)}")
    lines = metrics(words, flags=[OVERFITTING])
    runs = [
        halve(put(folder / name, evaluated(words, wrong=10 * i), lines=lines, settings=settings))
        for i, name in enumerate(names, 1)
    ]
    return report(runs)


@pytest.mark.parametrize("word", HOSTILE, ids=["script", "image", "markdown", "mathematics", "ends", "long", "marks"])
@pytest.mark.usefixtures("undrawn")
def test_no_text_from_a_run_breaks_out_of_its_place(tmp_path: Path, harmless: Report, word: str) -> None:
    """A hostile run gives the tags of a harmless one, in HTML and in markdown that is rendered with HTML allowed."""
    hostile = everything(tmp_path, word)
    html = hostile.to_html()
    mine, theirs = Page(html), Page(harmless.to_html())
    assert mine.shape == theirs.shape
    assert "cannot be drawn" not in html
    assert "\u202e" not in html
    parsed = [
        MarkdownIt("commonmark", {"html": True}).enable("table").parse(r.to_markdown()) for r in (hostile, harmless)
    ]
    kinds = [
        [(t.type, t.tag, [c.type for c in t.children or [] if c.type not in ("text", "text_special")]) for t in tokens]
        for tokens in parsed
    ]
    assert kinds[0] == kinds[1]
    json.loads(hostile.to_json())
    hostile.write(tmp_path / "report")


def test_names_in_figures_are_drawn_as_text(tmp_path: Path) -> None:
    runs = []
    for i, word in enumerate(HOSTILE):
        words = Words(*[word] * 6)
        evaluation = evaluated(words)
        bare = replace(
            evaluation, measures=tuple(m for m in evaluation.measures if isinstance(m.found, FeatureGradients))
        )
        runs.append(halve(put(tmp_path / f"{i}{folder_name(word)}", bare, lines=[])))
    (image, *_) = [i for i in Page(report(runs).to_html()).of("img") if i["alt"].startswith("Feature gradients")]
    tree = ElementTree.fromstring(base64.b64decode(image["src"].partition(",")[2]))
    assert {element.tag.rpartition("}")[2] for element in tree.iter()} <= DRAWN
    said = " ".join(text for element in tree.iter() if (text := element.text))
    for expected in ("<script>alert(1)", "$x^{2$", "longlong", "مرحبا"):
        assert expected in said


DRAWN = {"svg", "defs", "style", "g", "path", "use", "clipPath", "rect", "text", "tspan", "image", "metadata", "RDF", "Work", "type",
         "format", "creator", "Agent", "title"}  # fmt: skip
"""What matplotlib draws with."""


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-30])


def foreign(file: Path) -> None:
    file.write_text('{"other": [1, 2]}\n')


def binary(file: Path) -> None:
    file.write_bytes(bytes(range(256)))


def gone(file: Path) -> None:
    file.unlink()


def deep(file: Path) -> None:
    file.write_text("[" * 100_000)


def bomb(file: Path) -> None:
    """A few lines of YAML that stand for ten billion values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    file.write_text("\n".join(lines))


def circle(file: Path) -> None:
    file.write_text("a: &a [*a]\n")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("damage", [bomb, circle])
def test_endless_settings_are_not_shown(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = put(tmp_path / "a", record(clean=90, fgsm=40))
    damage(folder / "config.yaml")
    made = report([folder])
    (problem,) = made.entries[0].first.problems
    assert re.search("config.yaml cannot be read .*without aliases", problem)
    assert problem in made.to_html()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "versions.json"])
@pytest.mark.parametrize("damage", [cut, foreign, binary, gone, deep])
def test_damage_beside_the_record_costs_what_the_file_holds(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = put(tmp_path / "a", record(clean=90, fgsm=40))
    damage(folder / name)
    made = report([folder])
    assert made.verdicts[0].figure.startswith("40.0 %")
    told = Page(made.to_html()).said("h2")
    lost = {
        "metrics.jsonl": {"Training", "Perturbations by layer"},
        "config.yaml": {"Settings"},
        "versions.json": set(),
    }
    whole = ["a", *(title for title in SECTIONS if title not in MEASURED)]
    assert told in (whole, [title for title in whole if title not in lost[name]])
    problems = made.entries[0].first.problems
    if damage is foreign and name != "metrics.jsonl":
        assert not problems
    elif damage is cut and name == "config.yaml":
        assert len(problems) <= 1  # the rest may be YAML
    else:
        assert len(problems) == 1
        assert name in problems[0]
        assert problems[0] in made.to_html().replace("&#39;", "'").replace("&#34;", '"')


def test_metrics_are_shown_up_to_the_damage(tmp_path: Path) -> None:
    folder = put(tmp_path / "a", record(clean=90, fgsm=40))
    cut(folder / "metrics.jsonl")
    run = report([folder]).entries[0].first
    assert run.problems == ("metrics.jsonl is damaged at line 6; what stands before it is shown.",)
    assert run.history.curve("train", "loss") == [(1.0, 3.0), (2.0, 1.5)]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "line",
    [
        {"kind": "train", "epoch": 1, "step": "x", "loss": [1], "lr": None},
        {"kind": "epoch", "epoch": 0, "step": 10**400, "clean": "nan", "robust": True, "flags": 5},
        {"kind": "epoch", "epoch": [], "step": {}, "clean": 1e308, "flags": ["catastrophic-overfitting"]},
        {"kind": "sites", "sites": [1]},
        {"kind": "sites", "sites": {"a": 1, "b": {"rms": "inf", "survival": None}}},
        {"kind": ["epoch"]},
    ],
)
def test_numbers_that_are_none_are_left_out(tmp_path: Path, line: dict[str, object]) -> None:
    folder = put(tmp_path / "a", record(clean=90, fgsm=40), lines=[line, *metrics(), line])
    made = report([folder])
    assert "cannot be drawn" not in made.to_html()
    json.loads(made.to_json())


@pytest.mark.usefixtures("undrawn")
def test_a_measurement_that_cannot_be_drawn_costs_its_figure(tmp_path: Path) -> None:
    found = evaluated()
    broken = [
        replace(m, found=replace(m.found, radii=(0.1,))) if isinstance(m.found, RadiusCurve) else m
        for m in found.measures
    ]
    html = report([put(tmp_path / "a", replace(found, measures=tuple(broken)))]).to_html()
    assert html.count("cannot be drawn") == 1
    assert "Accuracy over radius cannot be drawn from what the record holds (ValueError" in html


@pytest.mark.parametrize("damage", [cut, foreign, binary, deep])
def test_a_damaged_record_is_an_error_and_writes_nothing(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = put(tmp_path / "a", evaluated())
    damage(folder / "evaluation.json")
    with pytest.raises(CheckpointError, match=r"evaluation\.json"):
        report([folder])


def test_nothing_is_written_before_all_is_made(tmp_path: Path, two: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Report) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(Report, "to_html", fail)
    with pytest.raises(ZeroDivisionError):
        two.write(tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_folder_gets_the_three_files(tmp_path: Path, two: Report) -> None:
    assert two.write(tmp_path / "there") == tmp_path / "there" / "report.html"
    assert sorted(os.listdir(tmp_path / "there")) == ["report.html", "report.json", "report.md"]
    assert (tmp_path / "there" / "report.md").read_text() == two.to_markdown()


def test_the_record_that_the_verdict_asks_for_is_taken_where_all_runs_have_it(tmp_path: Path) -> None:
    a, b = put(tmp_path / "a", evaluated()), put(tmp_path / "b", evaluated())
    assert report([a, b]).record == "evaluation"
    evaluated().write(a, "evaluation-standard")
    assert report([a, b]).record == "evaluation"
    evaluated().write(b, "evaluation-standard")
    assert report([a, b]).record == "evaluation-standard"
    assert report([a, b], record="evaluation").record == "evaluation"


def test_figures_follow_a_dark_scheme(two: Report) -> None:
    vectors = [uri.partition(",")[2] for uri in re.findall(r'src="(data:image/svg[^"]*)"', two.to_html())]
    assert vectors
    for drawn in map(base64.b64decode, vectors):
        assert b"prefers-color-scheme: dark" in drawn
        assert b"fill: #ffffff; stroke" not in drawn
    assert any(b'[style*="stroke: #0072b2"] { stroke: #59a3cd' in drawn for drawn in map(base64.b64decode, vectors))


def test_what_is_the_same_of_all_examples_is_said_once(two: Report) -> None:
    assert two.to_markdown().count("The first 1 images of the evaluation") == 1
    assert (
        Page(two.to_html()).said("p").count(next(t for t in Page(two.to_html()).said("p") if "The first 1" in t)) == 1
    )
