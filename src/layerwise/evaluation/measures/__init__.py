"""Diagnostics: what the papers look at, each a function of any classifier and some images, each with its figure.

Every result has `.figure()`, whose `alt` says in words what it shows, and `.to_dict()` in JSON's types.
"""

from layerwise.evaluation.measures.adversarialness import Adversarialness, degree_of_adversarialness
from layerwise.evaluation.measures.alignment import Alignment, gradient_alignment
from layerwise.evaluation.measures.base import Curves, Diagnostic, Pollute, fgsm, uniform_noise
from layerwise.evaluation.measures.boundary import (
    BoundaryDistance,
    DecisionBoundary,
    boundary_distance,
    decision_boundary,
)
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
from layerwise.evaluation.measures.radius import RadiusCurve, accuracy_over_radius
from layerwise.evaluation.measures.ratio import StateRatio, state_gradient_ratio
from layerwise.evaluation.measures.reassignment import Reassignment, layer_reassignment, reassigned
from layerwise.evaluation.measures.registry import DIAGNOSTICS, Look, Plan, Subject, parse_diagnostic
from layerwise.evaluation.measures.style import describe

__all__ = [
    "DIAGNOSTICS",
    "Adversarialness",
    "Alignment",
    "BoundaryDistance",
    "Cloud",
    "Curves",
    "DecisionBoundary",
    "Diagnostic",
    "FeatureClouds",
    "FeatureGradients",
    "InputGradients",
    "Landscape",
    "Linearity",
    "Look",
    "NoiseInsensitivity",
    "Plan",
    "Pollute",
    "RadiusCurve",
    "Reassignment",
    "RepresentationInsensitivity",
    "Spectrum",
    "StateRatio",
    "Subject",
    "accuracy_over_radius",
    "boundary_distance",
    "decision_boundary",
    "degree_of_adversarialness",
    "describe",
    "feature_clouds",
    "feature_gradient_norms",
    "fgsm",
    "gradient_alignment",
    "input_gradient_pictures",
    "jacobian_spectrum",
    "layer_reassignment",
    "linear_approximation_error",
    "loss_landscape",
    "noise_insensitivity",
    "parse_diagnostic",
    "reassigned",
    "representation_insensitivity",
    "state_gradient_ratio",
    "uniform_noise",
]
