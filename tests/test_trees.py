"""Trees: what tokens, dotted keys and YAML become, and YAML again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from layerwise.errors import ConfigError
from layerwise.trees import NotYAML, Tree, Typed, at, dump_yaml, load_yaml, nested, parse_yaml, put, tokens_to_tree


def test_yaml_round_trip(tmp_path: Path) -> None:
    tree = {"a": {"b": [1, 2.5, None, "8/255"], "c": True}, "d": (1, 2)}
    (tmp_path / "t.yaml").write_text(dump_yaml(tree))
    assert load_yaml(tmp_path / "t.yaml") == {**tree, "d": [1, 2]}


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: [", b"- a\n", b"1: 2\n", b""])
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "t.yaml"))) as caught:
        load_yaml(tmp_path / "t.yaml")
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_yaml(tmp_path)


def test_tokens() -> None:
    assert tokens_to_tree(["--a.b", "1", "--a={c: 2}"]) == {"a": "{c: 2}"}
    assert tokens_to_tree(["--a.b-c", "1", "--a.d=x=y", "--e", "-1"]) == {"a": {"b_c": "1", "d": "x=y"}, "e": "-1"}


def test_numbers_with_an_exponent_need_no_point() -> None:
    assert parse_yaml("[5e-4, 1E3, -2e+1, .5e1, 4.0e-3]", "it") == [5e-4, 1e3, -20.0, 5.0, 4e-3]
    assert parse_yaml("[8/255, e4, 1e, 5e-4x, '5e-4']", "it") == ["8/255", "e4", "1e", "5e-4x", "5e-4"]
    text = dump_yaml({"name": "5e-4", "lr": 5e-4})
    assert parse_yaml(text, "it") == {"name": "5e-4", "lr": 5e-4}


@pytest.mark.parametrize(
    ("settings", "tree"),
    [
        ([("a.b", 1), ("a.c", 2)], {"a": {"b": 1, "c": 2}}),
        ([("a", "X"), ("a.b", 1)], {"a": {"name": "X", "b": 1}}),
        ([("a.b", 1), ("a", "X")], {"a": {"name": "X", "b": 1}}),
        ([("a.b", 1), ("a", 2)], {"a": 2}),
        ([("a.b", 1), ("a", {"c": 2})], {"a": {"b": 1, "c": 2}}),
        ([("a", Typed("{b: 1}")), ("a.c", 2)], {"a": {"b": 1, "c": 2}}),
        ([("a.b", 1), ("a", Typed("{c: 2}"))], {"a": "{c: 2}"}),
        ([("a", None), ("a.b", 1)], {"a": {"name": None, "b": 1}}),
    ],
)
def test_what_dotted_keys_become(settings: list[tuple[str, Any]], tree: Tree) -> None:
    found: Tree = {}
    for key, value in settings:
        put(found, key, value)
    assert found == tree


def test_a_tree_that_is_given_stays_as_it_is() -> None:
    given = {"a": {"b": 1}}
    assert nested({"x": given, "x.a.b": 2}) == {"x": {"a": {"b": 2}}}
    assert given == {"a": {"b": 1}}


def test_what_lies_at_a_key() -> None:
    tree = {"a": {"b": None, "c": [1]}}
    assert (at(tree, "a.c"), at(tree, "a.b", 3), at(tree, "a.d", 3), at(tree, "a.c.d", 3)) == ([1], None, 3, 3)


@pytest.mark.parametrize(
    "text", ["a: [", "a: b: c", "{a: *b}", "--- 1\n--- 2", "!!python/name:os.system", "\udc80", "2000-01-40"]
)
def test_what_is_no_yaml(text: str) -> None:
    with pytest.raises(NotYAML, match=r"^it is not YAML: ") as told:
        parse_yaml(text, "it")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "text",
    ["- " * 60_000, "? " * 60_000, "{? " * 9_000, ("[" * 150 + "\n#" + "]" * 150 + "\n") * 400,
     "a0: &a0 [1]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 60)), "a: &a {b: [*a]}"],
    ids=["sequences", "keys", "both", "comments", "aliases", "itself"],
)  # fmt: skip
def test_depth_is_refused_before_anything_recursive_sees_it(text: str) -> None:
    with pytest.raises(ConfigError, match="stands for more than 20,000 values, or for values more than 40 levels deep"):
        parse_yaml(text, "it")
