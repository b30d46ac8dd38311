"""What a finished run left, but for the times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerwise.training import WEIGHTS, checkpoint

TIMES = ("seconds", "images_per_second")


def outcome(folder: Path) -> dict[str, Any]:
    """Weights, averages, metrics, and everything in the last checkpoint."""
    contents, damaged = checkpoint.load_latest(folder / "checkpoints")
    assert contents is not None
    assert damaged == []
    state = untimed({key: value for key, value in contents.state.items() if key != "metrics"})
    lines = [untimed(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    files = {which: (folder / name).read_bytes() for which, name in WEIGHTS.items()}
    kept = [contents.step, contents.weights, contents.average, contents.ranks, contents.world]
    return {"files": files, "metrics": lines, "state": state, "kept": kept}


def untimed(value: Any) -> Any:
    """The value without the times in it."""
    if isinstance(value, dict):
        return {key: untimed(held) for key, held in value.items() if key not in TIMES}
    return [untimed(held) for held in value] if isinstance(value, list | tuple) else value


def differing(first: Any, second: Any, at: str = "") -> list[str]:
    """Where two outcomes differ by a single bit."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [line for key in first for line in differing(first[key], second[key], f"{at}.{key}")]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [line for i, (a, b) in pairs for line in differing(a, b, f"{at}[{i}]")]
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        same = first.dtype == second.dtype and torch.equal(first, second)
    else:
        same = type(first) is type(second) and (first == second or repr(first) == repr(second) == "nan")
    return [] if same else [at]
