"""Common corruptions and perturbation sequences: the images, their files, and mCE, relative mCE and mFR.

>>> import torch
>>> from layerwise.evaluation.corruptions import corrupt
>>> corrupt(torch.rand(4, 3, 32, 32), "fog", 3).shape
torch.Size([4, 3, 32, 32])
"""

from layerwise.evaluation.corruptions.cache import store
from layerwise.evaluation.corruptions.corrupt import CORRUPTIONS, corrupt
from layerwise.evaluation.corruptions.flips import FlipProbabilities, FlipRates, Flips, flip_probabilities, flip_rates
from layerwise.evaluation.corruptions.frost import Frost, generate_frost, load_frost
from layerwise.evaluation.corruptions.metrics import CorruptionErrors, CorruptionScores, corruption_errors, mce
from layerwise.evaluation.corruptions.percent import Percent
from layerwise.evaluation.corruptions.sequences import EXTRA_SEQUENCES, SEQUENCES, STANDARD_SEQUENCES, perturb
from layerwise.evaluation.corruptions.severities import EXTRA, SEVERITIES, STANDARD, TABLES, SeverityTable, table_for

__all__ = [
    "CORRUPTIONS",
    "EXTRA",
    "EXTRA_SEQUENCES",
    "SEQUENCES",
    "SEVERITIES",
    "STANDARD",
    "STANDARD_SEQUENCES",
    "TABLES",
    "CorruptionErrors",
    "CorruptionScores",
    "FlipProbabilities",
    "FlipRates",
    "Flips",
    "Frost",
    "Percent",
    "SeverityTable",
    "corrupt",
    "corruption_errors",
    "flip_probabilities",
    "flip_rates",
    "generate_frost",
    "load_frost",
    "mce",
    "perturb",
    "store",
    "table_for",
]
