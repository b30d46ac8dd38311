"""Attacks: a threat model, gradient attacks, wrappers, transfer, and the attacks of other packages."""

from layerwise.attacks.at import At
from layerwise.attacks.autoattack import APGDCE, APGDT, FABT, AutoAttack, Square
from layerwise.attacks.base import Attack, InputAttack, loss_gradient
from layerwise.attacks.carlini_wagner import CW
from layerwise.attacks.foreign import Foreign
from layerwise.attacks.gradient import BIM, MIFGSM, Clean, DeepFoolAttack, FGSMAttack, PGDAttack, StepLL
from layerwise.attacks.latent import LatentAttack
from layerwise.attacks.text import parse_attack
from layerwise.attacks.transfer import Transfer, resolve_sources
from layerwise.attacks.wrappers import BPDA, EOT
from layerwise.core.threat import ThreatModel

__all__ = [
    "APGDCE",
    "APGDT",
    "BIM",
    "BPDA",
    "CW",
    "EOT",
    "FABT",
    "MIFGSM",
    "At",
    "Attack",
    "AutoAttack",
    "Clean",
    "DeepFoolAttack",
    "FGSMAttack",
    "Foreign",
    "InputAttack",
    "LatentAttack",
    "PGDAttack",
    "Square",
    "StepLL",
    "ThreatModel",
    "Transfer",
    "loss_gradient",
    "parse_attack",
    "resolve_sources",
]
