"""What is typed otherwise after a change: the file to edit when a comparison cannot build a side.

Empty tables say that everything is typed as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CLASSES: dict[str, Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]] = {}
"""{name before: its fields -> (name, fields) after}, for methods, settings and functions alike.

A name may say where it is to be found: `core.criteria:CrossEntropy`.
"""

METHODS: dict[str, tuple[str, dict[str, Any]]] = {}
"""{name in `method_table.py`: (class, fields) after}, where `CLASSES` does not say it all."""

STATE: dict[str, str] = {}
"""{key of a method's `state_dict` after: before}."""

RECORD: dict[str, str] = {"settings.count": "passes"}
"""{field of a record after: before}, the field that holds it before it where the name alone is not enough."""
