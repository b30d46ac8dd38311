"""Measures, a file each: what the papers look at, as functions of any classifier and some images, and by name.

Every result is a `Measurement`: `.figure()`, whose `alt` says in words what it shows, `.sentence()`, and `.to_dict()` in JSON's types.
A new file here that registers its measure is found by itself; the names below are for those who call the functions.
"""

from layerwise.evaluation.measurement import Curves, Measurement
from layerwise.evaluation.measures.adversarialness import Adversarialness, degree_of_adversarialness
from layerwise.evaluation.measures.alignment import Alignment, gradient_alignment
from layerwise.evaluation.measures.base import Pollute, fgsm, uniform_noise
from layerwise.evaluation.measures.boundary import (
    BoundaryDistance,
    DecisionBoundary,
    boundary_distance,
    decision_boundary,
)
from layerwise.evaluation.measures.eps_ref import EpsRef, eps_ref, fgsm_accuracies
from layerwise.evaluation.measures.feature_gradients import FeatureGradients, feature_gradient_norms
from layerwise.evaluation.measures.features import Cloud, FeatureClouds, feature_clouds
from layerwise.evaluation.measures.input_gradients import InputGradients, input_gradient_pictures
from layerwise.evaluation.measures.insensitivity import (
    NoiseInsensitivity,
    RepresentationInsensitivity,
    noise_insensitivity,
    representation_insensitivity,
)
from layerwise.evaluation.measures.jacobian import Spectrum, jacobian_spectrum
from layerwise.evaluation.measures.landscape import Landscape, loss_landscape
from layerwise.evaluation.measures.linearity import Linearity, linear_approximation_error
from layerwise.evaluation.measures.pictures import Example, Examples, adversarial_examples
from layerwise.evaluation.measures.radius import RadiusCurve, accuracy_over_radius
from layerwise.evaluation.measures.ratio import StateRatio, state_gradient_ratio
from layerwise.evaluation.measures.reassignment import Reassignment, layer_reassignment, reassigned
from layerwise.evaluation.measures.rho import Rho, rho
from layerwise.evaluation.style import describe

__all__ = [
    "Adversarialness",
    "Alignment",
    "BoundaryDistance",
    "Cloud",
    "Curves",
    "DecisionBoundary",
    "EpsRef",
    "Example",
    "Examples",
    "FeatureClouds",
    "FeatureGradients",
    "InputGradients",
    "Landscape",
    "Linearity",
    "Measurement",
    "NoiseInsensitivity",
    "Pollute",
    "RadiusCurve",
    "Reassignment",
    "RepresentationInsensitivity",
    "Rho",
    "Spectrum",
    "StateRatio",
    "accuracy_over_radius",
    "adversarial_examples",
    "boundary_distance",
    "decision_boundary",
    "degree_of_adversarialness",
    "describe",
    "eps_ref",
    "feature_clouds",
    "feature_gradient_norms",
    "fgsm",
    "fgsm_accuracies",
    "gradient_alignment",
    "input_gradient_pictures",
    "jacobian_spectrum",
    "layer_reassignment",
    "linear_approximation_error",
    "loss_landscape",
    "noise_insensitivity",
    "reassigned",
    "representation_insensitivity",
    "rho",
    "state_gradient_ratio",
    "uniform_noise",
]
