"""Layer-wise adversarial training: perturb every layer, measure honestly.

import layerwise as lw

data = lw.load_data("digits")
model = lw.build_model("digits_cnn", num_classes=data.num_classes, shape=data.shape)
lw.fit(model, lw.SLAT(eta={"input": 0.2, "conv1": 0.03, "layer1": 0.03}), data, training=lw.Training(epochs=10))
print(lw.evaluate(model, data, threat=lw.ThreatModel(eps=0.2)).to_markdown())
"""

from layerwise.attacks import ThreatModel
from layerwise.core.criteria import CrossEntropy
from layerwise.core.driving import Partial
from layerwise.core.probe import Probe
from layerwise.core.sites import Sites
from layerwise.core.tracing import Site
from layerwise.data import from_dataset, from_tensors
from layerwise.data import load as load_data
from layerwise.errors import LayerwiseError
from layerwise.evaluation import evaluate
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
    PAT,
    PGD,
    SLAT,
    TRADES,
    YOPO,
    AdvTrainI,
    DeepDefense,
    FGSInter,
    FGSOrig,
    FreeAT,
    GaussianNoise,
    GradAlign,
    InputMethod,
    LayerMethod,
    Method,
    Parseval,
    Standard,
)
from layerwise.models import Normalized
from layerwise.models import build as build_model
from layerwise.models.export import export
from layerwise.models.stochastic import NoisyAverage, Rand
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
    "PAT",
    "PGD",
    "SLAT",
    "TRADES",
    "YOPO",
    "AdvTrainI",
    "CrossEntropy",
    "DeepDefense",
    "FGSInter",
    "FGSOrig",
    "FreeAT",
    "GaussianNoise",
    "GradAlign",
    "InputMethod",
    "LayerMethod",
    "LayerwiseError",
    "Method",
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
    "ThreatModel",
    "Training",
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
