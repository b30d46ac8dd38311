"""Layer-wise adversarial training: perturb every layer, measure honestly."""

__version__ = "0.1.0"
