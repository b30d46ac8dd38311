"""Pre-activation residual networks of He et al. 2016, in their CIFAR form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from layerwise.errors import ConfigError, did_you_mean
from layerwise.models import checks
from layerwise.models.layers import chain, conv, groups, initialise, relu
from layerwise.models.registry import register


class PreActBlock(nn.Module):
    """`x' = f(x) + shortcut`, `f = conv3(dropout(relu(BN(conv3(relu(BN(x)))))))`.

    The shortcut is x itself; where the shape changes, it is a 1x1 convolution of relu(BN(x)), as in the authors' code.
    """

    is_residual_block: ClassVar[bool] = True

    def __init__(self, inputs: int, outputs: int, stride: int, *, dropout: float, damping: Damping | None) -> None:
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(inputs), relu()
        self.conv1 = conv(inputs, outputs, stride=stride)
        self.bn2, self.relu2, self.dropout = nn.BatchNorm2d(outputs), relu(), nn.Dropout(dropout)
        self.conv2 = conv(outputs, outputs)
        self.projects = stride != 1 or inputs != outputs
        self.shortcut = (
            nn.Sequential(conv(inputs, outputs, kernel=1, stride=stride)) if self.projects else nn.Identity()
        )
        self.damping = damping

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        activated = self.relu1(self.bn1(x))
        skip = self.shortcut(activated if self.projects else x)
        branch = self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(activated)))))
        out: Tensor = branch + skip if self.damping is None else self.damping(branch, skip)
        return out


class Damping(nn.Module):
    """The learnt scalar k of an In-ResNet block, which weakens its shortcut.

    `in`: `x' = f(x) + (1 - relu(1 - k)) x`, k drawn from U(0.75, 0.8).
    `lambda-in`: `x' = (1 + relu(k)) f(x) + (1 - relu(k)) x`, k drawn from U(0.2, 0.25).

    Reference: Yang et al. 2020, a baseline of LAD (tables 1 and 2).
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.k = nn.Parameter(torch.empty(()).uniform_(*DAMPING[kind]))

    def forward(self, branch: Tensor, skip: Tensor) -> Tensor:
        """The sum of branch and weakened shortcut."""
        if self.kind == "in":
            return branch + (1 - (1 - self.k).relu()) * skip
        strength = self.k.relu()
        return (1 + strength) * branch + (1 - strength) * skip

    def extra_repr(self) -> str:
        """Which of the two."""
        return repr(self.kind)


DAMPING = {"in": (0.75, 0.8), "lambda-in": (0.2, 0.25)}
"""The range from which k starts."""


@register("preact_resnet20", depth=20)
@register("preact_resnet56", depth=56)
def cifar_preact_resnet(
    *,
    normalize: nn.Module,
    num_classes: int,
    shape: tuple[int, ...],
    depth: int,
    width: int = 16,
    dropout: float = 0.0,
    final_norm: bool = True,
    damping: str | None = None,
) -> nn.Module:
    """Pre-activation ResNet of depth 6n + 2 for CIFAR: three groups of n basic blocks.

    Stem output x_0 = `conv1`, block outputs x_1 to x_3n = `layer1.0` to `layer3.(n-1)`: 27 at depth 56.

    Args:
        normalize: the first layer.
        num_classes: the number of logits.
        shape: (channels, height, width), any size.
        depth: 6n + 2.
        width: channels of the stem and first group; 16 in the paper.
        dropout: probability before each block's second convolution, as in wide residual networks.
        final_norm: whether BN and ReLU come before the pooling, as He et al. have it.
        damping: None, or `in` or `lambda-in` for the (lambda-)In-ResNets of Yang et al. 2020, LAD's baselines. The first
            block of each group stays plain.

    Reference: He et al., Identity Mappings in Deep Residual Networks. Used by LAD (depth 56).
    """
    n = (depth - 2) // 6
    widths = [checks.integer("width", width) * m for m in (1, 2, 4)]
    return assemble(
        normalize,
        num_classes,
        shape,
        counts=(n, n, n),
        stem=width,
        widths=widths,
        dropout=dropout,
        final_norm=final_norm,
        damping=damping,
    )


@register("preact_resnet18")
def preact_resnet18(
    *,
    normalize: nn.Module,
    num_classes: int,
    shape: tuple[int, ...],
    width: int = 64,
    dropout: float = 0.0,
    final_norm: bool = True,
) -> nn.Module:
    """Pre-activation ResNet-18 in the CIFAR form, the usual network of fast adversarial training.

    Stem `conv1` (3x3, stride 1), groups `layer1` to `layer4` of two blocks; `width` is the number of channels of the stem.
    `final_norm=False` leaves out BN and ReLU before the pooling, as some published code does. `dropout` acts before each
    block's second convolution; SLAT's official code has it in its wide ResNet only.

    Reference: He et al., Identity Mappings in Deep Residual Networks.
    """
    widths = [checks.integer("width", width) * m for m in (1, 2, 4, 8)]
    return assemble(
        normalize,
        num_classes,
        shape,
        counts=(2, 2, 2, 2),
        stem=width,
        widths=widths,
        dropout=dropout,
        final_norm=final_norm,
    )


def assemble(
    normalize: nn.Module,
    num_classes: int,
    shape: tuple[int, ...],
    *,
    counts: Sequence[int],
    stem: int,
    widths: Sequence[int],
    dropout: float = 0.0,
    final_norm: bool = True,
    damping: str | None = None,
) -> nn.Sequential:
    """Stem, groups of pre-activation blocks, (BN, ReLU,) global average pooling, linear classifier."""
    channels = checks.images("a pre-activation ResNet", shape)[0]
    checks.fraction("dropout", dropout)
    if damping is not None and damping not in DAMPING:
        raise ConfigError(f"there is no damping {damping!r}; {did_you_mean(damping, DAMPING)}")

    def block(inputs: int, outputs: int, stride: int, index: int) -> nn.Module:
        damp = Damping(damping) if damping is not None and index > 0 else None
        return PreActBlock(inputs, outputs, stride, dropout=dropout, damping=damp)

    return initialise(
        chain(
            normalize=normalize,
            conv1=conv(channels, stem),
            **groups(block, counts=counts, inputs=stem, widths=widths),
            bn=nn.BatchNorm2d(widths[-1]) if final_norm else nn.Identity(),
            relu=relu() if final_norm else nn.Identity(),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            linear=nn.Linear(widths[-1], num_classes),
        )
    )
