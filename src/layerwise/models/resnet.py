"""Residual networks of He et al. 2015: in their CIFAR form, a 3x3 stem and no pooling before the groups, and for large images."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from layerwise.models import checks
from layerwise.models.layers import chain, conv, groups, initialise, relu
from layerwise.models.registry import register


class BasicBlock(nn.Module):
    """`x' = relu(BN(conv3(relu(BN(conv3(x))))) + shortcut(x))`, the shortcut a 1x1 convolution with BN or the identity."""

    is_residual_block: ClassVar[bool] = True

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs), relu()
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)
        self.relu2 = relu()

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        branch = self.relu1(self.bn1(self.conv1(x)))
        out: Tensor = self.relu2(self.bn2(self.conv2(branch)) + self.shortcut(x))
        return out


class Bottleneck(nn.Module):
    """The 1x1, 3x3, 1x1 block; the middle has a quarter of `outputs` channels and takes the stride."""

    is_residual_block: ClassVar[bool] = True

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = outputs // 4
        self.conv1, self.bn1, self.relu1 = conv(inputs, middle, kernel=1), nn.BatchNorm2d(middle), relu()
        self.conv2, self.bn2, self.relu2 = conv(middle, middle, stride=stride), nn.BatchNorm2d(middle), relu()
        self.conv3, self.bn3 = conv(middle, outputs, kernel=1), nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)
        self.relu3 = relu()

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        branch = self.relu1(self.bn1(self.conv1(x)))
        branch = self.relu2(self.bn2(self.conv2(branch)))
        out: Tensor = self.relu3(self.bn3(self.conv3(branch)) + self.shortcut(x))
        return out


@register("resnet20", depth=20)
@register("resnet56", depth=56)
def cifar_resnet(
    *, normalize: nn.Module, num_classes: int, shape: tuple[int, ...], depth: int, width: int = 16
) -> nn.Module:
    """ResNet of depth 6n + 2 for CIFAR: three groups of n basic blocks.

    Where the shape changes the shortcut is a 1x1 convolution with BN (option B of the paper), not padding with zeros.
    Stem `conv1`, groups `layer1` to `layer3`; `width` is the number of channels of the first group.

    Reference: He et al., Deep Residual Learning for Image Recognition, section 4.2. Used by LAT.
    """
    n = (depth - 2) // 6
    return _resnet(BasicBlock, (n, n, n), normalize, num_classes, shape, stem=width, first=width)


@register("resnet18", blocks=(2, 2, 2, 2))
@register("resnet50", blocks=(3, 4, 6, 3), bottleneck=True)
def resnet(
    *,
    normalize: nn.Module,
    num_classes: int,
    shape: tuple[int, ...],
    blocks: tuple[int, ...],
    bottleneck: bool = False,
    width: int = 64,
) -> nn.Module:
    """ResNet of four groups, in the CIFAR form.

    Stem `conv1` (3x3, stride 1, no pooling), groups `layer1` to `layer4`; `width` is the number of channels of the stem.

    Reference: He et al., Deep Residual Learning for Image Recognition, table 1, with the usual stem for 32 x 32 images.
    Used by ANP and, as a source of transferred attacks, ResNet-50.
    """
    block, expansion = (Bottleneck, 4) if bottleneck else (BasicBlock, 1)
    return _resnet(block, blocks, normalize, num_classes, shape, stem=width, first=width * expansion)


@register("resnet18_imagenet", blocks=(2, 2, 2, 2))
@register("resnet50_imagenet", blocks=(3, 4, 6, 3), bottleneck=True)
def imagenet_resnet(
    *,
    normalize: nn.Module,
    num_classes: int,
    shape: tuple[int, ...],
    blocks: tuple[int, ...],
    bottleneck: bool = False,
    width: int = 64,
) -> nn.Module:
    """ResNet of four groups for large images.

    Stem `conv1` (7x7, stride 2), `bn1`, `relu`, `maxpool` (3x3, stride 2), groups `layer1` to `layer4`; a bottleneck takes its stride
    in the 3x3 convolution, as most published weights do. `width` is the number of channels of the stem.

    Reference: He et al., Deep Residual Learning for Image Recognition, table 1. Used by ANP and Deep Defense (18 layers).
    """
    block, expansion = (Bottleneck, 4) if bottleneck else (BasicBlock, 1)
    first = width * expansion
    return _resnet(block, blocks, normalize, num_classes, shape, stem=width, first=first, large=True)


def _resnet(
    block: type[BasicBlock] | type[Bottleneck],
    counts: tuple[int, ...],
    normalize: nn.Module,
    num_classes: int,
    shape: tuple[int, ...],
    *,
    stem: int,
    first: int,
    large: bool = False,
) -> nn.Module:
    """Stem, groups whose channels double from `first`, global average pooling, linear classifier."""
    channels = checks.images("resnet", shape)[0]
    checks.integer("width", stem)
    widths = [first * 2**i for i in range(len(counts))]
    pooled: dict[str, nn.Module] = {"maxpool": nn.MaxPool2d(3, stride=2, padding=1)} if large else {}
    return initialise(
        chain(
            normalize=normalize,
            conv1=conv(channels, stem, kernel=7, stride=2) if large else conv(channels, stem),
            bn1=nn.BatchNorm2d(stem),
            relu=relu(),
            **pooled,
            **groups(lambda i, o, stride, _: block(i, o, stride), counts=counts, inputs=stem, widths=widths),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            linear=nn.Linear(widths[-1], num_classes),
        )
    )


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The identity where it fits, else a 1x1 convolution with batch norm."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, kernel=1, stride=stride), nn.BatchNorm2d(outputs))
