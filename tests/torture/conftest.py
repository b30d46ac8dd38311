"""The record of `make torture`, and the process that the others are forked from."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layerwise.training.run import versions
from tests.torture.size import SHARE, TORTURE

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "torture.json"


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What the tests measured; at full size it becomes the record."""
    found: dict[str, Any] = {}
    begun, processor = time.perf_counter(), time.process_time()
    yield found
    if TORTURE:
        session = {
            "tests": sorted({item.path.name for item in request.session.items}),
            "passed": request.session.testscollected - request.session.testsfailed,
            "failed": request.session.testsfailed,
            "share": SHARE,
            "seconds": round(time.perf_counter() - begun),
            "processor_seconds": round(time.process_time() - processor),
            "load": round(os.getloadavg()[0], 1),
        }
        # Run in parts, the record grows; `make torture` begins it anew.
        before = json.loads(RECORD.read_text()) if RECORD.exists() else {"sessions": []}
        whole = {**before, **found, "sessions": [*before["sessions"], session]}
        whole["machine"] = {"cores": os.cpu_count(), **versions()}
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        RECORD.write_text(json.dumps(whole, indent=1) + "\n")
