"""The papers' settings beside ours, which docs/papers.md shows: written after a recipe, a definition or a file of settings has changed.

python -m benchmarks.papers
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from layerwise.files import write_text
from layerwise.reproduce import compared
from layerwise.reproduce.papers import paper
from layerwise.reproduce.render import cell_text

PAGE = Path(__file__).parents[1] / "docs" / "papers.md"

HEADER = ("of", "setting", "section", "printed", "ours", "times", "verdict")

HEAD = """# The papers' settings and ours

Written by `python -m benchmarks.papers` from `reproduce/settings/`, the recipes and the tables' definitions; a test computes every
verdict anew. What is set is that of the scale `full`, read from the recipes. **As printed**: ours is what the paper prints.
**Differs**: it is not, for the reason given. **Not printed: ours**: the paper prints nothing, and this is why ours is what it is. Every
setting that a row's weights depend on has to stand here, or the row is *absent*; a difference without a reason is *wrong*.

Systems are the rows of a paper's own method, baselines all others; attacks are the columns of the tables, protocol is seeds and the
options of figures; equations are held by the tests that are named. Claims are sentences with a predicate that decides them from a record's
numbers; those that none decides are listed with the reason.
"""


def page() -> str:
    """The page's text as it should be."""
    parts = [HEAD, _table(("paper", *compared.PARTS), [_summary(name) for name in compared.METHODS])]
    lines = {name: compared.compare(name) for name in compared.METHODS}
    common = compared.merged(line for found in lines.values() for line in found if line.entry.shared)
    sections = {"All papers": common}
    sections |= {paper(name).title: [x for x in found if not x.entry.shared] for name, found in lines.items()}
    for title, chosen in sections.items():
        parts += [f"## {title}", _table(HEADER, list(compared.rows(chosen)))]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _summary(name: str) -> tuple[str, ...]:
    found = compared.summary(name)
    return (paper(name).name, *(compared.numbers(found[part]) for part in compared.PARTS))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell_text(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    write_text(PAGE, page())
