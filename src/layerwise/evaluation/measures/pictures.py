"""A few images beside what an attack made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from layerwise.attacks.at import At
from layerwise.attacks.base import GRADIENT, InputAttack
from layerwise.attacks.gradient import Clean
from layerwise.attacks.text import parse_attack
from layerwise.core import norms
from layerwise.core.registry import register
from layerwise.core.threat import ThreatModel
from layerwise.errors import ConfigError
from layerwise.evaluation.conditions import Data, evaluating
from layerwise.evaluation.measure import Target
from layerwise.evaluation.measurement import Measurement


@final
@dataclass(frozen=True)
class Example:
    """One image, before and after the attack.

    Args:
        image: its pixels as whole numbers of 0 to 255, channels, then rows, then columns.
        adversarial: likewise, what the attack made of it, rounded for showing.
        label: class number.
        predicted: class that the network saw in the image.
        confidence: the network's probability of that class, in [0, 1].
        attacked: class that it saw in the adversarial image.
        attacked_confidence: the network's probability of that class.
        distance: of the two images before rounding, in the threat model's norm, pixels in [0, 1].
    """

    image: tuple[int, ...]
    adversarial: tuple[int, ...]
    label: int
    predicted: int
    confidence: float
    attacked: int
    attacked_confidence: float
    distance: float


@final
@dataclass(frozen=True)
class Examples(Measurement):
    """A few images, the first ones of an evaluation, none left out.

    Args:
        attack: how it is written.
        threat: what it kept to.
        shape: of one image, (channels, height, width).
        classes: their names, by number; empty where nobody named them.
        items: the images.

    Raises:
        ConfigError: an image of another shape.
    """

    title: ClassVar[str] = "Adversarial examples"
    rank: ClassVar[int] = 60
    drawn: ClassVar[bool] = False

    attack: str
    threat: ThreatModel
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    items: tuple[Example, ...]

    def __post_init__(self) -> None:
        """Check that every image has the shape."""
        size = self.shape[0] * self.shape[1] * self.shape[2]
        for item in self.items:
            for pixels in (item.image, item.adversarial):
                if len(pixels) != size or not all(0 <= value <= 255 for value in pixels):
                    raise ConfigError(f"an image is not {size} numbers of 0 to 255, as the shape {self.shape} says")

    @property
    def total(self) -> int:
        """The images."""
        return len(self.items)

    def sentence(self) -> str:
        """How many of the images fool the network."""
        fooled = sum(item.attacked != item.label for item in self.items)
        return f"{fooled} of the first {len(self.items)} images are misclassified under {self.attack} ({self.threat})."

    def pictures(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each image and its adversarial one, uint8, shape (C, H, W)."""
        for item in self.items:
            image, adversarial = (torch.tensor(p, dtype=torch.uint8) for p in (item.image, item.adversarial))
            yield image.reshape(self.shape), adversarial.reshape(self.shape)

    def class_name(self, number: int) -> str:
        """What a class is called."""
        return self.classes[number] if number < len(self.classes) else str(number)


@register("measure", "pictures", passes=lambda size: size.images * (20 * GRADIENT + 1))
def _measure(target: Target, *, images: int = 8) -> Examples:
    """Adversarial images beside their originals, of the last attack that makes some within the threat model."""
    made = [a for a in target.attacks if isinstance(a, InputAttack) and not isinstance(a, Clean | At)]
    if not made:
        raise ConfigError("no attack makes images within the threat model, type one such as pgd-20")
    return adversarial_examples(
        target.model,
        target.split,
        attack=made[-1],
        threat=target.threat,
        num_images=images,
        classes=target.classes,
        seed=target.seed,
    )


def adversarial_examples(
    model: nn.Module,
    data: Data,
    *,
    attack: InputAttack | str,
    threat: ThreatModel,
    num_images: int = 8,
    classes: Sequence[str] = (),
    seed: int = 0,
    **options: Any,
) -> Examples:
    """Attack the first images of an evaluation, and keep what the network says before and after.

    Args:
        model: the network.
        data: see `layerwise.evaluation.conditions.Data`.
        attack: on the images.
        threat: what is allowed.
        num_images: how many.
        classes: their names, by number.
        seed: of the images and the attack's random numbers, that of the evaluation.
        options: others of `layerwise.evaluation.conditions.evaluating`.

    Raises:
        ConfigError: the attack is none on images.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    >>> data = torch.rand(20, 1, 4, 4), torch.arange(20) % 2
    >>> found = adversarial_examples(net, data, attack="pgd-5", threat=ThreatModel("linf", 0.1), num_images=2)
    >>> [item.distance <= 0.1 + 1e-6 for item in found.items], found.shape
    ([True, True], (1, 4, 4))
    """
    chosen = parse_attack(attack) if isinstance(attack, str) else attack
    if not isinstance(chosen, InputAttack):
        raise ConfigError(f"attack {str(chosen)!r} changes no image that could be shown; type one such as pgd-20")
    options["batch_size"] = num_images
    with evaluating(model, data, num_examples=num_images, seed=seed, **options) as conditions:
        conditions.reseed()
        x, y, source = next(iter(conditions.batches))
        x_adv = chosen(conditions.network, x, y, threat, generator=source)
        threat.check(x, x_adv, attack=str(chosen))
        seen = [*_seen(conditions.network, x), *_seen(conditions.network, x_adv)]
    distances = norms.norm(x_adv.double() - x.double(), threat.norm)
    columns = [_bytes(x), _bytes(x_adv), y.tolist(), *seen, distances.tolist()]
    items = tuple(Example(tuple(a), tuple(b), *rest) for a, b, *rest in zip(*columns, strict=True))
    channels, height, width = x.shape[1:]
    return Examples(str(chosen), threat, (channels, height, width), tuple(classes), items)


@torch.no_grad()
def _seen(network: nn.Module, x: Tensor) -> tuple[list[int], list[float]]:
    """Predictions and their probabilities."""
    confidence, predicted = network(x).double().softmax(dim=1).max(dim=1)
    return predicted.tolist(), confidence.nan_to_num().tolist()


def _bytes(x: Tensor) -> list[list[int]]:
    return [[int(v) for v in row] for row in (255 * x.double()).round().clamp(0, 255).flatten(1).tolist()]
