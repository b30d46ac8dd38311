"""Pages of the site that the package itself says: methods, equations, recipes, commands, and the Python reference.

    python docs/generate.py FOLDER

Nothing of it is stored, so that nothing of it can be out of date.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import ModuleType

import records

import layerwise
from layerwise.cli.list import rows
from layerwise.cli.main import commands, main
from layerwise.core import registry
from layerwise.experiments import recipe
from layerwise.trees import at

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path(layerwise.__file__).parent
ROOMS = ("core", "methods", "attacks", "models", "data", "training", "evaluation", "experiments", "report")
"""Packages of which the reference is made, in the order of reading."""

NOUNS = {
    "recipes": "recipe",
    "attacks": "attack",
    "models": "network",
    "data": "data set",
    "suites": "suite",
    "corruptions": "corruption",
}

OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/own_method.py": "examples/own_method.md",
}
"""Files beside this folder, and the pages that show them."""

LISTED = tuple(what for what in NOUNS if what != "recipes")
"""Lists of `layerwise list` that have no page of their own."""

PLACE = re.compile(
    r"\b(eqs?\.|equations?|algorithms?|appendix|sections?|tables?|figures?)\s+(\d[\d.]*|[A-H](?:\.\d+)?)\b", re.I
)
REFERENCE = re.compile(r"Reference:\s+(.+?)(?:\n\s*\n|\Z)", re.S)
WORK = re.compile(r"([A-Z][\w-]+(?: et al\.| and [A-Z][\w-]+)?) (\d{4})")


def write_pages(folder: Path) -> None:
    """Write every page, and only where it changed, so that a second build is quick."""
    pages = {"equations.md": equations_page(), "recipes.md": list_page("recipes"), "commands.md": commands_page()}
    pages |= {f"methods/{name}.md": method_page(name) for name in registry.names("method")}
    pages |= {f"reference/{room}.md": room_page(room) for room in ROOMS}
    pages["methods/index.md"] = index_page(
        "Every method", "One page each; [how they compare](../../methods.md).", registry.names("method")
    )
    pages["reference/index.md"] = index_page(
        "Python reference", "`import layerwise as lw` has what most programs need; the rest is in its packages.", ROOMS
    )
    pages |= {f"lists/{what}.md": list_page(what) for what in LISTED}
    pages["lists/index.md"] = index_page("What there is", "Everything that has a name of its own.", LISTED)
    pages |= {page: file_page(ROOT / file) for file, page in OUTSIDE.items()}
    pages |= records.pages()
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def index_page(title: str, text: str, names: Sequence[str]) -> str:
    """A page that only leads on."""
    return f"# {title}\n\n{text}\n\n" + toctree(names)


def toctree(names: Sequence[str]) -> str:
    """The pages below one."""
    return "```{toctree}\n:maxdepth: 1\n\n" + "\n".join(names) + "\n```\n"


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *body]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def file_page(path: Path) -> str:
    """A file of the project as a page; what it links to below `docs` lies one folder up from here."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".md":
        return f"# {path.parent.name}/{path.name}\n\n```{{code-block}} python\n{text}```\n"
    text = text.replace("](docs/", "](../")
    for file, page in OUTSIDE.items():
        text = text.replace(f"]({file})", f"]({page})")
    return text


def list_page(what: str) -> str:
    """What `layerwise list WHAT` shows; a row with one cell begins a section."""
    header, body = rows(what)
    text, part = f"# Every {NOUNS[what]}\n\nWhat `layerwise list {what}` shows.\n", []
    for row in [*body, ("",)]:
        if len(row) > 1:
            part.append([f"`{row[0]}`", *row[1:]])
            continue
        text += ("\n" + table(header, part)) if part else ""
        part = []
        text += f"\n## {row[0]}\n" if row[0] else ""
    return text


def commands_page() -> str:
    """Each command's help, as it is printed."""
    text = "# The command line\n\nWhat `layerwise COMMAND --help` prints.\n"
    for name in ("", *commands()):
        text += f"\n## layerwise {name}\n\n```text\n{help_of(name)}```\n"
    return text


def help_of(command: str) -> str:
    """What `--help` prints after a command, or after none."""
    with redirect_stdout(StringIO()) as printed, suppress(SystemExit):
        main([*command.split(), "--help"])
    return printed.getvalue()


def method_page(name: str) -> str:
    """One method: what it is, what it costs, where its equations are, and which recipes train with it."""
    cls = registry.entries("method")[name].thing
    passes = cls().passes
    own = [place for place in places() if place.path == _path_of(cls)]
    using = [each for each in recipe.names() if trains_with(each) == name]
    text = f"# {name}\n\n{registry.entries('method')[name].summary}\n\n"
    text += f"**Cost** with its usual settings: {passes.total} passes a batch, {passes.total / 3:.2f} times standard training, "
    text += f"{passes.steps} step{'s' * (passes.steps != 1)} of the optimiser"
    text += ", differentiated twice.\n\n" if cls().second_order else ".\n\n"
    text += autodoc("autoclass", f"{cls.__module__}.{cls.__name__}", "no-members")
    if own:
        text += "\n## Equation to line of code\n\n" + places_table(own, depth="../")
    if said := records.measured(name):
        text += "\n## Measured here\n\n" + "".join(f"- {sentence}\n" for sentence in said)
    if using:
        text += "\n## Recipes\n\n" + "".join(f"- `layerwise train {each}`\n" for each in using)
    return text + "\nWhat it departs from, and how it compares: [the methods](../../methods.md).\n"


