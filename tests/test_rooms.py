"""The package is twelve rooms, each of which imports only from those above it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import layerwise

HERE = Path(layerwise.__file__).parent
ROOMS = (
    *("errors", "trees", "files", "reading"),
    *("core", "methods", "models", "data", "attacks", "training", "evaluation"),
    *("experiments", "report", "reproduce", "integrations", "cli"),
)
"""From top to bottom: a room may import what stands before it. The first four are modules."""


def imports(file: Path) -> Iterator[str]:
    """The rooms that a file imports, also inside functions, but not for types alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    left_out = {id(inner) for node in typing for body in node.body for inner in ast.walk(body)}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "layerwise":
            path = (node.module or "").split(".")[1:]
            yield from path[:1] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("layerwise."))


def files_of(room: str) -> list[Path]:
    return [HERE / f"{room}.py"] if room in ROOMS[:4] else list((HERE / room).rglob("*.py"))


def upwards(file: Path) -> list[str]:
    room = file.relative_to(HERE).parts[0].removesuffix(".py")
    below = set(ROOMS[ROOMS.index(room) + 1 :])
    return [f"{file.relative_to(HERE)} imports {other}" for other in imports(file) if other in below]


def test_the_rooms_are_these() -> None:
    found = {path.stem for path in HERE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found - {"__init__", "__main__"} == set(ROOMS)


def test_nothing_is_imported_from_a_room_below() -> None:
    files = [file for room in ROOMS for file in files_of(room)]
    assert len(files) > 150
    assert [text for file in files for text in upwards(file)] == []


def test_the_longest_chain_of_rooms() -> None:
    depth: dict[str, int] = {}
    for room in ROOMS:
        below = {other for file in files_of(room) for other in imports(file)} - {room}
        depth[room] = 1 + max((depth[other] for other in below if other in depth), default=0)
    assert max(depth.values()) <= 9, depth


def test_an_import_upwards_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(
        "def f():\n    from layerwise.cli import main\n\n\nimport layerwise.report.page\nfrom layerwise import data\n"
    )
    assert sorted(imports(file)) == ["cli", "data", "report"]


def test_nobody_imports_the_integrations() -> None:
    others = [f for f in HERE.rglob("*.py") if f.relative_to(HERE).parts[0] not in ("integrations", "__init__.py")]
    assert [str(f) for f in others if "integrations" in imports(f)] == []
