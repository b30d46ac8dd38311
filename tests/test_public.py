"""The public names, and what importing them costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

import layerwise

NAMES = [
    "ANP",
    "AWP",
    "AdvTrainI",
    "AuxiliaryHeads",
    "EAT",
    "Criterion",
    "CrossEntropy",
    "DeepDefense",
    "FGSInter",
    "FGSM",
    "FGSMCKPT",
    "FGSMRS",
    "FGSOrig",
    "FreeAT",
    "FreeLB",
    "GaussianNoise",
    "GradAlign",
    "InputMethod",
    "LAD",
    "LAT",
    "LatentPGD",
    "LayerMethod",
    "LayerwiseError",
    "MART",
    "NAT",
    "PAT",
    "Parseval",
    "Rand",
    "Method",
    "NEFTune",
    "NFGSM",
    "NFM",
    "PNI",
    "ManifoldMixup",
    "MeanSparse",
    "TargetedLAT",
    "NextToken",
    "NoisyAverage",
    "Normalized",
    "PGD",
    "Partial",
    "Phase",
    "Probe",
    "R3F",
    "SLAT",
    "SMART",
    "VAT",
    "Site",
    "Sites",
    "Standard",
    "TRADES",
    "Step",
    "ThreatModel",
    "TokenCrossEntropy",
    "Training",
    "YOPO",
    "__version__",
    "audit",
    "build_model",
    "evaluate",
    "export",
    "fit",
    "from_dataset",
    "from_tensors",
    "load",
    "load_data",
    "load_weights",
    "step",
]

HEAVY = [
    "PIL",
    "jinja2",
    "lightning_fabric",
    "matplotlib",
    "onnx",
    "pydantic",
    "rich",
    "scipy",
    "sklearn",
    "tensorboard",
]

EVERYTHING = """
import sys
import torch
before = set(sys.modules)
import layerwise
assert all(hasattr(layerwise, name) for name in layerwise.__all__)
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def python(code: str) -> str:
    """What a fresh process prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_public_names_are_frozen() -> None:
    assert sorted(layerwise.__all__) == sorted(NAMES)
    assert all(hasattr(layerwise, name) for name in NAMES)
    assert set(NAMES) <= set(dir(layerwise))


def test_every_public_thing_explains_itself() -> None:
    bare = [name for name in layerwise.__all__ if not name.startswith("_") and not getattr(layerwise, name).__doc__]
    assert bare == []


def imported() -> Iterator[tuple[str, tuple[str, str]]]:
    """What a type checker takes the public names for: (name, (module, attribute))."""
    assert layerwise.__file__ is not None
    with open(layerwise.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            yield alias.asname or alias.name, ((node.module or "").removeprefix("layerwise."), alias.name)


def test_type_checkers_and_python_find_the_same_things() -> None:
    assert dict(imported()) == layerwise._NAMES
    assert {*layerwise._NAMES, "__version__"} == set(layerwise.__all__)


def test_importing_layerwise_does_not_import_torch() -> None:
    code = "import sys, layerwise; print('torch' in sys.modules, layerwise.__version__, 'SLAT' in dir(layerwise))"
    assert python(code) == "False 0.1.0 True\n"


def test_packages_are_found_by_attribute() -> None:
    assert python("import layerwise; print(layerwise.errors.ConfigError.__name__)") == "ConfigError\n"


def test_a_misspelt_name_is_an_attribute_error_and_an_import_error() -> None:
    with pytest.raises(AttributeError, match="module 'layerwise' has no attribute 'SLATT'"):
        _ = layerwise.SLATT  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'SLATT'"):
        from layerwise import SLATT  # type: ignore[attr-defined]  # noqa: F401


def test_nothing_public_needs_what_few_use() -> None:
    there = python(EVERYTHING).split()
    assert set(there) & set(HEAVY) == set()
    assert "layerwise" in there
