"""The public names, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import layerwise

NAMES = [
    "ANP",
    "AWP",
    "AdvTrainI",
    "EAT",
    "CrossEntropy",
    "DeepDefense",
    "FGSInter",
    "FGSM",
    "FGSMCKPT",
    "FGSMRS",
    "FGSOrig",
    "FreeAT",
    "GaussianNoise",
    "GradAlign",
    "InputMethod",
    "LAD",
    "LAT",
    "LayerMethod",
    "LayerwiseError",
    "MART",
    "NAT",
    "PAT",
    "Parseval",
    "Rand",
    "Method",
    "NFGSM",
    "NoisyAverage",
    "Normalized",
    "PGD",
    "Partial",
    "Phase",
    "Probe",
    "SLAT",
    "Site",
    "Sites",
    "Standard",
    "TRADES",
    "ThreatModel",
    "Training",
    "YOPO",
    "__version__",
    "build_model",
    "evaluate",
    "export",
    "fit",
    "from_dataset",
    "from_tensors",
    "load",
    "load_data",
]

HEAVY = [
    "PIL",
    "jinja2",
    "jsonargparse",
    "lightning_fabric",
    "matplotlib",
    "onnx",
    "rich",
    "scipy",
    "sklearn",
    "tensorboard",
]

COST = """
import sys, time
import torch
before, started = set(sys.modules), time.process_time()
import layerwise
print(time.process_time() - started)
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_the_public_names_are_frozen() -> None:
    assert sorted(layerwise.__all__) == sorted(NAMES)
    assert all(hasattr(layerwise, name) for name in NAMES)


def test_every_public_thing_explains_itself() -> None:
    bare = [name for name in layerwise.__all__ if not name.startswith("_") and not getattr(layerwise, name).__doc__]
    assert bare == []


def test_importing_costs_little_beyond_torch() -> None:
    done = subprocess.run([sys.executable, "-c", COST], capture_output=True, text=True, check=True)
    seconds, imported = done.stdout.splitlines()
    assert float(seconds) < 0.5
    assert set(imported.split()) & set(HEAVY) == set()
    assert "layerwise" in imported.split()
