"""Wide residual networks of Zagoruyko and Komodakis 2016."""

from __future__ import annotations

from torch import nn

from layerwise.errors import ConfigError
from layerwise.models import checks
from layerwise.models.preact_resnet import assemble
from layerwise.models.registry import register


@register("wide_resnet")
def wide_resnet(
    *,
    normalize: nn.Module,
    num_classes: int,
    shape: tuple[int, ...],
    depth: int = 28,
    width: int = 10,
    dropout: float = 0.0,
) -> nn.Module:
    """Wide ResNet of depth 6n + 4; `wrn-28-10` is depth 28, width 10.

    Names in the papers and here: group conv1 is `conv1` (the 3x3 stem of 16 channels), conv2 is `layer1`, conv3 is
    `layer2`, conv4 is `layer3` (n pre-activation blocks each, of 16, 32 and 64 times `width` channels). SLAT's sites
    {input, conv1, conv2} are therefore `["input", "conv1", "layer1"]`.

    Args:
        normalize: the first layer.
        num_classes: the number of logits.
        shape: (channels, height, width), any size.
        depth: 6n + 4, at least 10.
        width: the factor of widening.
        dropout: probability before each block's second convolution; 0.3 in SLAT's official code, which the paper does not say.

    Raises:
        ConfigError: the depth is not 6n + 4.

    Reference: Zagoruyko and Komodakis, Wide Residual Networks, table 1. Used by SLAT (28, 10) and LAT.
    """
    if checks.integer("depth", depth, at_least=10) % 6 != 4:
        raise ConfigError(f"wide_resnet takes a depth of 6n + 4 (10, 16, 22, 28, 34, 40, ...), not {depth}.")
    checks.integer("width", width)
    n = (depth - 4) // 6
    widths = (16 * width, 32 * width, 64 * width)
    return assemble(normalize, num_classes, shape, counts=(n, n, n), stem=16, widths=widths, dropout=dropout)
