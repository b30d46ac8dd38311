"""The training methods: the five papers' and their controls."""

from layerwise.core.cost import Passes
from layerwise.core.driving import Partial, Step
from layerwise.methods.adv_train import AdvTrainI
from layerwise.methods.anp import ANP
from layerwise.methods.awp import AWP
from layerwise.methods.base import InputMethod, LayerMethod, Losses, Method, Perturbed
from layerwise.methods.ckpt import FGSMCKPT
from layerwise.methods.deep_defense import DeepDefense
from layerwise.methods.fgsm import FGSM, FGSMRS, NFGSM
from layerwise.methods.free import FreeAT
from layerwise.methods.freelb import FreeLB
from layerwise.methods.grad_align import GradAlign
from layerwise.methods.lad import LAD
from layerwise.methods.lat import LAT, FGSInter, GaussianNoise
from layerwise.methods.latent_pgd import LatentPGD
from layerwise.methods.mart import MART
from layerwise.methods.mixed import EAT, NAT, PAT, FGSOrig
from layerwise.methods.mixup import NFM, ManifoldMixup
from layerwise.methods.neftune import NEFTune
from layerwise.methods.parseval import Parseval
from layerwise.methods.pgd import PGD, TRADES
from layerwise.methods.pni import PNI
from layerwise.methods.slat import SLAT
from layerwise.methods.smoothness import R3F, SMART, VAT
from layerwise.methods.standard import Standard
from layerwise.methods.targeted_lat import TargetedLAT
from layerwise.methods.yopo import YOPO

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
    "Losses",
    "ManifoldMixup",
    "Method",
    "NEFTune",
    "Parseval",
    "Partial",
    "Passes",
    "Perturbed",
    "Standard",
    "Step",
    "TargetedLAT",
]
