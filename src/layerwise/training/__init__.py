"""Training: `fit`, its settings, and what a run leaves behind.

>>> from layerwise.training import SGD, Cyclic, Training
>>> settings = Training(epochs=15, optimizer=SGD(lr=0.2), schedule=Cyclic(), ema_decay=0.999)
"""

from layerwise.training.ema import Average
from layerwise.training.fit import fit
from layerwise.training.monitor import DivergedError
from layerwise.training.optim import SGD, Adam, AdamW, Optimizer
from layerwise.training.phases import Phase
from layerwise.training.run import WEIGHTS, difference, load_weights, plain, read_config, versions
from layerwise.training.schedules import Constant, Cosine, Cyclic, MultiStep, OneCycle, Schedule
from layerwise.training.session import FitResult
from layerwise.training.settings import Training

__all__ = [
    "SGD",
    "WEIGHTS",
    "Adam",
    "AdamW",
    "Average",
    "Constant",
    "Cosine",
    "Cyclic",
    "DivergedError",
    "FitResult",
    "MultiStep",
    "OneCycle",
    "Optimizer",
    "Phase",
    "Schedule",
    "Training",
    "difference",
    "fit",
    "load_weights",
    "plain",
    "read_config",
    "versions",
]
