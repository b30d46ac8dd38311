"""What a corruption knows beside the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, final

from torch import Tensor

from layerwise.evaluation.corruptions.draws import Draws
from layerwise.evaluation.corruptions.frost import Frost
from layerwise.evaluation.corruptions.severities import Constants


@final
@dataclass(frozen=True)
class Scene:
    """The surroundings of a batch.

    Args:
        draws: the images' random numbers.
        scale: what lengths in pixels are multiplied by.
        frost: the pictures of frost.
    """

    draws: Draws
    scale: float
    frost: Frost

    def pixels(self, length: float) -> int:
        """A length as whole pixels of these images, at least 1."""
        return max(1, round(length * self.scale))


Corruption: TypeAlias = Callable[[Tensor, Constants, Scene], Tensor]
"""Images whose pixels are multiples of 1/255, shape (B, 1 or 3, H, W), float32, the constants and the scene give such images, not yet
cut to [0, 1] or to whole levels; or uint8, where they are whole levels already."""
