"""The papers' networks, by name. Pixels in [0, 1] go in, logits come out; normalisation is the first layer.

Every network has `normalize` as its first submodule (an identity when neither mean nor std is given), calls each of its
modules once in a forward pass, so that a site is one call, and ends in a linear layer or, where the paper has it, a
convolution. Residual blocks carry the class attribute `is_residual_block = True`, and a projection shortcut is the
submodule `shortcut` of its block. ReLUs work in place: a hook that keeps the output of the layer before one has to clone it.
"""

from layerwise.models.normalize import Normalize, Normalized
from layerwise.models.registry import build, describe, names, register

__all__ = ["Normalize", "Normalized", "build", "describe", "names", "register"]
