"""Records that older versions wrote, in today's form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from layerwise.core.registry import entries
from layerwise.errors import CheckpointError
from layerwise.evaluation.measure import result_of
from layerwise.evaluation.measurement import Measurement, kind_of
from layerwise.evaluation.record import FORMAT, VERSION, Measured, unpack

MEASURES = {
    "rho": "Rho",
    "eps_ref": "EpsRef",
    "corruptions": "CorruptionErrors",
    "corruption_scores": "CorruptionScores",
    "sequences": "FlipProbabilities",
    "flip_rates": "FlipRates",
    "diagnostics": "",
    "examples": "Examples",
}
"""Fields of RECORD.measures.json, and the kind of measurement that each holds; "" is told there."""


def newer(text: str | bytes, beside: Path, *, source: str) -> str | bytes:
    """The text of a record, in today's form where it is of version 1.

    Args:
        text: of RECORD.json.
        beside: RECORD.measures.json, which version 1 had.
        source: what the text is from, for messages.

    Raises:
        CheckpointError: the file beside it is damaged, or belongs to another record.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text  # told where it is read
    if not isinstance(body, dict) or (body.get("format"), body.get("version")) != (FORMAT, 1):
        return text
    measures = list(_measures(_renamed(body), beside, source)) if beside.is_file() else []
    return json.dumps({**_renamed(body), "version": VERSION, "measures": measures})


def _renamed(value: Any) -> Any:
    """Counts say `correct` for `right`."""
    if isinstance(value, dict):
        names = {"right": "correct"} if value.keys() == {"right", "total"} else {}
        return {names.get(key, key): _renamed(part) for key, part in value.items()}
    return [_renamed(part) for part in value] if isinstance(value, list) else value


def _measures(record: Any, beside: Path, source: str) -> Iterator[Any]:
    what = "what was measured beside an evaluation"
    body = unpack(beside.read_bytes(), format="layerwise-measures", version=1, what=what, source=str(beside))
    if body.pop("evaluation", None) != _identity(record):
        raise CheckpointError(f"{beside} was measured on other weights or images than {source}; evaluate the run again")
    if unknown := sorted(body.keys() - MEASURES.keys()):
        raise CheckpointError(f"{beside} is corrupt: it has an unknown {', '.join(unknown)}; evaluate the run again")
    names = {kind_of(result_of(entry)): entry.name for entry in entries("measure").values()}
    for field, kind in MEASURES.items():
        values = body.get(field) or []
        for value in _renamed(values if isinstance(values, list) else [values]):
            told = {**value, "kind": kind or value.get("diagnostic")} if isinstance(value, dict) else value
            if isinstance(told, dict):
                told.pop("diagnostic", None)
            found = Measurement.from_dict(told, source=str(beside))
            yield Measured(_written(names, field, told), found).to_dict()


def _identity(record: Any) -> dict[str, Any] | None:
    """What a record and the measures beside it have in common."""
    try:
        model, data = record["model"], record["data"]
        shown = {"model": model["fingerprint"], "data": data["fingerprint"]}
        return {**shown, "images": record["worst"]["total"], "seed": data["seed"]}
    except (KeyError, TypeError):
        return None


def _written(names: Mapping[str, str], field: str, found: Mapping[str, Any]) -> str:
    """About how the measure would be written today; the sizes of a diagnostic were not recorded."""
    if field in ("corruption_scores", "flip_rates"):
        measure = "corruptions" if field == "corruption_scores" else "sequences"
        return f"{measure}, against {found['base'].get('name')}"
    if field in ("corruptions", "sequences"):
        return " ".join([field, *found["counts" if field == "corruptions" else "flips"]])
    return f"rho steps={found['num_steps']}" if field == "rho" else names.get(found["kind"], found["kind"])
