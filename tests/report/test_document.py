"""Text that stays text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from layerwise.evaluation.record import escape
from layerwise.report.document import Table, clean, code, shorten, table

PARSER = MarkdownIt("commonmark", {"html": True}).enable("table")


def spoken(markdown: str) -> list[str]:
    """The text that a renderer shows, cell by cell or line by line."""
    return ["".join(c.content for c in t.children or []) for t in PARSER.parse(markdown) if t.type == "inline"]


TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp"), blacklist_characters="\ufeff"), max_size=30)


@given(TEXT)
def test_a_cell_shows_its_text_and_nothing_else(text: str) -> None:
    cells = spoken(table(Table(("name", "value"), ((text, "1"), ("b", text)), "caption")))
    said = " ".join(text.split())
    assert cells == ["name", "value", said, "1", "b", said]


@given(TEXT.filter(str.strip))
def test_code_shows_its_text(text: str) -> None:
    (inline,) = [t for t in PARSER.parse(f"a {code(text)} b") if t.type == "inline"]
    assert [c.content for c in inline.children or [] if c.type == "code_inline"] == [" ".join(text.split())]


@given(TEXT)
def test_a_mention_or_a_heading_is_text(text: str) -> None:
    for begin in ("@someone ", "# ", "- ", "1. ", "<b>", "&lt;"):
        assert "@someone" not in escape(begin + text).replace("\\@", "")


@given(st.text(max_size=40), st.integers(3, 30))
def test_names_are_shortened_in_the_middle(text: str, length: int) -> None:
    short = shorten(text, length)
    assert len(short) <= length
    assert short == text or (short[0], short[-1]) == (text[0], text[-1])


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers()) | st.text(), max_size=3))
def test_clean_text_can_be_written_and_stays_clean(value: object) -> None:
    once = clean(value)
    assert clean(once) == once
    text = str(once)
    assert "\u202e" not in text
    text.encode()
