"""How is the package built? Rooms, floors, sizes, comments and tests of one checkout, or of two.

    python benchmarks/house.py .
    python benchmarks/house.py ../before . --json benchmarks/results/house.json

Files are read and parsed, never imported, so that this one script measures any commit. It counts:

- *Rooms*: packages and loose modules right under `src/layerwise`. `__init__.py` and `__main__.py`
  are the doors.
- Imports between rooms, those inside functions too, but not those for type checkers only. A string
  that names a module (`import_module`, a table of lazy names) hides an import from a reader: such
  strings outside the doors are counted apart, and so is the chain with them and the doors.
- The longest chain: rooms on the longest way down; a circle counts with all of its rooms.
- Code lines: no blank line, no comment, no docstring. A function has those of its body.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import math
import re
import statistics
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

PACKAGE = "layerwise"
DOORS = {"__init__", "__main__"}
WIDE = 100
"""Columns that a line may have before it counts as wide."""

NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
DIRECTIVE = re.compile(r"#\s*(noqa|type:|ruff:|mypy:|pragma:|fmt:|!)")
"""Comments that talk to a tool."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Graph = dict[str, set[str]]


@dataclass(frozen=True)
class Source:
    """One Python file."""

    path: Path

    @cached_property
    def text(self) -> str:
        """As it is."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the syntax tree."""
        return list(ast.walk(self.tree))

    @cached_property
    def tree(self) -> ast.Module:
        """Parsed."""
        return ast.parse(self.text, filename=str(self.path))

    @cached_property
    def tokens(self) -> list[tokenize.TokenInfo]:
        """With comments."""
        return list(tokenize.generate_tokens(io.StringIO(self.text).readline))

    @cached_property
    def code(self) -> set[int]:
        """Numbers of the lines that hold code."""
        code = [token for token in self.tokens if token.type not in NO_CODE]
        lines = {n for token in code for n in range(token.start[0], token.end[0] + 1)}
        return lines - {n for each in self._docstrings() for n in lines_of(each)}

    def _docstrings(self) -> Iterator[ast.stmt]:
        """Strings that stand alone: of modules, classes and functions, and under fields."""
        for node in (node for node in self.nodes if isinstance(node, ast.stmt)):
            value = node.value if isinstance(node, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield node

    @property
    def comments(self) -> int:
        """Comments that people read."""
        found = [token.string for token in self.tokens if token.type == tokenize.COMMENT]
        return sum(not DIRECTIVE.match(comment) for comment in found)

    @property
    def functions(self) -> list[int]:
        """Code lines in each function's body; those of an inner one count in the outer one too."""
        bodies = [node.body for node in self.nodes if isinstance(node, Function)]
        return [len(self.code & set(lines_of(body[0], body[-1]))) for body in bodies]

    @property
    def tests(self) -> int:
        """Test functions, however many parameters they are run with."""
        names = [node.name for node in self.nodes if isinstance(node, Function)]
        return sum(name.startswith("test_") for name in names)


def lines_of(first: ast.stmt, last: ast.stmt | None = None) -> range:
    """Numbers of the lines from one statement to another."""
    return range(first.lineno, ((last or first).end_lineno or 0) + 1)


@dataclass(frozen=True)
class Checkout:
    """A working tree with `src/layerwise` and `tests`."""

    root: Path

    @property
    def package(self) -> Path:
        """The package's folder."""
        return self.root / "src" / PACKAGE

    @cached_property
    def modules(self) -> dict[str, Source]:
        """{dotted name: file} of the package; a package's name is that of its `__init__.py`."""
        found = {}
        for path in sorted(self.package.rglob("*.py")):
            parts = path.relative_to(self.package.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = Source(path)
        if not found:
            raise SystemExit(f"{self.root} holds no src/{PACKAGE}; give the folder of a checkout")
        return found

    @cached_property
    def rooms(self) -> list[str]:
        """Names of packages and loose modules at the top, without the doors."""
        return sorted({room_of(name) for name in self.modules} - DOORS)

    @property
    def packages(self) -> list[str]:
        """Rooms that are folders."""
        return [room for room in self.rooms if (self.package / room).is_dir()]

    @property
    def folders(self) -> int:
        """Packages at every depth, without the package itself."""
        folders = [s.path.parent for s in self.modules.values() if s.path.name == "__init__.py"]
        return len(folders) - 1

    def graph(self) -> Graph:
        """{room: the rooms that it imports}."""
        widest = self._graph(strings=False)
        return {room: below - DOORS for room, below in widest.items() if room not in DOORS}

    def widest_graph(self) -> Graph:
        """The same with the doors, and with what rooms name in strings."""
        return self._graph(strings=True)

    def _graph(self, *, strings: bool) -> Graph:
        graph: Graph = {room: set() for room in [*self.rooms, *DOORS]}
        for name, source in self.modules.items():
            named = list(imported(name, source, self.modules))
            if strings and room_of(name) not in DOORS:
                named += named_in_strings(source, self.modules)
            graph[room_of(name)] |= {room_of(other) for other in named} - {room_of(name)}
        return graph

    @property
    def strings(self) -> int:
        """Strings outside the doors that name a module of the package."""
        inner = [source for name, source in self.modules.items() if room_of(name) not in DOORS]
        return sum(len(named_in_strings(source, self.modules)) for source in inner)

    @cached_property
    def tests(self) -> list[Source]:
        """Every file of the tests."""
        return [Source(path) for path in sorted((self.root / "tests").rglob("*.py"))]


def room_of(module: str) -> str:
    """The room of a module's dotted name; the package's own name is a door."""
    return module.split(".")[1] if "." in module else "__init__"


def imported(name: str, source: Source, modules: dict[str, Source]) -> Iterator[str]:
    """Modules of the package that a module imports when it runs, also later, inside functions."""
    is_package = source.path.name == "__init__.py"
    parents = name.split(".") if is_package else name.split(".")[:-1]
    for node in running(source.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            if start in modules:
                children = [f"{start}.{alias.name}" for alias in node.names]
                yield from (child if child in modules else start for child in children)


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below one but those that only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from (other for each in child.orelse for other in (each, *running(each)))
        else:
            yield child
            yield from running(child)


def named_in_strings(source: Source, modules: dict[str, Source]) -> list[str]:
    """Modules in strings, alone or with an object: `layerwise.data`, `layerwise.data:load`."""
    constants = [node.value for node in source.nodes if isinstance(node, ast.Constant)]
    found = []
    for text in constants:
        if isinstance(text, str) and text.startswith(f"{PACKAGE}."):
            module = text.partition(":")[0]
            candidates = [module, module.rpartition(".")[0]]
            found += [each for each in candidates if each in modules and each != PACKAGE][:1]
    return found


def circles(graph: Graph) -> list[list[str]]:
    """Rooms that reach each other, a list for each circle."""
    below = {room: reached(graph, room) for room in graph}
    groups = [{room, *(other for other in below[room] if room in below[other])} for room in graph]
    return [list(found) for found in sorted({tuple(sorted(g)) for g in groups if len(g) > 1})]


def reached(graph: Graph, start: str) -> set[str]:
    """Every room below one."""
    seen: set[str] = set()
    left = list(graph[start])
    while left:
        if (room := left.pop()) not in seen:
            seen.add(room)
            left += graph[room]
    return seen


def longest_chain(graph: Graph) -> list[str]:
    """Rooms on the longest way down, from the top; a circle stands there as a whole."""
    whole = {room: tuple(circle) for circle in circles(graph) for room in circle}
    best: dict[tuple[str, ...], list[str]] = {}

    def chain(group: tuple[str, ...]) -> list[str]:
        if group not in best:
            below = {whole.get(room, (room,)) for each in group for room in graph[each]} - {group}
            best[group] = [*group, *max(map(chain, sorted(below)), key=len, default=[])]
        return best[group]

    return max((chain(whole.get(room, (room,))) for room in sorted(graph)), key=len, default=[])


def percentile(values: Iterable[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def measure(root: Path) -> dict[str, Any]:
    """Everything about one checkout."""
    checkout = Checkout(root)
    sources = list(checkout.modules.values())
    graph = checkout.graph()
    loose = len(checkout.rooms) - len(checkout.packages)
    lines = [line for source in sources for line in source.text.splitlines()]
    functions = [length for source in sources for length in source.functions]
    code = sum(len(source.code) for source in sources)
    wide = sum(len(line) > WIDE for line in lines)
    return {
        "rooms": len(checkout.rooms),
        "packages at the top": len(checkout.packages),
        "loose modules at the top, without doors": loose,
        "loose modules, doors, packages at every depth": loose + len(DOORS) + checkout.folders,
        "files": len(sources),
        "longest file, lines": max(len(source.text.splitlines()) for source in sources),
        "longest chain of rooms": len(longest_chain(graph)),
        "longest chain, with doors and strings": len(longest_chain(checkout.widest_graph())),
        "strings that name a module": checkout.strings,
        "circles": len(circles(graph)),
        "code lines": code,
        "functions": len(functions),
        "code lines of a function, median": statistics.median(functions),
        "code lines of a function, 90th percentile": percentile(functions, 0.9),
        "code lines of a function, most": max(functions),
        f"lines above {WIDE} columns, %": round(100 * wide / len(lines), 2),
        "comments per 100 code lines": round(100 * sum(s.comments for s in sources) / code, 2),
        "test functions": sum(source.tests for source in checkout.tests),
        "code lines of tests": sum(len(source.code) for source in checkout.tests),
        "names of rooms": checkout.rooms,
        "longest chain": longest_chain(graph),
        "rooms in circles": circles(graph),
    }


def table(measured: dict[str, dict[str, Any]]) -> str:
    """Figures as text, a column a checkout; then the rooms of the longest chain."""
    figures = [k for k, v in next(iter(measured.values())).items() if not isinstance(v, list)]
    rows = [[key, *(f"{found[key]:,}" for found in measured.values())] for key in figures]
    lines = [f"{name:48}" + "".join(f"{text:>12}" for text in texts) for name, *texts in rows]
    lines.insert(0, " " * 48 + "".join(f"{name:>12}" for name in measured))
    for name, found in measured.items():
        lines.append(f"{name}: {' > '.join(found['longest chain'])}")
        lines += [f"{name}, a circle: {', '.join(each)}" for each in found["rooms in circles"]]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_is)
    parser.add_argument("checkout", type=Path, nargs="+", help="folders, one or two")
    parser.add_argument("--name", nargs="*", default=[], help="what the tables call them")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    usual = ["before", "after"] if len(args.checkout) == 2 else [args.checkout[0].resolve().name]
    names = args.name or usual
    if len(names) != len(args.checkout):
        parser.error("give one or two checkouts, and a name for each of them or none")
    measured = {name: measure(root) for name, root in zip(names, args.checkout, strict=True)}
    print(table(measured))
    if args.json:
        args.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
