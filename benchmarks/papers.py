"""The papers' settings beside ours, which docs/papers.md shows: written after a recipe, a definition or a file of settings has changed.

python -m benchmarks.papers
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from layerwise.evaluation.record import escape
from layerwise.files import write_text
from layerwise.reproduce import compared
from layerwise.reproduce.papers import paper

PAGE = Path(__file__).parents[1] / "docs" / "papers.md"

HEADER = ("of", "setting", "section", "printed", "ours", "times", "verdict")

HEAD = """# The papers' settings and ours

Written by `python -m benchmarks.papers` from `reproduce/settings/`, the recipes and the tables' definitions; a test computes every
verdict anew. What is set is that of the scale `full`, read from the recipes. **As printed**: ours is what the paper prints.
**Differs**: it is not, for the reason given. **Not printed: ours**: the paper prints nothing, and this is why ours is what it is. Every
setting that a row's weights depend on has to stand here, or the row is *absent*; a difference without a reason is *wrong*.

Systems are the rows of a paper's own method, baselines all others; attacks are the columns of the tables, protocol is seeds and the
options of figures; equations are held by the tests that are named. Claims are sentences with a predicate that decides them from a record's
numbers: all of them.
"""


def page() -> str:
    """The page's text as it should be."""
    parts = [HEAD, _table(("paper", *compared.PARTS), [_summary(name) for name in compared.METHODS])]
    lines = {name: compared.compare(name) for name in compared.METHODS}
    common = _merged(line for found in lines.values() for line in found if line.entry.shared)
    sections = {"All papers": common}
    sections |= {paper(name).title: [x for x in found if not x.entry.shared] for name, found in lines.items()}
    for title, chosen in sections.items():
        parts += [f"## {title}", _table(HEADER, list(_rows(chosen)))]
    parts += [
        "## Numbers of the running text",
        _table(("paper", "section", "what", "printed", "decides"), list(_in_text())),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _in_text() -> Iterator[tuple[str, ...]]:
    for name in compared.METHODS:
        for number in paper(name).in_text:
            printed = ", ".join(f"{what}: {digits}" for what, digits in number.values.items())
            yield paper(name).name, number.where, number.what, printed, ", ".join(number.claims)


def _summary(name: str) -> tuple[str, ...]:
    found = compared.summary(name)
    return (paper(name).name, *(_numbers(found[part]) for part in compared.PARTS))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([escape(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _numbers(counts: Mapping[str, int]) -> str:
    """Counts of a part in a cell: `20`, or `18, 2 wrong`."""
    return ", ".join(
        [str(counts["present"]), *(f"{n} {name}" for name, n in counts.items() if n and name != "present")]
    )


def _merged(lines: Iterable[compared.Line]) -> list[compared.Line]:
    """Lines of several papers that stand on the same shared entry, as one."""
    found: dict[tuple[int, str, str], compared.Line] = {}
    for number, line in enumerate(lines):
        key = (id(line.entry), line.key, line.verdict)
        before = found[key].found if key in found else {}
        found[key] = replace(
            line, found={**before, **{f"{number} {name}": value for name, value in line.found.items()}}
        )
    return list(found.values())


def _rows(lines: Iterable[compared.Line]) -> Iterator[tuple[str, ...]]:
    """The lines as rows of a table: setting, section, what is printed, what is set and how often, verdict."""
    for line in lines:
        values = list(dict.fromkeys(str(_plain(value)) for value in line.found.values()))
        some = ", ".join(values[:4]) + (f" and {len(values) - 4} more" if len(values) > 4 else "")
        printed = "" if line.verdict == compared.OURS else str(_plain(line.entry.printed.get(line.key, "")))
        verdict = line.verdict + (f", because {line.why}" if line.why else "")
        where = line.entry.where if printed else ""
        yield _scope(line.entry), line.key, where, printed, some, str(len(line.found)), verdict


def _scope(entry: compared.Entry) -> str:
    names = "" if entry.only == ("*",) else ", ".join(entry.only)
    conditions = ", ".join(f"{key.rpartition('.')[2]} {_plain(value)}" for key, value in entry.when.items())
    return "; ".join(part for part in (names, conditions) if part) or f"all {entry.of}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping) and "among" in value:
        return " or ".join(str(_plain(one)) for one in value["among"])
    if isinstance(value, float):
        parts = value * 255
        return (
            f"{parts:.4g}/255"
            if 0 < value < 0.1 and math.isclose(parts, round(parts, 1), rel_tol=1e-6)
            else f"{value:g}"
        )
    if isinstance(value, list | tuple):
        return ", ".join(str(_plain(one)) for one in value)
    return value


if __name__ == "__main__":
    write_text(PAGE, page())
