"""The pages that the documentation site makes from the package, and the links of all pages."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import generate  # noqa: E402
import records  # noqa: E402

from layerwise import errors  # noqa: E402
from layerwise.core import registry  # noqa: E402
from layerwise.evaluation import checks  # noqa: E402

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/tutorials").glob("*.md")]
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    linked = LINK.findall(page.read_text(encoding="utf-8"))
    made = [link for link in linked if "generated/" in link]  # what the site makes is checked when it is built
    assert [link for link in linked if link not in made and not (page.parent / link).exists()] == []


def test_every_address_of_the_readme_is_a_file_of_the_project() -> None:
    """The index of packages shows the README without its folder, so its links are whole."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    text = (ROOT / "README.md").read_text(encoding="utf-8") + " ".join(urls.values())
    named = re.findall(re.escape(urls["Source"]) + r"/blob/main/([^)\s\"]+)", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_page_has_a_way_on() -> None:
    """At least one link to another page; the index of the site leads to all of them."""
    pages = [page for page in PAGES if page.parent != ROOT and page.stem not in ("index", "roadmap", "papers")]
    assert [page.name for page in pages if not re.search(r"\]\([^)#:]+\.md", page.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("work", "what", "owner"),
    [
        ("Park and Lee 2021", "algorithm 1", "SLAT.batch_losses"),
        ("Liu et al. 2021", "algorithm 1", "ANP.batch_losses"),
        ("Sankaranarayanan et al. 2018", "algorithm 1", "LAT.batch_losses"),
        ("Yan et al. 2018", "eq. 6", "DeepDefense"),
    ],
)
def test_an_equation_is_found_where_it_is_computed(work: str, what: str, owner: str) -> None:
    found = [p for p in generate.places() if (p.work, p.what, p.owner) == (work, what, owner)]
    assert len(found) == 1
    line = (generate.SOURCE / found[0].path).read_text(encoding="utf-8").splitlines()[found[0].line - 1]
    assert owner.rpartition(".")[2] in line


def test_each_method_has_a_page_that_says_what_it_costs(tmp_path: Path) -> None:
    generate.write_pages(tmp_path)
    slat = (tmp_path / "methods/SLAT.md").read_text()
    assert "5 passes a batch, 1.67 times standard training" in slat
    assert "- `layerwise train slat-digits`\n" in slat
    pages = {page.stem for page in (tmp_path / "methods").glob("*.md")} - {"index"}
    assert pages == set(registry.names("method"))
    assert "layerwise train" in (tmp_path / "commands.md").read_text()


def test_every_self_check_is_told_with_its_threshold_and_what_to_do() -> None:
    page = records.checks_page()
    found = [each for each in vars(checks).values() if isinstance(each, checks.Check)]
    assert len(found) == 17
    for each in found:
        part = page.partition(f"\n## {each.name}\n")[2].partition("\n## ")[0]
        assert f"**Threshold**: {100 * each.threshold:g} %" in part
        assert "**What to do**: " in part


def test_every_kind_of_error_is_told() -> None:
    page = records.errors_page()
    own = (cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.LayerwiseError))
    kinds = {cls.__name__ for cls in own}
    assert kinds == set(re.findall(r"^## (\w+)$", page, re.MULTILINE))
    assert set(records.MEND) == kinds - {"LayerwiseError"}


def test_a_notebook_holds_the_code_of_its_tutorial_and_no_output() -> None:
    made = dict(records.notebooks())
    assert len(made) == 8
    for name, text in made.items():
        page = (ROOT / "docs/tutorials" / f"{Path(name).stem}.md").read_text(encoding="utf-8")
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        assert ["".join(cell["source"]).strip() for cell in cells] == [
            block.strip() for block in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        ]
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_which_method_when_shows_each_record_with_its_interval() -> None:
    page = records.which_page()
    tried = records.read(records.TRIED)
    for name, entry in tried.items():
        if "chosen" in entry:
            assert re.search(rf"^\| `{name}` \| .* % \[[\d.]+, [\d.]+\] \|$", page, re.MULTILINE)


def test_every_page_is_led_to() -> None:
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8").splitlines()
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index", "roadmap"}
    assert pages - set(index) == set()
