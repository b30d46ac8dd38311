"""The registry: names are given once, found in any case, and a user's own by `my_module:Name` where the user typed it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerwise.core import registry
from layerwise.core.registry import Entry, entries, find, names, register
from layerwise.errors import ConfigError


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """What a test registers is gone afterwards."""
    before = {
        kind: entries(kind) for kind in registry.KINDS
    }  # all of it: what is imported first in a test is gone for good
    yield
    for kind, known in before.items():
        registry._ENTRIES[kind].clear()
        registry._ENTRIES[kind].update(known)


def made() -> None:
    """A thing. It does nothing."""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "users_things", raising=False)
    text = """
from layerwise.core.registry import register

@register("data", "by-name")
def read():
    "Mine."

class Plain:
    pass
"""
    (tmp_path / "users_things.py").write_text(text)
    return tmp_path


def test_a_thing_is_found_by_its_name_in_any_case() -> None:
    assert register("data", "Mine", where="here")(made) is made
    assert find("data", "mIne") == Entry("data", "Mine", made, {"where": "here"})
    assert find("data", "Mine").summary == "A thing. It does nothing."
    assert "Mine" in names("data")
    assert entries("data")["Mine"].thing is made


@pytest.mark.parametrize(("name", "says"), [("a.b", "mark import paths"), ("a:b", "mark import paths")])
def test_names_that_cannot_be(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        register("data", name)(made)


def test_a_name_belongs_to_one_thing_and_may_be_given_to_it_again() -> None:
    register("data", "mine")(made)
    register("data", "mine")(made)
    with pytest.raises(ConfigError, match="the data set name 'mine' is taken"):
        register("data", "mine")(test_names_that_cannot_be)


def test_an_unknown_name_is_told_the_closest() -> None:
    register("data", "mine")(made)
    with pytest.raises(ConfigError, match=r"there is no data set 'mime'; did you mean 'mine'\?"):
        find("data", "mime")


def test_a_users_module_is_imported_only_where_it_is_trusted(module: Path) -> None:
    with pytest.raises(ConfigError, match="add --trust"):
        find("data", "users_things:read")
    by_attribute = find("data", "users_things:read", trust=True)
    assert by_attribute.name == "by-name"
    assert find("data", "users_things:by-name", trust=True) == by_attribute == find("data", "by-name")


def test_what_a_users_module_lacks_or_holds_of_another_kind(module: Path) -> None:
    with pytest.raises(ConfigError, match="is no_such_module installed"):
        find("data", "no_such_module:read", trust=True)
    with pytest.raises(ConfigError, match=r"users_things holds no 'reed'; did you mean 'read'\?"):
        find("data", "users_things:reed", trust=True)
    with pytest.raises(ConfigError, match="'users_things:Plain' is Plain, no criterion; name a class derived from"):
        find("criterion", "users_things:Plain", trust=True)
    with pytest.raises(
        ConfigError,
        match=r"'m' is a module, no data set; name a class derived from .*ImageData, or a func",
    ):
        registry.KINDS["data"].check(pytest, "m")
