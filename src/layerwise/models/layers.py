"""The parts that several families share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

from torch import nn

Block = Callable[[int, int, int, int], nn.Module]
"""A function of (channels in, channels out, stride, index in its group)."""


def chain(**modules: nn.Module) -> nn.Sequential:
    """A sequence whose members keep the names that they are given.

    >>> chain(conv1=nn.Conv2d(1, 2, 3), relu1=nn.ReLU()).relu1
    ReLU()
    """
    return nn.Sequential(OrderedDict(modules))


def conv(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1 (odd kernels)."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def relu() -> nn.ReLU:
    """A ReLU of its own for every call; in place, which saves a tenth of a CPU step."""
    return nn.ReLU(inplace=True)


def groups(block: Block, *, counts: Sequence[int], inputs: int, widths: Sequence[int]) -> dict[str, nn.Module]:
    """The groups `layer1`, `layer2`, ... of a residual network; each after the first begins with stride 2."""
    made: dict[str, nn.Module] = {}
    for number, (count, outputs) in enumerate(zip(counts, widths, strict=True), start=1):
        stride = 1 if number == 1 else 2
        first = block(inputs, outputs, stride, 0)
        made[f"layer{number}"] = nn.Sequential(first, *(block(outputs, outputs, 1, i) for i in range(1, count)))
        inputs = outputs
    return made


def initialise(network: nn.Sequential, *, fan: Literal["fan_in", "fan_out"] = "fan_out") -> nn.Sequential:
    """Draw every convolution from N(0, 2 / fan) (He et al. 2015), set all biases to 0, and return the network.

    Linear weights keep PyTorch's uniform(-1/sqrt(inputs), 1/sqrt(inputs)), and batch norm its 1 and 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return network
