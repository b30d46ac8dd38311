"""The training methods: the five papers' and their controls."""

from layerwise.methods.anp import ANP
from layerwise.methods.base import InputMethod, LayerMethod, Method, Partial, Passes
from layerwise.methods.deep_defense import DeepDefense
from layerwise.methods.fgsm import FGSM, FGSMRS, NFGSM
from layerwise.methods.lad import LAD
from layerwise.methods.lat import LAT, FGSInter, FGSOrig, GaussianNoise
from layerwise.methods.pgd import PGD, TRADES
from layerwise.methods.slat import SLAT
from layerwise.methods.standard import Standard

METHODS: dict[str, type[Method]] = {
    cls.__name__: cls
    for cls in (
        Standard,
        FGSM,
        FGSMRS,
        NFGSM,
        PGD,
        TRADES,
        SLAT,
        ANP,
        LAD,
        LAT,
        FGSInter,
        FGSOrig,
        GaussianNoise,
        DeepDefense,
    )
}
"""Every method by its name."""

__all__ = [
    "ANP",
    "FGSM",
    "FGSMRS",
    "LAD",
    "LAT",
    "METHODS",
    "NFGSM",
    "PGD",
    "SLAT",
    "TRADES",
    "DeepDefense",
    "FGSInter",
    "FGSOrig",
    "GaussianNoise",
    "InputMethod",
    "LayerMethod",
    "Method",
    "Partial",
    "Passes",
    "Standard",
]
