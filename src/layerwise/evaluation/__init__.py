"""Evaluation: measures, corruptions, self-checks, and the record of what they found."""

from layerwise.evaluation.checks import CHECKS, Check, Finding
from layerwise.evaluation.evaluate import evaluate
from layerwise.evaluation.metrics import Count, EpsRef, Mean, Rho, eps_ref, fgsm_accuracies, mean_of, rho, wilson
from layerwise.evaluation.record import Evaluation, Result, black_box_worst

__all__ = [
    "CHECKS",
    "Check",
    "Count",
    "EpsRef",
    "Evaluation",
    "Finding",
    "Mean",
    "Result",
    "Rho",
    "black_box_worst",
    "eps_ref",
    "evaluate",
    "fgsm_accuracies",
    "mean_of",
    "rho",
    "wilson",
]
