"""The model card: what a network is, how it is loaded, and how robust it is, with everything that speaks against it."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from layerwise import __version__
from layerwise.evaluation.losses import LossEvaluation
from layerwise.evaluation.record import Evaluation, escape
from layerwise.models.registry import Built
from layerwise.report.verdict import said

TEMPLATE = """\
---
library_name: layerwise
tags: [adversarial-robustness, layer-wise-adversarial-training]
{index}---

# {name}

{verdict}

{about}## How to load it

{load}

It takes {takes}.

## Evaluation

{evaluation}
Written by layerwise {version}.
"""

NOTHING = (
    "**Not evaluated**: nothing is known about its robustness. Type `layerwise.evaluate(model, data, threat=...)`, and give its "
    "record to `save_pretrained(..., evaluation=record)`."
)


def card(
    name: str,
    network: nn.Module,
    *,
    size: int,
    how: Built | None,
    record: Evaluation | LossEvaluation | None,
    about: str = "",
) -> str:
    """The card's text, markdown with the metadata that hubs read in front.

    Args:
        name: the heading.
        network: unwrapped.
        size: parameters.
        how: how `build` made it; None if it did not.
        record: of its evaluation.
        about: a section of the caller's, in markdown.
    """
    takes = f"images {how.shape} with pixels in [0, 1] and gives {how.num_classes} logits" if how else "what it did"
    return TEMPLATE.format(
        index=_index(name, record) if isinstance(record, Evaluation) else "",
        name=escape(name),
        verdict=NOTHING if record is None else f"**{escape(_said(record))}**",
        about=f"## About\n\n{about.strip()}\n\n" if about.strip() else "",
        load=_loaded(network, how),
        takes=f"{takes}; {size:,} parameters",
        evaluation="None was made.\n" if record is None else record.to_markdown(),
        version=__version__,
    )


def _said(record: Evaluation | LossEvaluation) -> str:
    if isinstance(record, Evaluation):
        return said(record)
    attacks = ", ".join(result.attack for result in record.results if result.in_threat_model)
    score = record.worst.score
    share = f", {100 * score.value:.1f} % of {record.score}" if score and record.score != "score" else ""
    believed = "; not to be believed before what stands below is explained" if record.findings else ""
    where = f"({record.threat}; {record.examples} examples)"
    return f"Loss {record.worst.loss.value:.4g}{share} in the worst case of {attacks} {where}{believed}"


def _loaded(network: nn.Module, how: Built | None) -> str:
    if callable(getattr(network, "save_pretrained", None)):
        return f"By the library that it is of, as a `{type(network).__name__}`."
    own = "" if how else ", model=model"
    outside = ", trust=True" if how and (":" in how.name or "." in how.name) else ""
    made = "" if how else f"model = ...  # a {type(network).__name__} of your own\n"
    call = f'model = hub.from_pretrained("."{own}{outside})  # this folder, or owner/name on the hub'
    return f"```python\nfrom layerwise.integrations import hub\n\n{made}{call}\n```"


def _index(name: str, record: Evaluation) -> str:
    """The results as hubs read them; JSON is YAML."""
    metrics: list[dict[str, Any]] = [
        {"type": "accuracy", "name": f"accuracy, {result.attack}", "value": result.accuracy}
        for result in record.results
    ]
    worst = f"robust accuracy, worst case ({record.threat})"
    metrics.append({"type": "accuracy", "name": worst, "value": record.worst.accuracy})
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"type": record.data.name, "name": record.data.name},
        "metrics": metrics,
    }
    return f"model-index: {json.dumps([{'name': name, 'results': [result]}])}\n"
