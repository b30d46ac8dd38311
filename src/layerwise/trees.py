"""Trees of settings: what tokens, dotted keys and YAML become, and YAML again; of bounded size, as a text may be a stranger's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from layerwise.errors import ConfigError

Tree = dict[str, Any]

MOST_TEXT, MOST_VALUES, DEEPEST = 1 << 17, 20_000, 40
"""Characters, values and levels of a configuration; recipes have 2,000, 60 and 4."""


class Typed(str):
    """A value as the command line gives it: text whose type the setting decides."""


class NotYAML(ConfigError):
    """A text that is no YAML; on the command line it may be meant as it stands."""


def put(tree: Tree, key: str, value: Any) -> None:
    """Set a dotted key; a mapping joins the one that lies there, and a text there names the class whose fields that one sets.

    >>> tree: Tree = {"method": "SLAT", "model": {"options": {"a": 1}}}
    >>> put(tree, "method.eta", 0.1)
    >>> put(tree, "method", "ANP")
    >>> put(tree, "model.options", {"b": 2})
    >>> tree
    {'method': {'name': 'ANP', 'eta': 0.1}, 'model': {'options': {'a': 1, 'b': 2}}}
    """
    branch = tree
    *path, last = key.split(".")
    for part in path:
        below = untyped(branch.get(part, {}))
        branch[part] = dict(below) if isinstance(below, Mapping) else {"name": below}
        branch = branch[part]
    there = branch.get(last)
    if isinstance(there, Mapping) and isinstance(value, Mapping):
        value = {**there, **value}
    elif isinstance(there, Mapping) and isinstance(value, str) and value[:1] != "{":
        value = {**there, "name": value}
    branch[last] = value


def at(tree: Any, key: str, default: Any = None) -> Any:
    """What lies at a dotted key, `default` where nothing does.

    >>> at({"method": {"eta": 0.1}}, "method.eta"), at({"method": None}, "method.eta")
    (0.1, None)
    """
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return default
        tree = tree[part]
    return tree


def nested(settings: Mapping[str, Any]) -> Tree:
    """{dotted setting: value} as a tree, see `put`.

    >>> nested({"method.eta.conv1": 0.1, "training.epochs": 5})
    {'method': {'eta': {'conv1': 0.1}}, 'training': {'epochs': 5}}
    """
    tree: Tree = {}
    for key, value in settings.items():
        put(tree, key, value)
    return tree


def tokens_to_tree(tokens: Sequence[str]) -> Tree:
    """The tree that `--key value` and `--key=value` tokens spell.

    >>> tokens_to_tree(["--method.eta", "0.1", "--method=ANP"])
    {'method': {'eta': '0.1', 'name': 'ANP'}}

    Raises:
        ConfigError: a token that is no setting, or a setting without value.
    """
    tree: Tree = {}
    for key, value in _pairs(tokens):
        put(tree, key.replace("-", "_"), Typed(value))
    return tree


def _pairs(tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = list(tokens)
    while rest:
        head = rest.pop(0)
        if not head.startswith("--"):
            raise ConfigError(f"unexpected argument {head!r}; settings are typed as --key value")
        key, equals, value = head[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{key} has no value; type --{key} VALUE")
            value = rest.pop(0)
        yield key, value


def untyped(value: Any) -> Any:
    """A branch typed as one text, `null` or `{name: ..., ...}`, as what it says."""
    if isinstance(value, Typed):
        if value in ("null", "None"):
            return None
        if value.startswith("{"):
            return parse_yaml(value, "command line")
    return value


def plain(value: Any) -> Any:
    """The value with lists for tuples, texts for keys, and the types that YAML gives to what was typed."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return parse_yaml(value, "command line") if isinstance(value, Typed) else value


@cache
def _safe_yaml() -> tuple[Any, Any]:
    """PyYAML's safe loader (in C where it is built) and dumper, for which 5e-4 is a number, as in YAML 1.2 and not in 1.1."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    kinds: tuple[Any, Any] = type("Loader", (loader,), {}), type("Dumper", (yaml.SafeDumper,), {})
    for kind in kinds:
        number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
        kind.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return kinds


def parse_yaml(text: str, where: str) -> Any:
    """Read YAML with the safe loader, of bounded size: ten short lines of aliases can stand for billions of values.

    Args:
        text: the YAML.
        where: what it is called in messages.

    Raises:
        NotYAML: it is not YAML.
        ConfigError: it is too much of it.
    """
    if len(text) > MOST_TEXT:
        raise ConfigError(f"{where} has {len(text):,} characters; a configuration has at most {MOST_TEXT:,}")
    text, loader = str(text), _safe_yaml()[0]  # in C, a subclass such as `Typed` would be a file
    try:
        if not _is_small(yaml.parse(text, Loader=loader)):
            raise ConfigError(
                f"{where} stands for more than {MOST_VALUES:,} values, or for values more than {DEEPEST} levels deep; a "
                "configuration has a few dozen: write them out, without aliases"
            )
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        said = " ".join(str(error).replace(' in "<unicode string>",', " at").split())
        hint = "; indent by spaces, not by tabs" if re.search(r"^ *\t", text, re.MULTILINE) else ""
        raise NotYAML(f"{where} is not YAML: {said}{hint}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # What its constructors let through: "0x_", a 40th of May.
        raise NotYAML(f"{where} is not YAML: {type(error).__name__} {str(error)[:80]}".rstrip()) from None


def _is_small(events: Iterable[Any]) -> bool:
    """Whether a document stays within the limits once its aliases are written out; one inside itself does not.

    Events come one by one: deep ones are seen before anything recursive is called, and before their time grows with its square.
    """
    sizes: dict[str, tuple[int, int]] = {}  # values and levels of what an anchor names
    branches: list[tuple[str | None, int]] = []  # those that are open: anchor, and the values before
    heights, total = [0], 0
    for event in events:
        values, levels = 0, 0
        if isinstance(event, yaml.CollectionStartEvent):
            branches.append((event.anchor, total))
            heights.append(0)
            values = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = branches.pop()
            levels = heights.pop() + 1
            sizes[anchor or ""] = total - before, levels
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in branches):
                return False
            values, levels = sizes.get(str(event.anchor), (1, 0))
        elif isinstance(event, yaml.ScalarEvent):
            values = 1
        total += values
        heights[-1] = max(heights[-1], levels)
        if total > MOST_VALUES or len(branches) + levels > DEEPEST:
            return False
    return True


def load_yaml(path: Path) -> Tree:
    """Read a YAML file into a tree.

    Raises:
        ConfigError: missing, unreadable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ConfigError(f"{path} cannot be read: {reason}") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict) or not all(isinstance(k, str) for k in tree):
        raise ConfigError(f"{path} is not a configuration: it should hold keys such as data, model, method, training")
    return tree


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """Write a tree as YAML that `load_yaml` reads back."""
    return str(yaml.dump(plain(tree), Dumper=_safe_yaml()[1], sort_keys=False, allow_unicode=True, width=120))
