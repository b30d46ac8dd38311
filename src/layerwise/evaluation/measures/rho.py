"""Deep Defense's measure of robustness: the size of DeepFool's perturbation beside that of the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from layerwise.attacks.gradient import DeepFoolAttack, run_deepfool
from layerwise.core.registry import register
from layerwise.errors import ConfigError
from layerwise.evaluation.conditions import Data, evaluating
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import Measurement


@final
@dataclass(frozen=True)
class Rho(Measurement):
    """The robustness measure rho_p.

    Args:
        value: mean of ||Delta||_p / ||x||_p.
        images: images in that mean.
        blank: images left out because ||x|| is 0.
        unfooled: share of `images` whose prediction DeepFool did not change within its steps; their ratio is too small.
        num_steps: DeepFool's steps.
        p: the norm.
    """

    title: ClassVar[str] = "rho"
    section: ClassVar[str] = "Comparison"
    caption: ClassVar[str] = (
        "Deep Defense's rho_2, the mean of ||Delta||_2 / ||x||_2 over the images, Delta DeepFool's perturbation; larger is better."
    )
    drawn: ClassVar[bool] = False

    value: float
    images: int
    blank: int
    unfooled: float
    num_steps: int
    p: float

    def sentence(self) -> str:
        """The mean, and what was left out."""
        blank = f", {self.blank} blank ones left out" if self.blank else ""
        unfooled = f"{100 * self.unfooled:.2f} % not fooled"
        return (
            f"rho_{self.p:g} with {self.num_steps} DeepFool steps: {self.value:.4g} over {self.images} images, "
            f"{unfooled}{blank}."
        )

    def cells(self) -> Mapping[str, str]:
        """A row of a table."""
        return {
            "DeepFool steps": str(self.num_steps),
            f"rho_{self.p:g}": f"{self.value:.4g}",
            "images": str(self.images),
            "blank, left out": str(self.blank or ""),
            "unfooled, %": f"{100 * self.unfooled:.1f}",
        }


@register("measure", "rho", passes=lambda size: size.total * DeepFoolAttack(size.steps, 1000).passes(size.classes))
def _measure(target: Target, *, steps: int = 50) -> Rho:
    """Deep Defense's rho_2 (eq. 7); 5 steps to compare with the paper, 50 to converge."""
    return rho(target.model, target.split, num_steps=steps, **target.subset)


def rho(
    model: nn.Module,
    data: Data,
    *,
    num_steps: int = 5,
    p: float = 2.0,
    num_classes: int | None = None,
    overshoot: float = 0.02,
    center: Tensor | None = None,
    **options: Any,
) -> Rho:
    """The mean of ||Delta_x||_p / ||x||_p, Delta_x the DeepFool perturbation with overshoot, away from the prediction.

    Over all images, misclassified ones included (their step leads away from the wrong prediction as well); pixels are not clipped.

    Args:
        model: the network.
        data: see `layerwise.evaluation.conditions.Data`.
        num_steps: 5 in the authors' code (to compare), 50 to converge; print both.
        p: above 1, or inf.
        num_classes: only the likeliest classes; None is all.
        overshoot: share added to the sum of the steps.
        center: what is taken from x before its norm is, shape (C, H, W): the mean image, for papers whose networks see x minus it. The
            perturbation is the same; images without that much light are shorter, so the ratio is larger.
        options: those of `layerwise.evaluation.conditions.evaluating`.

    Raises:
        ConfigError: every image is blank, or as `evaluating`.

    Reference: Yan et al. 2018 (Deep Defense), eq. 7; Moosavi-Dezfooli et al. 2016, eq. 2.
    """
    deepfool_options = {"num_steps": num_steps, "p": p, "num_classes": num_classes, "overshoot": overshoot}
    ratios, fooled, counted = [], [], []
    with evaluating(model, data, **options) as conditions:
        for x, _, _ in conditions.batches:
            found = run_deepfool(conditions.network, x, **deepfool_options)
            ratio, relative = found.rho(x if center is None else x - center.to(x), p)
            ratios.append(ratio.double())
            fooled.append(found.fooled)
            counted.append(relative)
    kept = torch.cat(counted)
    images = int(kept.sum())
    if not images:
        raise ConfigError(f"all {len(kept)} images are blank (every pixel 0); rho has no meaning on them")
    return Rho(
        value=torch.cat(ratios)[kept].mean().item(),
        images=images,
        blank=len(kept) - images,
        unfooled=1 - torch.cat(fooled)[kept].double().mean().item(),
        num_steps=num_steps,
        p=p,
    )
