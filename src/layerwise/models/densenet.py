"""Densely connected networks of Huang et al. 2017, in their CIFAR form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerwise.errors import ConfigError
from layerwise.models import checks
from layerwise.models.layers import chain, conv, initialise, relu
from layerwise.models.registry import register


class DenseLayer(nn.Module):
    """`x' = [x, f(x)]`, `f = dropout(conv3(relu(BN(x))))`; a bottleneck has conv1 to four times the growth, BN and ReLU before conv3."""

    def __init__(self, inputs: int, growth: int, *, bottleneck: bool, dropout: float) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {"bn1": nn.BatchNorm2d(inputs), "relu1": relu()}
        if bottleneck:
            layers |= {"conv1": conv(inputs, 4 * growth, kernel=1), "bn2": nn.BatchNorm2d(4 * growth), "relu2": relu()}
            inputs = 4 * growth
        layers |= {"conv2" if bottleneck else "conv1": conv(inputs, growth), "dropout": nn.Dropout(dropout)}
        self.branch = chain(**layers)

    def forward(self, x: Tensor) -> Tensor:
        """The input's channels, then the new ones."""
        return torch.cat([x, self.branch(x)], dim=1)


@register("densenet40", depth=40)
@register("densenet100", depth=100, bottleneck=True)
def densenet(
    *,
    normalize: nn.Module,
    num_classes: int,
    shape: tuple[int, ...],
    depth: int,
    bottleneck: bool = False,
    growth: int = 12,
    dropout: float = 0.0,
) -> nn.Module:
    """DenseNet for CIFAR: three blocks of layers that hand on all earlier channels.

    Stem `conv1`, blocks `dense1` to `dense3`, between them `transition1` and `transition2` (BN, ReLU, 1x1 convolution, average
    pooling), then `bn`, `relu`, global average `pool`, `linear`. `densenet100` is DenseNet-BC: bottlenecks, and transitions that
    halve the channels. Convolutions start from N(0, 2 / fan-out). Of ANP's DenseNet neither depth nor growth is printed; these two
    are the smallest of the original paper's.

    Args:
        normalize: the first layer.
        num_classes: the number of logits.
        shape: (channels, height, width), sides of at least 4.
        depth: 3n + 4, with bottlenecks 6n + 4.
        bottleneck: the BC form.
        growth: channels that a layer adds.
        dropout: probability after each 3x3 convolution; the original paper's 0.2 where images are not augmented.

    Raises:
        ConfigError: the depth does not fit.

    Reference: Huang et al., Densely Connected Convolutional Networks, section 3 and table 2. Used by ANP as a source of attacks.
    """
    channels, step = checks.images("densenet", shape, at_least=4)[0], 6 if bottleneck else 3
    if checks.integer("depth", depth, at_least=step + 4) % step != 4 % step:
        raise ConfigError(f"densenet with bottleneck={bottleneck} takes a depth of {step}n + 4, not {depth}.")
    checks.integer("growth", growth)
    checks.fraction("dropout", dropout)
    width = 2 * growth if bottleneck else 16
    layers: dict[str, nn.Module] = {"normalize": normalize, "conv1": conv(channels, width)}
    for number in (1, 2, 3):
        count = (depth - 4) // step
        inputs = [width + i * growth for i in range(count)]
        block = (DenseLayer(each, growth, bottleneck=bottleneck, dropout=dropout) for each in inputs)
        layers[f"dense{number}"] = nn.Sequential(*block)
        width += count * growth
        if number < 3:
            halved = width // 2 if bottleneck else width
            layers[f"transition{number}"] = chain(
                bn=nn.BatchNorm2d(width), relu=relu(), conv=conv(width, halved, kernel=1), pool=nn.AvgPool2d(2)
            )
            width = halved
    layers |= {"bn": nn.BatchNorm2d(width), "relu": relu(), "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    return initialise(chain(**layers, linear=nn.Linear(width, num_classes)))
