"""What the papers' tables and figures cost, which `layerwise reproduce list` shows: written after a definition or a cost has changed.

python -m benchmarks.costs
"""

from __future__ import annotations

from layerwise.files import write_text
from layerwise.reproduce import costs, definitions, listed


def current() -> str:
    """The file's text as it should be."""
    return listed.text(*costs.listing(definitions.items().values()), costs.ASSUMED)


if __name__ == "__main__":
    write_text(listed.FILE, current())
