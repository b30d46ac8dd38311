"""Inception-v2, the batch-normalised Inception of Ioffe and Szegedy 2015."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerwise.models import checks
from layerwise.models.layers import chain, conv, initialise, relu
from layerwise.models.registry import register

_SAME = {
    "3a": (64, 64, 64, 64, 96, 32),
    "3b": (64, 64, 96, 64, 96, 64),
    "4a": (224, 64, 96, 96, 128, 128),
    "4b": (192, 96, 128, 96, 128, 128),
    "4c": (160, 128, 160, 128, 160, 96),
    "4d": (96, 128, 192, 160, 192, 96),
    "5a": (352, 192, 320, 160, 224, 128),
    "5b": (352, 192, 320, 192, 224, 128),
}
"""Channels of the blocks that keep the size: 1x1; 3x3 reduction, 3x3; double 3x3 reduction, double 3x3; projection of the pool."""

_HALVING = {"3c": (128, 160, 64, 96), "4e": (128, 192, 192, 256)}
"""Channels of the blocks that halve it: 3x3 reduction, 3x3; double 3x3 reduction, double 3x3; the pool passes all through."""


class Inception(nn.Module):
    """Branches side by side, their channels one after another."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        """All branches of the same input."""
        return torch.cat([branch(x) for branch in self.children()], dim=1)


@register("inception_v2")
@register("inception_v2_imagenet", imagenet=True)
def inception_v2(
    *, normalize: nn.Module, num_classes: int, shape: tuple[int, ...], imagenet: bool = False, width: int = 64
) -> nn.Module:
    """Inception-v2 (BN-Inception): ten blocks of parallel convolutions.

    Stem `conv1`, (`pool1`,) `conv2`, `conv3`, (`pool2`), each convolution with `bn` and `relu`; blocks `inception3a` to `inception5b`
    with the branches `one`, `three`, `double3` and `pool`; global average `pool`, `linear`. For large images `conv1` is 7x7 with
    stride 2 and poolings follow it and `conv3`, in all a fall to an eighth; in the form for 32 x 32 images (ours: ANP, which has the
    network on CIFAR-10, does not print one) it is 3x3 with stride 1, without pooling. Convolutions start from N(0, 2 / fan-out).

    Args:
        normalize: the first layer.
        num_classes: the number of logits.
        shape: (channels, height, width), sides of at least 4 (32 for large images).
        imagenet: the form for large images.
        width: channels of the first convolution; all others in proportion.

    Reference: Ioffe and Szegedy, Batch Normalization, figure 5. Used by ANP as a source of attacks, and by its EAT.
    """
    channels = checks.images("inception_v2", shape, at_least=32 if imagenet else 4)[0]
    checks.integer("width", width)
    layers: dict[str, nn.Module] = {"normalize": normalize}
    layers |= _unit(1, channels, width, kernel=7 if imagenet else 3, stride=2 if imagenet else 1)
    layers |= {"pool1": _max_pool(2)} if imagenet else {}
    layers |= _unit(2, width, width, kernel=1) | _unit(3, width, 3 * width)
    layers |= {"pool2": _max_pool(2)} if imagenet else {}
    inputs = 3 * width
    for name in sorted([*_SAME, *_HALVING]):
        sizes = tuple(max(1, size * width // 64) for size in _SAME.get(name, _HALVING.get(name, ())))
        layers[f"inception{name}"] = _halving(inputs, *sizes) if name in _HALVING else _same(name, inputs, *sizes)
        inputs = sizes[1] + sizes[3] + inputs if name in _HALVING else sizes[0] + sizes[2] + sizes[4] + sizes[5]
    return initialise(
        chain(**layers, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(inputs, num_classes))
    )


def _same(name: str, inputs: int, one: int, reduce3: int, three: int, reduce5: int, five: int, proj: int) -> nn.Module:
    """A block that keeps the size; only the last one's pool takes maxima."""
    pool = _max_pool(1) if name == "5b" else nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return Inception(
        one=chain(**_unit(1, inputs, one, kernel=1)),
        three=chain(**_unit(1, inputs, reduce3, kernel=1), **_unit(2, reduce3, three)),
        double3=_double(inputs, reduce5, five, stride=1),
        pool=chain(pool=pool, **_unit(1, inputs, proj, kernel=1)),
    )


def _halving(inputs: int, reduce3: int, three: int, reduce5: int, five: int) -> nn.Module:
    """A block with stride 2."""
    return Inception(
        three=chain(**_unit(1, inputs, reduce3, kernel=1), **_unit(2, reduce3, three, stride=2)),
        double3=_double(inputs, reduce5, five, stride=2),
        pool=_max_pool(2),
    )


def _double(inputs: int, reduce: int, outputs: int, *, stride: int) -> nn.Module:
    """Two 3x3 convolutions behind a 1x1 one: the field of a 5x5."""
    last = _unit(3, outputs, outputs, stride=stride)
    return chain(**_unit(1, inputs, reduce, kernel=1), **_unit(2, reduce, outputs), **last)


def _unit(number: int, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> dict[str, nn.Module]:
    """Convolution, batch norm, ReLU."""
    return {
        f"conv{number}": conv(inputs, outputs, kernel=kernel, stride=stride),
        f"bn{number}": nn.BatchNorm2d(outputs),
        f"relu{number}": relu(),
    }


def _max_pool(stride: int) -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=stride, padding=1)
