"""Evaluation: attacks, measures, self-checks, and the record of what they found."""

from layerwise.evaluation.at import At
from layerwise.evaluation.attacks import BIM, FGSM, MIFGSM, PGD, Clean, DeepFoolAttack, StepLL
from layerwise.evaluation.autoattack import APGDCE, APGDT, FABT, AutoAttack, Square
from layerwise.evaluation.base import Attack, InputAttack, loss_gradient
from layerwise.evaluation.carlini_wagner import CW
from layerwise.evaluation.checks import CHECKS, Check, Finding
from layerwise.evaluation.evaluate import evaluate
from layerwise.evaluation.latent import LatentAttack
from layerwise.evaluation.metrics import Count, EpsRef, Mean, Rho, eps_ref, fgsm_accuracies, mean_of, rho, wilson
from layerwise.evaluation.record import Evaluation, Result
from layerwise.evaluation.registry import ATTACKS, parse_attack
from layerwise.evaluation.threat import ThreatModel
from layerwise.evaluation.transfer import Transfer, black_box_worst, resolve_sources
from layerwise.evaluation.wrappers import BPDA, EOT

__all__ = [
    "APGDCE",
    "APGDT",
    "ATTACKS",
    "BIM",
    "BPDA",
    "CHECKS",
    "CW",
    "EOT",
    "FABT",
    "FGSM",
    "MIFGSM",
    "PGD",
    "At",
    "Attack",
    "AutoAttack",
    "Check",
    "Clean",
    "Count",
    "DeepFoolAttack",
    "EpsRef",
    "Evaluation",
    "Finding",
    "InputAttack",
    "LatentAttack",
    "Mean",
    "Result",
    "Rho",
    "Square",
    "StepLL",
    "ThreatModel",
    "Transfer",
    "black_box_worst",
    "eps_ref",
    "evaluate",
    "fgsm_accuracies",
    "loss_gradient",
    "mean_of",
    "parse_attack",
    "resolve_sources",
    "rho",
    "wilson",
]
