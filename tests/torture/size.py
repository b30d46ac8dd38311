"""How large the torture is: small in every run of the tests, full with LAYERWISE_TORTURE=1, which `make torture` sets."""

from __future__ import annotations

import os

TORTURE = bool(os.environ.get("LAYERWISE_TORTURE"))
SHARE = float(os.environ.get("LAYERWISE_TORTURE_SHARE", "1"))
"""Of the full size, for a machine with little time."""


def sized(small: int, full: int) -> int:
    """The number for this size."""
    return max(small, round(full * SHARE)) if TORTURE else small
