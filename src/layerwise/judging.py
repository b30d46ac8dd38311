"""The judgement of a run: how robust its network is, as a record in the run's folder."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from layerwise.blueprint import EvaluationSettings
from layerwise.data import ImageData
from layerwise.errors import ConfigError
from layerwise.evaluation import Evaluation, Rho, ThreatModel, evaluate, rho
from layerwise.files import write_text
from layerwise.training.run import VERSIONS

FACTS = "data.json"
"""What a run folder tells about its data, so that the network can be made without them."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the judgement of a run says.

    Args:
        evaluation: accuracies under attack.
        rho: Deep Defense's rho_2, one for each number of DeepFool steps that was asked for.
    """

    evaluation: Evaluation
    rho: tuple[Rho, ...] = ()

    def to_markdown(self) -> str:
        """The evaluation's table, and a line a measure."""
        lines = [
            f"rho_2 with {r.num_steps} DeepFool steps: {r.value:.4g} over {r.images} images, {100 * r.unfooled:.2f} % not fooled"
            + (f", {r.blank} blank ones left out" if r.blank else "")
            + "\n"
            for r in self.rho
        ]
        return "\n".join([self.evaluation.to_markdown(), *lines])


def judge(
    model: nn.Module,
    data: ImageData,
    settings: EvaluationSettings,
    *,
    name: str | None = None,
    folder: Path | None = None,
    record: str = "evaluation",
    progress: bool = True,
) -> Judgement:
    """Evaluate a network on the test set, and write the record into the run's folder.

    Args:
        model: the network.
        data: its test split is judged on.
        settings: how.
        name: what the record calls the network.
        folder: the run's; None writes nothing.
        record: name of the files RECORD.json, RECORD.measures.json and RECORD.md.
        progress: show progress where a person watches.

    Raises:
        ConfigError: the record's name belongs to another file.
    """
    if Path(record).name != record or f"{record}.json" in (FACTS, VERSIONS):
        raise ConfigError(f"a record cannot be called {record!r}; type a name such as evaluation-quick")
    evaluation = evaluate(
        model,
        data.test,
        threat=ThreatModel(norm=settings.norm, eps=settings.eps),
        attacks=settings.attacks,
        num_examples=settings.num_examples,
        batch_size=settings.batch_size,
        progress=progress and sys.stderr.isatty(),
        model_name=name,
        data_name=data.name,
    )
    subset: dict[str, Any] = {"num_examples": settings.num_examples, "batch_size": settings.batch_size}
    sizes = tuple(rho(model, data.test, num_steps=steps, **subset) for steps in settings.rho_steps)
    judgement = Judgement(evaluation=evaluation, rho=sizes)
    if folder is not None:
        # The record itself comes last: where it is, the others are.
        write_text(folder / f"{record}.measures.json", json.dumps({"rho": [asdict(r) for r in sizes]}, indent=2) + "\n")
        write_text(folder / f"{record}.md", judgement.to_markdown())
        write_text(folder / f"{record}.json", evaluation.to_json())
    return judgement
