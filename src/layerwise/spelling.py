"""How settings are written: as tokens of the command line, as YAML, and as text that people read."""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from layerwise.core.checks import Radius, format_radius, parse_radius
from layerwise.errors import ConfigError

Tree = dict[str, Any]

MOST_TEXT, MOST_VALUES, DEEPEST = 1 << 17, 20_000, 40
"""Characters, values and levels of a configuration; recipes have 2,000, 60 and 4."""


class Typed(str):
    """A value as the command line gives it: text whose type the setting decides."""


def tokens_to_tree(tokens: Sequence[str]) -> Tree:
    """The tree that `--key value` and `--key=value` tokens spell.

    >>> tokens_to_tree(["--method.eta", "0.1", "--method=ANP"])
    {'method': {'eta': '0.1', 'name': 'ANP'}}

    Raises:
        ConfigError: a token that is no setting, or a setting without value.
    """
    tree: Tree = {}
    for key, value in _pairs(tokens):
        branch = tree
        *path, last = key.replace("-", "_").split(".")
        for part in path:
            below = branch.get(part, {})
            branch[part] = below if isinstance(below, dict) else {"name": below}
            branch = branch[part]
        # After `--method.eta 0.1`, `--method ANP` names the class; a whole mapping takes the place of what was typed before.
        if isinstance(branch.get(last), dict) and not value.startswith("{"):
            branch, last = branch[last], "name"
        branch[last] = Typed(value)
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


def branch_of(value: Any) -> Any:
    """A branch typed as one text on the command line, `null` or `{name: ..., ...}`, as what it says."""
    if isinstance(value, Typed):
        if value in ("null", "None"):
            return None
        if value.startswith("{"):
            return parse_yaml(value, "command line")
    return value


def entries(value: Any) -> Any:
    """A mapping whose entries were typed one by one, `--model.options.width 32`, with the types that YAML gives them."""
    if isinstance(value, Mapping):
        return {k: entries(v) for k, v in value.items()}
    return parse_yaml(value, "command line") if isinstance(value, Typed) else value


def check_type(key: str, value: Any, kind: Any, *, where: str = "") -> Any:
    """The value as the type of a setting, or a sentence why it is none.

    Args:
        key: of the setting.
        value: from YAML, or the text of a token.
        kind: the setting's annotation.
        where: what the message begins with.
    """
    if _is_free(value, kind):
        return value
    from jsonargparse import ArgumentError

    text = value if isinstance(value, str) else json.dumps(value, default=str)
    _refuse_text(text, f"{where}{key}")
    # A list is easily typed without brackets, which shells want in quotes.
    spelled = f"[{text}]" if get_origin(kind) is list and isinstance(value, str) and text[:1] != "[" else text
    try:
        return deepcopy(_parsed(spelled, kind))
    except (ArgumentError, ConfigError, ValueError, RecursionError):
        text = text if len(text) <= 200 else f"{text[:200]}..."
        raise ConfigError(f"{where}{key}={text} does not fit; type {spoken(kind)}") from None


@lru_cache(maxsize=4096)
def _parsed(text: str, kind: Any) -> Any:
    """What jsonargparse makes of a text; it takes a millisecond, and a table of the papers asks the same ten thousand times."""
    from jsonargparse import ArgumentParser
    from jsonargparse.typing import register_type

    register_type(
        Radius,
        serializer=float,
        deserializer=_radius,
        type_check=lambda value, kind: isinstance(value, float | int) and not isinstance(value, bool),
        fail_already_registered=False,
    )
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--value", type=kind, default=None)
    return parser.parse_args([f"--value={text}"])["value"]


def _is_free(value: Any, kind: Any) -> bool:
    """Whether a value from YAML is a mapping to anything, or a list of such: jsonargparse would read the texts in it again, "5" as 5."""
    if get_origin(kind) is list and isinstance(value, list):
        return all(_is_free(v, get_args(kind)[0]) for v in value)
    return kind == dict[str, Any] and isinstance(value, dict) and all(isinstance(k, str) for k in value)


def _radius(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | float | int):
        raise ValueError(f"{value!r} is not a radius")
    return parse_radius(value)


def spoken(kind: Any) -> str:
    """A type in words.

    >>> spoken(int | None)
    'a whole number or null'
    """
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(spoken(k) for k in get_args(kind)))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", types.NoneType: "null"}
    if kind is Radius:
        return "a number or a fraction such as 8/255"
    if get_origin(kind) in (list, tuple):
        return "a list in brackets, [a, b]"
    return "{name: value, ...} in quotes" if get_origin(kind) is dict else words.get(kind, str(kind))


