"""Evaluation: measures, corruptions, self-checks, and the record of what they found."""

from layerwise.evaluation.checks import CHECKS, Check, Finding
from layerwise.evaluation.evaluate import evaluate
from layerwise.evaluation.intervals import Count, Estimate, Mean, mean_of, wilson
from layerwise.evaluation.losses import LossEvaluation
from layerwise.evaluation.measure import Measure, Target, parse_measure
from layerwise.evaluation.measurement import Measurement
from layerwise.evaluation.measures.eps_ref import EpsRef, eps_ref, fgsm_accuracies
from layerwise.evaluation.measures.rho import Rho, rho
from layerwise.evaluation.record import Evaluation, Measured, Result, black_box_worst
from layerwise.evaluation.run import evaluate_run

__all__ = [
    "CHECKS",
    "Check",
    "Count",
    "EpsRef",
    "Estimate",
    "Evaluation",
    "Finding",
    "LossEvaluation",
    "Mean",
    "Measure",
    "Measured",
    "Measurement",
    "Result",
    "Rho",
    "Target",
    "black_box_worst",
    "eps_ref",
    "evaluate",
    "evaluate_run",
    "fgsm_accuracies",
    "mean_of",
    "parse_measure",
    "rho",
    "wilson",
]
