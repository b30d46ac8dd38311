"""Write docs/measures.md, from what every measure says of itself.

    python -m benchmarks.measures

A test holds that the page is current: a new measure is a file in `layerwise/evaluation/measures`, and this command.
"""

from __future__ import annotations

from pathlib import Path

from layerwise.core.registry import entries
from layerwise.evaluation.measure import result_of, usual_sizes

PAGE = Path(__file__).parents[1] / "docs" / "measures.md"

HEAD = """\
# Measures

Made by `python -m benchmarks.measures` from the measures' own files. How they are asked for:
[evaluation.md](evaluation.md). What is written with a size, such as `landscape points=21`, has the other sizes as they are usually.

| measure | usual sizes | what it shows | how to read it |
|---|---|---|---|
"""


def page() -> str:
    """The page in markdown."""
    rows = []
    for entry in entries("measure").values():
        sizes = f"`{usual}`" if (usual := usual_sizes(entry)) else ""
        other = " Needs `--evaluation.baseline RUN`." if entry.facts.get("other") else ""
        caption = result_of(entry).caption.replace("|", "\\|")
        rows.append(f"| `{entry.name}` | {sizes} | {entry.summary.replace('|', chr(92) + '|')}{other} | {caption} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
