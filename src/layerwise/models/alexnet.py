"""AlexNet, in one tower and as the papers' references have it, in two."""

from __future__ import annotations

from torch import nn

from layerwise.models import checks
from layerwise.models.layers import chain, relu
from layerwise.models.registry import register


@register("alexnet")
def alexnet(
    *,
    normalize: nn.Module,
    num_classes: int,
    shape: tuple[int, ...],
    width: int = 64,
    hidden: int = 4096,
    dropout: float = 0.5,
) -> nn.Module:
    """AlexNet in one tower: convolutions of 64, 192, 384, 256 and 256 channels, three linear layers.

    Modules `conv1`, `relu1`, `pool1`, ..., `conv5`, `relu5`, `pool3`, `pool` (to 6 x 6, an identity at 224), `dropout1`, `fc1`,
    `relu6`, `dropout2`, `fc2`, `relu7`, `fc3`. Weights start as PyTorch has them.

    Args:
        normalize: the first layer.
        num_classes: the number of logits.
        shape: (channels, height, width), sides of at least 63; 224 in the papers.
        width: channels of the first convolution; the others in proportion.
        hidden: the size of the two hidden linear layers.
        dropout: probability before the first two linear layers.

    Reference: Krizhevsky, One weird trick for parallelizing convolutional neural networks, the single tower. ANP names AlexNet
    without printing its layers.
    """
    channels = checks.images("alexnet", shape, at_least=63)[0]
    checks.integer("width", width)
    widths = [width, 3 * width, 6 * width, 4 * width, 4 * width]
    return chain(
        normalize=normalize,
        conv1=nn.Conv2d(channels, widths[0], 11, stride=4, padding=2),
        relu1=relu(),
        pool1=nn.MaxPool2d(3, stride=2),
        conv2=nn.Conv2d(widths[0], widths[1], 5, padding=2),
        relu2=relu(),
        pool2=nn.MaxPool2d(3, stride=2),
        **_deep(widths, groups=(1, 1, 1)),
        **_classifier(widths[4], num_classes, hidden=hidden, dropout=dropout),
    )


@register("alexnet_groups")
def alexnet_groups(
    *,
    normalize: nn.Module,
    num_classes: int,
    shape: tuple[int, ...],
    width: int = 96,
    hidden: int = 4096,
    dropout: float = 0.5,
) -> nn.Module:
    """AlexNet of 2012: convolutions in two groups, and local response normalisation.

    Modules as in `alexnet`, with `norm1` and `norm2` before the first two poolings. Weights start as PyTorch has them; the authors'
    N(0, 0.01) needs their learning rates.

    Args:
        normalize: the first layer.
        num_classes: the number of logits.
        shape: (channels, height, width), sides of at least 67; 227 in the papers.
        width: channels of the first convolution; the others in proportion. A multiple of 6.
        hidden: the size of the two hidden linear layers.
        dropout: probability before the first two linear layers.

    Reference: Krizhevsky et al. 2012, section 3, as Caffe's model zoo has it, which is Deep Defense's reference for ImageNet.
    """
    channels = checks.images("alexnet_groups", shape, at_least=67)[0]
    checks.integer("width", width)
    widths = [width, 8 * width // 3, 4 * width, 4 * width, 8 * width // 3]
    return chain(
        normalize=normalize,
        conv1=nn.Conv2d(channels, widths[0], 11, stride=4),
        relu1=relu(),
        norm1=nn.LocalResponseNorm(5),
        pool1=nn.MaxPool2d(3, stride=2),
        conv2=nn.Conv2d(widths[0], widths[1], 5, padding=2, groups=2),
        relu2=relu(),
        norm2=nn.LocalResponseNorm(5),
        pool2=nn.MaxPool2d(3, stride=2),
        **_deep(widths, groups=(1, 2, 2)),
        **_classifier(widths[4], num_classes, hidden=hidden, dropout=dropout),
    )


def _deep(widths: list[int], *, groups: tuple[int, int, int]) -> dict[str, nn.Module]:
    """The third to fifth convolution."""
    layers: dict[str, nn.Module] = {}
    for number, parts in zip((3, 4, 5), groups, strict=True):
        inputs, outputs = widths[number - 2], widths[number - 1]
        layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, padding=1, groups=parts)
        layers[f"relu{number}"] = relu()
    return layers | {"pool3": nn.MaxPool2d(3, stride=2)}


def _classifier(inputs: int, num_classes: int, *, hidden: int, dropout: float) -> dict[str, nn.Module]:
    """Pooling to 6 x 6 and three linear layers."""
    checks.integer("hidden", hidden)
    checks.fraction("dropout", dropout)
    return {
        "pool": nn.AdaptiveAvgPool2d(6),
        "flatten": nn.Flatten(),
        "dropout1": nn.Dropout(dropout),
        "fc1": nn.Linear(36 * inputs, hidden),
        "relu6": relu(),
        "dropout2": nn.Dropout(dropout),
        "fc2": nn.Linear(hidden, hidden),
        "relu7": relu(),
        "fc3": nn.Linear(hidden, num_classes),
    }
