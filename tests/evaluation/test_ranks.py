"""An evaluation in two processes gives the record of one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from layerwise.core.threat import ThreatModel
from layerwise.evaluation import Evaluation, evaluate
from tests.forks import together
from tests.networks import TinyConv, batch

ATTACKS = ["clean", "pgd-2", "fgsm"]


def judged(journal: Path | None = None) -> Evaluation:
    """Seven images in four batches; the last has one image."""
    x, y = batch(7, dtype=torch.float32)
    threat = ThreatModel("linf", 0.1)
    settings: dict[str, Any] = {"attacks": ATTACKS, "batch_size": 2, "progress": False, "seed": 3}
    record: Evaluation = evaluate(TinyConv().float(), (x, y), threat=threat, journal=journal, **settings)
    return record


def told(record: Evaluation) -> dict[str, Any]:
    """Everything but times."""
    results = [{**asdict(r), "seconds": 0} for r in record.results]
    found: dict[str, Any] = json.loads(json.dumps({**asdict(record), "results": results}, default=str))
    return found


def rank(index: int, folder: Path) -> None:
    dist.init_process_group("gloo")
    judged_batches: list[int] = []
    network_call = TinyConv.forward

    def counting(self: TinyConv, x: torch.Tensor) -> torch.Tensor:
        judged_batches.append(len(x))
        return network_call(self, x)

    TinyConv.forward = counting  # type: ignore[method-assign]
    # Both name the journal; only the first holds it.
    record = told(judged(folder / "a.journal"))
    (folder / f"{index}.json").write_text(json.dumps({"record": record, "passes": len(judged_batches)}))


def test_two_processes_share_the_batches_and_agree_with_one(tmp_path: Path) -> None:
    together(2, rank, tmp_path)
    first, second = (json.loads((tmp_path / f"{index}.json").read_text()) for index in range(2))
    assert first["record"] == second["record"] == told(judged())
    assert not (tmp_path / "a.journal").exists()
    calls: list[int] = []
    net = TinyConv().float()
    net.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    x, y = batch(7, dtype=torch.float32)
    threat = ThreatModel("linf", 0.1)
    evaluate(net, (x, y), threat=threat, attacks=ATTACKS, batch_size=2, progress=False, seed=3)
    # The self-checks, which every process makes, are most of the passes of so small an evaluation.
    assert first["passes"] < len(calls)
    assert second["passes"] < len(calls)
