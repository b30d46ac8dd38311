"""Layer-wise adversarial training: perturb every layer, measure honestly.

import layerwise as lw

data = lw.load_data("digits")
model = lw.build_model("digits_cnn", num_classes=data.num_classes, shape=data.shape)
lw.fit(model, lw.SLAT(eta={"input": 0.2, "conv1": 0.03, "layer1": 0.03}), data, training=lw.Training(epochs=10))
print(lw.evaluate(model, data, threat=lw.ThreatModel(eps=0.2)).to_markdown())
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from layerwise.errors import did_you_mean

if TYPE_CHECKING:
    from layerwise.attacks import ThreatModel
    from layerwise.core.criteria import AuxiliaryHeads, Criterion, CrossEntropy, NextToken, TokenCrossEntropy
    from layerwise.core.driving import Partial, Step, step
    from layerwise.core.probe import Probe
    from layerwise.core.sites import Sites
    from layerwise.core.tracing import Site
    from layerwise.data import from_dataset, from_tensors
    from layerwise.data import load as load_data
    from layerwise.errors import LayerwiseError
    from layerwise.evaluation import evaluate
    from layerwise.evaluation.measures import audit
    from layerwise.experiments.experiment import load
    from layerwise.methods import (
        ANP,
        AWP,
        EAT,
        FGSM,
        FGSMCKPT,
        FGSMRS,
        LAD,
        LAT,
        MART,
        NAT,
        NFGSM,
        NFM,
        PAT,
        PGD,
        PNI,
        R3F,
        SLAT,
        SMART,
        TRADES,
        VAT,
        YOPO,
        AdvTrainI,
        DeepDefense,
        FGSInter,
        FGSOrig,
        FreeAT,
        FreeLB,
        GaussianNoise,
        GradAlign,
        InputMethod,
        LatentPGD,
        LayerMethod,
        ManifoldMixup,
        Method,
        NEFTune,
        Parseval,
        Standard,
        TargetedLAT,
    )
    from layerwise.models import Normalized
    from layerwise.models import build as build_model
    from layerwise.models.export import export
    from layerwise.models.sparse import MeanSparse
    from layerwise.models.stochastic import NoisyAverage, Rand
    from layerwise.models.weights import load_weights
    from layerwise.training import Phase, Training, fit

__version__ = "0.1.0"


__all__ = [
    "ANP",
    "AWP",
    "EAT",
    "FGSM",
    "FGSMCKPT",
    "FGSMRS",
    "LAD",
    "LAT",
    "MART",
    "NAT",
    "NFGSM",
    "NFM",
    "PAT",
    "PGD",
    "PNI",
    "R3F",
    "SLAT",
    "SMART",
    "TRADES",
    "VAT",
    "YOPO",
    "AdvTrainI",
    "AuxiliaryHeads",
    "Criterion",
    "CrossEntropy",
    "DeepDefense",
    "FGSInter",
    "FGSOrig",
    "FreeAT",
    "FreeLB",
    "GaussianNoise",
    "GradAlign",
    "InputMethod",
    "LatentPGD",
    "LayerMethod",
    "LayerwiseError",
    "ManifoldMixup",
    "MeanSparse",
    "Method",
    "NEFTune",
    "NextToken",
    "NoisyAverage",
    "Normalized",
    "Parseval",
    "Partial",
    "Phase",
    "Probe",
    "Rand",
    "Site",
    "Sites",
    "Standard",
    "Step",
    "TargetedLAT",
    "ThreatModel",
    "TokenCrossEntropy",
    "Training",
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

_PLACES = {
    "attacks": ("ThreatModel",),
    "core.criteria": ("AuxiliaryHeads", "Criterion", "CrossEntropy", "NextToken", "TokenCrossEntropy"),
    "core.driving": ("Partial", "Step", "step"),
    "core.probe": ("Probe",),
    "core.sites": ("Sites",),
    "core.tracing": ("Site",),
    "data": ("from_dataset", "from_tensors", "load as load_data"),
    "errors": ("LayerwiseError",),
    "evaluation": ("evaluate",),
    "evaluation.measures": ("audit",),
    "experiments.experiment": ("load",),
    "methods": (
        *("ANP", "AWP", "EAT", "FGSM", "FGSMCKPT", "FGSMRS", "LAD", "LAT", "MART", "NAT", "NEFTune", "NFGSM", "PAT"),
        *("PGD", "R3F", "SLAT", "SMART", "TRADES", "VAT", "YOPO", "AdvTrainI", "DeepDefense", "FGSInter", "FGSOrig"),
        *("FreeAT", "FreeLB", "GaussianNoise", "GradAlign", "InputMethod", "LatentPGD", "LayerMethod", "Method"),
        *("ManifoldMixup", "NFM", "PNI", "Parseval", "Standard", "TargetedLAT"),
    ),
    "models": ("Normalized", "build as build_model"),
    "models.export": ("export",),
    "models.sparse": ("MeanSparse",),
    "models.weights": ("load_weights",),
    "models.stochastic": ("NoisyAverage", "Rand"),
    "training": ("Phase", "Training", "fit"),
}
"""Where the public names are. They are looked up on first use: importing torch takes seconds, which `layerwise --help` need not wait."""

_NAMES = {
    name.rpartition(" ")[2]: (place, name.partition(" ")[0]) for place, names in _PLACES.items() for name in names
}

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that is found here

    def __getattr__(name: str) -> object:
        """A public name, or one of the packages, on its first use (PEP 562)."""
        if name in _NAMES:
            place, attribute = _NAMES[name]
            globals()[name] = found = getattr(import_module(f"layerwise.{place}"), attribute)
            return found
        if not name.startswith("_") and find_spec(f"layerwise.{name}") is not None:
            return import_module(f"layerwise.{name}")
        hint = "" if name.startswith("_") else f"; {did_you_mean(name, __all__)}"
        raise AttributeError(f"module 'layerwise' has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return [*globals(), *_NAMES]
