"""Measures, a file each: what the papers look at, as functions of any classifier and some images, and by name.

Every result is a `Measurement`: `.figure()`, whose `alt` says in words what it shows, `.sentence()`, and `.to_dict()` in JSON's types.
A new file here that registers its measure is found by itself; the names below are for those who call the functions.
"""

from layerwise.evaluation.measurement import Curves as Curves
from layerwise.evaluation.measurement import Measurement as Measurement
from layerwise.evaluation.measures.adversarialness import Adversarialness as Adversarialness
from layerwise.evaluation.measures.adversarialness import degree_of_adversarialness as degree_of_adversarialness
from layerwise.evaluation.measures.alignment import Alignment as Alignment
from layerwise.evaluation.measures.alignment import gradient_alignment as gradient_alignment
from layerwise.evaluation.measures.base import Pollute as Pollute
from layerwise.evaluation.measures.base import fgsm as fgsm
from layerwise.evaluation.measures.base import uniform_noise as uniform_noise
from layerwise.evaluation.measures.boundary import BoundaryDistance as BoundaryDistance
from layerwise.evaluation.measures.boundary import DecisionBoundary as DecisionBoundary
from layerwise.evaluation.measures.boundary import boundary_distance as boundary_distance
from layerwise.evaluation.measures.boundary import decision_boundary as decision_boundary
from layerwise.evaluation.measures.calibration import Calibration as Calibration
from layerwise.evaluation.measures.calibration import calibration as calibration
from layerwise.evaluation.measures.eps_ref import EpsRef as EpsRef
from layerwise.evaluation.measures.eps_ref import eps_ref as eps_ref
from layerwise.evaluation.measures.eps_ref import fgsm_accuracies as fgsm_accuracies
from layerwise.evaluation.measures.feature_gradients import FeatureGradients as FeatureGradients
from layerwise.evaluation.measures.feature_gradients import feature_gradient_norms as feature_gradient_norms
from layerwise.evaluation.measures.features import Cloud as Cloud
from layerwise.evaluation.measures.features import FeatureClouds as FeatureClouds
from layerwise.evaluation.measures.features import feature_clouds as feature_clouds
from layerwise.evaluation.measures.input_gradients import InputGradients as InputGradients
from layerwise.evaluation.measures.input_gradients import input_gradient_pictures as input_gradient_pictures
from layerwise.evaluation.measures.insensitivity import NoiseInsensitivity as NoiseInsensitivity
from layerwise.evaluation.measures.insensitivity import RepresentationInsensitivity as RepresentationInsensitivity
from layerwise.evaluation.measures.insensitivity import noise_insensitivity as noise_insensitivity
from layerwise.evaluation.measures.insensitivity import representation_insensitivity as representation_insensitivity
from layerwise.evaluation.measures.jacobian import Spectrum as Spectrum
from layerwise.evaluation.measures.jacobian import jacobian_spectrum as jacobian_spectrum
from layerwise.evaluation.measures.landscape import Landscape as Landscape
from layerwise.evaluation.measures.landscape import loss_landscape as loss_landscape
from layerwise.evaluation.measures.latent_audit import LatentAudit as LatentAudit
from layerwise.evaluation.measures.latent_audit import audit as audit
from layerwise.evaluation.measures.linearity import Linearity as Linearity
from layerwise.evaluation.measures.linearity import linear_approximation_error as linear_approximation_error
from layerwise.evaluation.measures.pictures import Example as Example
from layerwise.evaluation.measures.pictures import Examples as Examples
from layerwise.evaluation.measures.pictures import adversarial_examples as adversarial_examples
from layerwise.evaluation.measures.radius import RadiusCurve as RadiusCurve
from layerwise.evaluation.measures.radius import accuracy_over_radius as accuracy_over_radius
from layerwise.evaluation.measures.ratio import StateRatio as StateRatio
from layerwise.evaluation.measures.ratio import state_gradient_ratio as state_gradient_ratio
from layerwise.evaluation.measures.reassignment import Reassignment as Reassignment
from layerwise.evaluation.measures.reassignment import layer_reassignment as layer_reassignment
from layerwise.evaluation.measures.reassignment import reassigned as reassigned
from layerwise.evaluation.measures.rho import Rho as Rho
from layerwise.evaluation.measures.rho import rho as rho
from layerwise.evaluation.style import describe as describe
