"""What `layerwise reproduce list` shows, as data: computing it anew takes half a minute, and it changes with the papers' definitions only.

`python -m benchmarks.costs` writes it, a test holds that it is current.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

FILE = Path(__file__).with_name("costs.json")


def read() -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """Header, a row for each table and figure with its time at each scale, and what the times assume."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    return tuple(found["header"]), [tuple(row) for row in found["rows"]], found["assumed"]


def text(header: Sequence[str], rows: Sequence[Sequence[str]], assumed: str) -> str:
    """The file's text, a line a row."""
    lines = ",\n  ".join(json.dumps(list(row), ensure_ascii=False) for row in rows)
    head = json.dumps(list(header))
    return f'{{"header": {head},\n "assumed": {json.dumps(assumed, ensure_ascii=False)},\n "rows": [\n  {lines}\n]}}\n'