def written(value: Any, kind: Any = None) -> str:
    """A value the way it is typed on a command line or in a recipe.

    >>> written({"input": 8 / 255, "conv1": 0.1}, dict[str, Radius]), written(None), written(["clean", "pgd-20"])
    ('{input: 8/255, conv1: 0.1}', 'null', '[clean, pgd-20]')
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {written(v, kind)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(written(v, kind) for v in value) + "]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return format_radius(value) if _mentions_radius(kind) else f"{value:g}"
    return str(value)


def _mentions_radius(kind: Any) -> bool:
    return kind is Radius or any(_mentions_radius(k) for k in get_args(kind))


def explanations(cls: type) -> dict[str, str]:
    """The sentences of a docstring's `Args:`, by field."""
    import docstring_parser

    parsed = docstring_parser.parse(inspect.getdoc(cls) or "")
    return {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}


@cache
def _safe_yaml() -> tuple[Any, Any]:
    """PyYAML's safe loader and dumper, for which 5e-4 is a number as in YAML 1.2; YAML 1.1 takes it for a text without a point, 5.0e-4."""
    import yaml

    kinds: tuple[Any, Any] = type("Loader", (yaml.SafeLoader,), {}), type("Dumper", (yaml.SafeDumper,), {})
    for kind in kinds:
        number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
        kind.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return kinds


def parse_yaml(text: str, where: str) -> Any:
    """Read YAML with the safe loader, of bounded size: ten short lines of aliases can stand for billions of values.

    Raises:
        ConfigError: it is not YAML, or too much of it.
    """
    import yaml

    _refuse_large(text, where)
    try:
        loader = _safe_yaml()[0](text)
        try:
            node = loader.get_single_node()
            _refuse_bombs(node, where)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # What its constructors let through: "0x_", a 40th of May, a thousand levels.
        raise ConfigError(f"{where} is not YAML: {type(error).__name__} {str(error)[:80]}".rstrip()) from None


def _refuse_text(text: str, where: str) -> None:
    """Complain about a text that YAML would make too much of; whether it is YAML at all is not asked."""
    import yaml

    _refuse_large(text, where)
    if "&" in text:  # the sign of an anchor, without which nothing is repeated
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, ValueError, RecursionError):
            return
        _refuse_bombs(node, where)


def _refuse_large(text: str, where: str) -> None:
    """Complain about what takes long to read at all: the time grows with the square of the open brackets."""
    if len(text) > MOST_TEXT:
        raise ConfigError(f"{where} has {len(text):,} characters; a configuration has at most {MOST_TEXT:,}")
    opened = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        opened = opened + 1 if bracket in "[{" else max(0, opened - 1)
        if opened > 5 * DEEPEST:
            raise ConfigError(f"{where} opens {opened} brackets without closing them; a configuration has a few")


def _refuse_bombs(root: Any, where: str) -> None:
    """Complain about a document that is large once its aliases are written out; one inside itself always is."""
    stack, count = [(root, 0)], 0
    while stack:
        node, depth = stack.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            raise ConfigError(
                f"{where} stands for more than {MOST_VALUES:,} values, or for values more than {DEEPEST} levels deep; a "
                "configuration has a few dozen: write them out, without aliases"
            )
        if node is not None and not isinstance(node.value, str):
            below = [n for item in node.value for n in (item if isinstance(item, tuple) else (item,))]
            stack += [(n, depth + 1) for n in below]


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
    import yaml

    return str(yaml.dump(_plain(tree), Dumper=_safe_yaml()[1], sort_keys=False, allow_unicode=True, width=120))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def parse_shape(text: str) -> tuple[int, ...]:
    """The shape of an image, as `--shape` has it.

    >>> parse_shape("3,32,32"), parse_shape("1x28x28")
    ((3, 32, 32), (1, 28, 28))
    """
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise ConfigError(f"--shape {text} is no shape; type channels,height,width, such as --shape 3,32,32") from None


def parse_options(text: str) -> dict[str, Any]:
    """A network's options, as `--options` has them.

    >>> parse_options("{width: 16}")
    {'width': 16}
    """
    options = parse_yaml(text, "--options")
    if not isinstance(options, dict) or not all(isinstance(k, str) for k in options):
        raise ConfigError(f"--options {text} does not fit; type a mapping in quotes, such as --options '{{width: 16}}'")
    return options
