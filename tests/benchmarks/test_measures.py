"""The page of the measures is made from what they say of themselves."""

from __future__ import annotations

from benchmarks.measures import PAGE, page


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "type: python -m benchmarks.measures"
