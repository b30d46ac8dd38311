"""Layer-wise adversarial training: perturb every layer, measure honestly."""