@cache
def trains_with(name: str) -> str:
    """The method of a recipe: the last of its layers that names one."""
    named = [at(tree, "method") for tree in (each.tree for each in recipe.load(name))]
    named = [
        each["name"] if isinstance(each, Mapping) else each
        for each in named
        if isinstance(each, str) or "name" in (each or {})
    ]
    return str(named[-1]) if named else ""


def autodoc(directive: str, name: str, *options: str) -> str:
    """A directive of Sphinx that reads a docstring."""
    return f"```{{eval-rst}}\n.. {directive}:: {name}\n" + "".join(f"   :{o}:\n" for o in options) + "```\n"


def room_page(room: str) -> str:
    """The public names of a package."""
    module, own_pages = import_module(f"layerwise.{room}"), registry.names("method")
    text = f"# layerwise.{room}\n\n{summary(module)}\n"
    for name in public(module):
        thing = getattr(module, name)
        if not callable(thing) or not getattr(thing, "__module__", "").startswith("layerwise"):
            continue
        if name in own_pages:
            text += f"\n## {name}\n\n[A page of its own](../methods/{name}.md).\n"
            continue
        kind = "autoclass" if inspect.isclass(thing) else "autofunction"
        options = ("members", "show-inheritance") if kind == "autoclass" else ()
        text += f"\n## {name}\n\n" + autodoc(kind, f"{thing.__module__}.{thing.__name__}", *options)
    return text


def public(module: ModuleType) -> list[str]:
    """What a package offers."""
    return sorted(getattr(module, "__all__", []))


def summary(module: ModuleType) -> str:
    """The first sentence of what a package says of itself."""
    return (inspect.getdoc(module) or "").partition("\n\n")[0]


@dataclass(frozen=True)
class Place:
    """Where in the code an equation of a paper is.

    Args:
        work: authors and year.
        what: such as "eq. 4".
        owner: class or function that says so.
        path: of the file, below the package.
        line: of its definition.
    """

    work: str
    what: str
    owner: str
    path: str
    line: int


@cache
def places() -> tuple[Place, ...]:
    """Every equation and algorithm that a docstring names, in the order of the files."""
    return tuple(place for path in sorted(SOURCE.rglob("*.py")) for place in _in_file(path))


def _in_file(path: Path) -> Iterator[Place]:
    module = ast.parse(path.read_text(encoding="utf-8"))
    whole = ast.get_docstring(module) or ""

    def below(node: ast.AST, names: tuple[str, ...], work: str) -> Iterator[Place]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.ClassDef | ast.FunctionDef):
                continue
            text, owner = ast.get_docstring(child) or "", (*names, child.name)
            own = _work(text) or work
            found = dict.fromkeys(f"{m[1].lower()} {m[2].rstrip('.')}" for m in PLACE.finditer(text))
            for what in found if own else ():
                yield Place(own, what, ".".join(owner), str(path.relative_to(SOURCE)), child.lineno)
            yield from below(child, owner, own)

    yield from below(module, (), _work(whole))


def _work(text: str) -> str:
    """Authors and year of the first work that a docstring refers to."""
    named = REFERENCE.search(text)
    work = WORK.search(named[1]) if named else None
    return f"{work[1]} {work[2]}" if work else ""


def _path_of(thing: type) -> str:
    return str(Path(inspect.getfile(thing)).relative_to(SOURCE))


def places_table(found: Sequence[Place], *, depth: str) -> str:
    """Rows that lead to the source."""
    # HTML, since the pages of the source are made after these are read.
    body = [
        [p.work, p.what, f'<a href="{depth}../{_source(p)}"><code>{p.owner}</code></a>', f"`{p.path}:{p.line}`"]
        for p in found
    ]
    return table(("work", "where in it", "code", "line"), body)


def _source(place: Place) -> str:
    module = f"layerwise/{place.path.removesuffix('.py')}"
    return f"_modules/{module}.html#{module.replace('/', '.')}.{place.owner.partition('.')[0]}"


def equations_page() -> str:
    """Every equation and algorithm of a paper, and the line that computes it."""
    found = sorted(places(), key=lambda p: (p.work, p.what))
    text = "# Equation to line of code\n\nRead from the docstrings, so that it cannot go stale.\n"
    for work in dict.fromkeys(p.work for p in found):
        text += f"\n## {work}\n\n" + places_table([p for p in found if p.work == work], depth="")
    return text


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
