"""Run folders as `layerwise train` and `layerwise evaluate` leave them, without any training: names and numbers are the test's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from layerwise.attacks import ThreatModel
from layerwise.evaluation import Count, EpsRef, Evaluation, Finding, Measured, Result, Rho
from layerwise.evaluation.corruptions import STANDARD, STANDARD_SEQUENCES, CorruptionErrors, FlipProbabilities, Flips
from layerwise.evaluation.corruptions.percent import Sums
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.measures import (
    Alignment,
    BoundaryDistance,
    Cloud,
    Example,
    Examples,
    FeatureClouds,
    FeatureGradients,
    InputGradients,
    Landscape,
    NoiseInsensitivity,
    RadiusCurve,
    RepresentationInsensitivity,
    Spectrum,
)
from layerwise.evaluation.record import DataRecord, ModelRecord

IMAGES = 100
DATA = DataRecord("digits", 540, 0, "bb")


def record(total: int = IMAGES, worst: int | None = None, **correct: int) -> Evaluation:
    """An evaluation with so many correct answers under each attack, pgd_50_10 for pgd-50-10."""
    names = {name: name.replace("_", "-") for name in correct}
    results = tuple(
        Result(names[name], {"name": names[name].split("-")[0]}, Count(r, total), 0.1) for name, r in correct.items()
    )
    return Evaluation(
        model=ModelRecord("net", 7, "aa"),
        data=DATA,
        threat=ThreatModel(eps=0.2),
        results=results,
        worst=Count(min(correct.values()) if worst is None else worst, total),
        findings=(),
        batch_size=10,
        eot=1,
        device="cpu",
        versions={"python": "3"},
    )


@dataclass(frozen=True)
class Words:
    """All text of a run folder that anyone can choose."""

    site: str = "conv1"
    label: str = "zero"
    model: str = "net"
    attack: str = "pgd-20"
    finding: str = "most gradients are zero"
    setting: str = "value"


def looks(words: Words) -> tuple[Measurement, ...]:
    """One of each kind that has a figure and a section in every report."""
    sites = ("input", words.site)
    points = ((0.0, 1.0), (1.0, 0.0), (0.5, 0.5))
    grid = ((0.1, 0.2), (0.3, 0.4))
    return (
        RadiusCurve((0.0, 0.1), (Count(90, IMAGES), Count(20, IMAGES)), "l-infinity"),
        Landscape((0.0, 1.0), (0.0, 1.0), grid, grid, 0.2, IMAGES),
        Alignment(0.5, (0.4, 0.6), 1, 0.2),
        FeatureGradients(sites, (1.0, 2.0), (64, 8), IMAGES),
        BoundaryDistance(1.0, 0.1, (0.5, 1.5), (1.0, 2.0), 0.0, 8.0, 0, "prediction", 64),
        NoiseInsensitivity((0.1, 0.2), (1.0, 2.0), (0, 0), IMAGES, 2),
        RepresentationInsensitivity(sites, (0.1, 0.2), 0.15, (0, 0), IMAGES),
        Spectrum((2.0, 1.0), 3.0, words.site, (8, 64), IMAGES),
        FeatureClouds((Cloud("random", 0.1, points, 0.9),), (0, 1, 2), words.site, sites, 2.0),
        InputGradients(torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4), (0, 1), 3.0),
    )


def corrupted(model: str, wrong: int) -> CorruptionErrors:
    """Every corruption makes so many of the images wrong at each severity, always the same ones; two are wrong clean."""
    times = torch.zeros(IMAGES, dtype=torch.int64)
    times[:wrong] = 5
    clean = torch.zeros(IMAGES, dtype=torch.int64)
    clean[:2] = 1
    return CorruptionErrors(
        ModelRecord(model, 7, f"print of {model}"),
        DATA,
        Count(IMAGES - 2, IMAGES),
        {name: (Count(IMAGES - wrong, IMAGES),) * 5 for name in STANDARD},
        Sums.of([clean, *[times] * len(STANDARD)]),
        dict.fromkeys(STANDARD, "generated"),
        "cifar10-c",
    )


def flipped(model: str, flips: int) -> FlipProbabilities:
    """So many flips of ten comparisons in the sequences of each image."""
    each = torch.full((IMAGES,), flips, dtype=torch.int64)
    return FlipProbabilities(
        ModelRecord(model, 7, f"print of {model}"),
        DATA,
        IMAGES,
        "benchmark",
        {name: Flips(flips * IMAGES, 10 * IMAGES) for name in STANDARD_SEQUENCES},
        Sums.of([each] * len(STANDARD_SEQUENCES)),
        dict.fromkeys(STANDARD_SEQUENCES, "generated"),
    )


def measured(*found: Measurement) -> tuple[Measured, ...]:
    """The measurements under some name."""
    return tuple(Measured(type(one).__name__.lower(), one) for one in found)


def evaluated(words: Words = Words(), *, wrong: int = 10, evaluation: Evaluation | None = None) -> Evaluation:
    """An evaluation that holds everything."""
    evaluation = record(clean=95, fgsm=40, pgd_20=30) if evaluation is None else evaluation
    *results, last = evaluation.results
    image = tuple(range(0, 256, 16))
    item = Example(image, image[::-1], 0, 0, 0.9, 1, 0.5, 0.2)
    return replace(
        evaluation,
        model=ModelRecord(words.model, 7, f"print of {words.model}"),
        results=(*results, replace(last, attack=words.attack)),
        findings=(Finding("zero-gradient", 0.1, 0.9, words.finding),),
        measures=measured(
            Rho(0.2, 90, 10, 0.0, 5, 2.0),
            EpsRef(0.25, {1.0: Count(50, 100), 0.5: Count(80, 100)}),
            corrupted(words.model, wrong),
            flipped(words.model, 1),
            *looks(words),
            Examples(words.attack, ThreatModel(eps=0.2), (1, 4, 4), (words.label, "one"), (item,)),
        ),
    )


def without(evaluation: Evaluation, *kinds: type[Measurement]) -> Evaluation:
    """The evaluation without some kinds of measurements."""
    return replace(evaluation, measures=tuple(m for m in evaluation.measures if not isinstance(m.found, kinds)))


def metrics(
    words: Words = Words(), *, robust: Sequence[float] = (0.2, 0.4), flags: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The lines of a training of ten batches an epoch; the last epoch has the flags."""
    lines: list[dict[str, Any]] = []
    for epoch, value in enumerate(robust, 1):
        step = 10 * epoch
        size = {"rms": 0.5 * epoch, "max": 1.0, "relative": 0.25 / epoch, "survival": 0.75}
        train = {"loss": 3.0 / epoch, "accuracy": 0.5, "lr": 0.1 * epoch, "images_per_second": 1000.0}
        lines += [
            {"kind": "sites", "epoch": epoch, "step": step - 9, "sites": {words.site: size}},
            {"kind": "train", "epoch": epoch, "step": step, **train},
            {"kind": "epoch", "epoch": epoch, "step": step, "clean": 0.9, "robust": value, "seconds": 2.0 * epoch, "passes": 5,
             "flags": list(flags) if epoch == len(robust) else []},
        ]  # fmt: skip
    return lines


def config(words: Words = Words(), method: str = "SLAT") -> dict[str, Any]:
    """Settings as config.yaml holds them."""
    return {"method": {"name": method}, "model": {"options": {words.setting: words.setting}}, "training": {"seed": 3}}


def put(
    folder: Path,
    evaluation: Evaluation,
    *,
    lines: Sequence[dict[str, Any]] | None = None,
    settings: dict[str, Any] | None = None,
    name: str = "evaluation",
) -> Path:
    """A run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    evaluation.write(folder, name)
    text = "\n".join(map(json.dumps, metrics() if lines is None else lines)) + "\n"
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(config() if settings is None else settings), encoding="utf-8")
    (folder / "versions.json").write_text(json.dumps({"packages": {"torch": "2"}, "gpus": [], "device": "cpu"}))
    return folder
