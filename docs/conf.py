"""The documentation site: `make docs` builds it from the pages here and from the package itself; whatever is wrong is an error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from generate import OUTSIDE, write_pages
from records import write_reports

from layerwise import __version__

project = "layerwise"
author = "The layerwise authors"
version = release = __version__
html_title = f"layerwise {version}"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
# Whole pages that are copied as they are: the gallery's reports, made when this file is read.
html_extra_path = ["generated/whole"]
write_reports(Path(__file__).parent / "generated/whole/gallery")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["roadmap.md", "generated/whole"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]
default_role = "code"
autodoc_typehints = "none"  # the signature shows them
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_custom_sections = [("Yields", "returns_style")]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
suppress_warnings = ["myst.header", "config.cache"]


def setup(app: Any) -> None:
    """Write the pages that come from the package before anything is read, and lead links out of this folder to their pages."""
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir) / "generated"))
    app.connect("source-read", _lead_inside)
    app.connect("autodoc-skip-member", _foreign)


def _lead_inside(app: Any, name: str, text: list[str]) -> None:
    up = "../" * (name.count("/") - 1) if name.startswith("generated/") else "../" * name.count("/") + "generated/"
    if name.startswith("tutorials/") and name != "tutorials/index":
        title, _, rest = text[0].partition("\n")
        page = name.removeprefix("tutorials/")
        text[0] = f"{title}\n\n{{download}}`As a notebook <../generated/notebooks/{page}.ipynb>`\n{rest}"
    for file, page in OUTSIDE.items():
        text[0] = text[0].replace(f"](../{file})", f"]({up}{page})")


def _foreign(app: Any, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what torch has documented, such as the usual engine of a step."""
    return True if str(getattr(thing, "__module__", "")).startswith("torch") else None
