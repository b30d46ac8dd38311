"""VGG networks of Simonyan and Zisserman 2015, in their CIFAR form: one linear classifier."""

from __future__ import annotations

from torch import nn

from layerwise.errors import ConfigError
from layerwise.models import checks
from layerwise.models.layers import chain, initialise, relu
from layerwise.models.registry import register

_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions in each of the five stages, by depth."""


@register("vgg11", depth=11)
@register("vgg13", depth=13)
@register("vgg16", depth=16)
@register("vgg19", depth=19)
@register("vgg11_bn", depth=11, batch_norm=True)
@register("vgg13_bn", depth=13, batch_norm=True)
@register("vgg16_bn", depth=16, batch_norm=True)
@register("vgg19_bn", depth=19, batch_norm=True)
def vgg(
    *,
    normalize: nn.Module,
    num_classes: int,
    shape: tuple[int, ...],
    depth: int,
    batch_norm: bool = False,
    width: int = 64,
    pools: int = 5,
    dropout: float = 0.0,
    conv_dropout: float = 0.0,
) -> nn.Module:
    """VGG in the CIFAR form: five stages of 3x3 convolutions, one linear classifier.

    Modules `conv1`, `bn1`, `relu1`, `conv2`, ... count through the network, `pool1` to `pool5` close the stages;
    then come the global average `pool`, `dropout` and `linear`.

    Args:
        normalize: the first layer.
        num_classes: the number of logits.
        shape: (channels, height, width), each side at least 2 ** pools.
        depth: 11, 13, 16 or 19.
        batch_norm: whether a batch norm follows each convolution.
        width: channels of the first stage; the later ones have 2, 4, 8 and 8 times as many.
        pools: how many of the five stages, counted from the input, end in a pooling; 3 makes 8 x 8 images possible.
        dropout: probability before the classifier.
        conv_dropout: probability after each ReLU that another convolution of its stage follows (`dropout1`, ... as `relu1`, ...).

    Reference: Simonyan and Zisserman, Very Deep Convolutional Networks, table 1 (A, B, D, E). Used by ANP and LAT.
    """
    if checks.integer("pools", pools, at_least=0) > 5:
        raise ConfigError(f"pools is {pools}, but a VGG has five stages; give 0 to 5.")
    channels = checks.images(
        f"vgg{depth} with pools={pools}",
        shape,
        at_least=2**pools,
        hint="; give fewer pools, for instance pools=3 for 8 x 8",
    )[0]
    checks.integer("width", width)
    checks.fraction("conv_dropout", conv_dropout)
    layers: dict[str, nn.Module] = {"normalize": normalize}
    number = 0
    for stage, (count, multiple) in enumerate(zip(_CONVOLUTIONS[depth], (1, 2, 4, 8, 8), strict=True), start=1):
        for index in range(count):
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(channels, width * multiple, 3, padding=1, bias=not batch_norm)
            if batch_norm:
                layers[f"bn{number}"] = nn.BatchNorm2d(width * multiple)
            layers[f"relu{number}"] = relu()
            if conv_dropout and index < count - 1:
                layers[f"dropout{number}"] = nn.Dropout(conv_dropout)
            channels = width * multiple
        if stage <= pools:
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers |= {
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "dropout": nn.Dropout(checks.fraction("dropout", dropout)),
    }
    return initialise(chain(**layers, linear=nn.Linear(channels, num_classes)))
