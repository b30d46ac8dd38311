"""What a run folder stores of the arguments of `fit`: a recipe, where network and data have names by which they can be made again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from layerwise.core.threat import ThreatModel
from layerwise.data import ImageData
from layerwise.methods.base import Method
from layerwise.models.registry import built
from layerwise.training.phases import Phase
from layerwise.training.run import plain
from layerwise.training.settings import Training

OWN = "own"
"""In place of a name: what of the user's own was given."""


def asked(
    raw: nn.Module,
    data: ImageData,
    *,
    method: Method,
    threat: ThreatModel,
    training: Training,
    phases: Sequence[Phase],
) -> dict[str, Any]:
    """The arguments of `fit` as plain data."""
    return {
        "data": {OWN: data.name} if data.origin is None else plain(data.origin),
        "model": _network(raw, data),
        "threat": plain(threat),
        "method": plain(method),
        "phases": [_phase(phase) for phase in phases],
        "training": plain(training),
    }


def _network(raw: nn.Module, data: ImageData) -> dict[str, Any]:
    """How the network was made, if it was as recipes make theirs: for these data, with their statistics or with none."""
    how = built(raw)
    usual = (list(data.mean), list(data.std))
    fits = how is not None and (how.num_classes, how.shape) == (data.num_classes, tuple(data.shape))
    if how is None or not fits or how.statistics not in (None, usual):
        return {OWN: type(raw).__name__}
    return {"name": how.name, "normalize": how.statistics is not None, "start": None, "options": plain(how.options)}


def _phase(phase: Phase) -> dict[str, Any]:
    own = {"fields": plain(phase.fields)} if phase.method is None else {"method": plain(phase.method)}
    return {"epochs": phase.epochs, **own}
