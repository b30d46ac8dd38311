"""Evaluation: attacks, measures, self-checks, and the record of what they found."""

from layerwise.evaluation.attacks import BIM, FGSM, MIFGSM, PGD, Clean, DeepFoolL2, StepLL
from layerwise.evaluation.base import Attack, InputAttack, loss_gradient
from layerwise.evaluation.checks import CHECKS, Check, Finding
from layerwise.evaluation.evaluate import evaluate
from layerwise.evaluation.latent import LatentAttack
from layerwise.evaluation.metrics import Count, EpsRef, Mean, Rho, eps_ref, fgsm_accuracies, mean_of, rho, wilson
from layerwise.evaluation.record import Evaluation, Result
from layerwise.evaluation.registry import ATTACKS, parse_attack
from layerwise.evaluation.threat import ThreatModel
from layerwise.evaluation.wrappers import BPDA, EOT

__all__ = [
    "ATTACKS",
    "BIM",
    "BPDA",
    "CHECKS",
    "EOT",
    "FGSM",
    "MIFGSM",
    "PGD",
    "Attack",
    "Check",
    "Clean",
    "Count",
    "DeepFoolL2",
    "EpsRef",
    "Evaluation",
    "Finding",
    "InputAttack",
    "LatentAttack",
    "Mean",
    "Result",
    "Rho",
    "StepLL",
    "ThreatModel",
    "eps_ref",
    "evaluate",
    "fgsm_accuracies",
    "loss_gradient",
    "mean_of",
    "parse_attack",
    "rho",
    "wilson",
]
