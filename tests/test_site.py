"""The pages that the documentation site makes from the package, and the links of all pages."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import generate  # noqa: E402

from layerwise.core import registry  # noqa: E402

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    linked = LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in linked if not (page.parent / link).exists()] == []


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


def test_every_page_is_led_to() -> None:
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8").splitlines()
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index", "roadmap"}
    assert pages - set(index) == set()
