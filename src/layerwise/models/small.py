"""The small networks: Deep Defense's MLP, LeNet, ConvNet and NIN, SLAT's toy, and one for the embedded digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from torch import nn

from layerwise.errors import ConfigError, did_you_mean
from layerwise.models import checks
from layerwise.models.layers import chain, conv, initialise, relu
from layerwise.models.registry import register

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": relu, "tanh": nn.Tanh}


@register("mlp")
def mlp(
    *,
    normalize: nn.Module,
    num_classes: int,
    shape: tuple[int, ...],
    hidden: Sequence[int] = (500, 150),
    activation: str = "relu",
    batch_norm: bool = False,
) -> nn.Module:
    """Multi-layer perceptron; by default Deep Defense's, 784-500-150-10 on MNIST.

    Modules `fc1`, (`bn1`,) `relu1` or `tanh1`, `fc2`, ... LAT's toy network is `hidden=(1024, 512), activation="tanh"`.
    Weights start as PyTorch has them.

    Args:
        normalize: the first layer.
        num_classes: the number of logits.
        shape: of one input; any, flattened.
        hidden: the sizes of the hidden layers.
        activation: `relu` or `tanh`.
        batch_norm: whether a batch norm precedes each activation, as Deep Defense's code offers.

    Reference: Deep Defense, section 4 and table 1.
    """
    if activation not in _ACTIVATIONS:
        raise ConfigError(f"there is no activation {activation!r}; {did_you_mean(activation, _ACTIVATIONS)}")
    layers: dict[str, nn.Module] = {"normalize": normalize, "flatten": nn.Flatten()}
    inputs = prod(shape)
    for number, outputs in enumerate(hidden, start=1):
        layers[f"fc{number}"] = nn.Linear(inputs, checks.integer("an entry of hidden", outputs))
        if batch_norm:
            layers[f"bn{number}"] = nn.BatchNorm1d(outputs)
        layers[f"{activation}{number}"] = _ACTIVATIONS[activation]()
        inputs = outputs
    return chain(**layers, **{f"fc{len(hidden) + 1}": nn.Linear(inputs, num_classes)})


@register("toy")
def toy(*, normalize: nn.Module, num_classes: int, shape: tuple[int, ...], hidden: int = 32) -> nn.Module:
    """The two-layer network of the 2-D toy problem.

    `fc1`, `relu1`, `fc2`: SLAT's layers {0, 1} are the sites `["input", "relu1"]`. The paper gives neither width nor
    activation.

    Args:
        normalize: the first layer.
        num_classes: the number of logits.
        shape: of a point, (dimensions,) or, as an image of one pixel, (dimensions, 1, 1); two dimensions in the paper.
        hidden: the number of hidden units.

    Reference: SLAT, figure 2.
    """
    if prod(shape[1:]) != 1:
        raise ConfigError(f"toy takes points of shape (dimensions,), not {shape}; give shape=(2,).")
    return mlp(normalize=normalize, num_classes=num_classes, shape=shape, hidden=(hidden,))


@register("lenet")
@register("lenet_relu", conv_relu=True)
def lenet(*, normalize: nn.Module, num_classes: int, shape: tuple[int, ...], conv_relu: bool = False) -> nn.Module:
    """LeNet: two 5x5 convolutions of 20 and 50 channels with pooling, 500 hidden units.

    `lenet` is Deep Defense's, which has no ReLU after the convolutions; `lenet_relu` is the usual one with them, which
    stands for ANP's MNIST network: ANP names LeNet without printing its layers. Weights start as PyTorch has them.
    Modules `conv1`, (`relu1`,) `pool1`, `conv2`, (`relu2`,) `pool2`, `fc1`, `relu3`, `fc2`.

    Reference: Deep Defense, section 4 (and its official code); LeCun et al. 1998 for the origin.
    """
    channels, height, width = checks.images("lenet", shape, at_least=16)
    rest = 50 * prod(((side - 4) // 2 - 4) // 2 for side in (height, width))
    first: dict[str, nn.Module] = {"relu1": relu()} if conv_relu else {}
    second: dict[str, nn.Module] = {"relu2": relu()} if conv_relu else {}
    return chain(
        normalize=normalize,
        conv1=nn.Conv2d(channels, 20, 5),
        **first,
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(20, 50, 5),
        **second,
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(rest, 500),
        relu3=relu(),
        fc2=nn.Linear(500, num_classes),
    )


@register("convnet")
def convnet(*, normalize: nn.Module, num_classes: int, shape: tuple[int, ...]) -> nn.Module:
    """Deep Defense's ConvNet for CIFAR: three 5x5 convolutions with pooling, a 4x4 and a 1x1 convolution.

    Modules `conv1`, `pool1`, `relu1`, `conv2`, `relu2`, `pool2`, `conv3`, `relu3`, `pool3`, `conv4`, `relu4`, `conv5`.
    Convolutions start from N(0, 2 / fan-in), as in the official code.

    Reference: Deep Defense, section 4; Hinton et al. 2012 for the origin.
    """
    channels = checks.images("convnet", shape, at_least=32, at_most=39)[0]
    return initialise(
        chain(
            normalize=normalize,
            conv1=nn.Conv2d(channels, 32, 5, padding=2),
            pool1=nn.MaxPool2d(2),
            relu1=relu(),
            conv2=nn.Conv2d(32, 32, 5, padding=2),
            relu2=relu(),
            pool2=nn.AvgPool2d(2),
            conv3=nn.Conv2d(32, 64, 5, padding=2),
            relu3=relu(),
            pool3=nn.AvgPool2d(2),
            conv4=nn.Conv2d(64, 64, 4),
            relu4=relu(),
            conv5=nn.Conv2d(64, num_classes, 1),
            flatten=nn.Flatten(),
        ),
        fan="fan_in",
    )


@register("nin")
def nin(*, normalize: nn.Module, num_classes: int, shape: tuple[int, ...], dropout: float = 0.5) -> nn.Module:
    """Network in network as Deep Defense has it: three stages of one wide and two 1x1 convolutions.

    Modules `conv1`, `relu1`, ..., `conv9` (without ReLU), `pool1`, `dropout1`, `pool2`, `dropout2`, `pool`.
    Convolutions start from N(0, 2 / fan-in), as in the official code. `dropout` follows the first two stages.

    Reference: Deep Defense, section 4; Lin et al., Network In Network, for the origin.
    """
    inputs = checks.images("nin", shape, at_least=4)[0]
    checks.fraction("dropout", dropout)
    stages = [((192, 5), (160, 1), (96, 1)), ((192, 5), (192, 1), (192, 1)), ((192, 3), (192, 1), (num_classes, 1))]
    between: list[dict[str, nn.Module]] = [
        {"pool1": nn.MaxPool2d(2), "dropout1": nn.Dropout(dropout)},
        {"pool2": nn.AvgPool2d(2), "dropout2": nn.Dropout(dropout)},
        {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()},
    ]
    layers: dict[str, nn.Module] = {"normalize": normalize}
    number = 0
    for stage, after in zip(stages, between, strict=True):
        for outputs, kernel in stage:
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
            if number < 9:
                layers[f"relu{number}"] = relu()
            inputs = outputs
        layers |= after
    return initialise(chain(**layers), fan="fan_in")


@register("digits_cnn")
def digits_cnn(*, normalize: nn.Module, num_classes: int, shape: tuple[int, ...], width: int = 16) -> nn.Module:
    """A small convolutional network with batch norm for the embedded 8 x 8 digits; trains in seconds.

    Stem `conv1`, `bn1`, `relu1`; `layer1` and `layer2` are convolution, batch norm and ReLU, `layer2` with stride 2;
    `width` is the number of channels of the stem.
    """
    channels, height, breadth = checks.images("digits_cnn", shape, at_least=4)
    checks.integer("width", width)

    def stage(inputs: int, outputs: int, stride: int) -> nn.Module:
        return chain(conv=conv(inputs, outputs, stride=stride), bn=nn.BatchNorm2d(outputs), relu=relu())

    return initialise(
        chain(
            normalize=normalize,
            conv1=conv(channels, width),
            bn1=nn.BatchNorm2d(width),
            relu1=relu(),
            layer1=stage(width, 2 * width, 1),
            layer2=stage(2 * width, 4 * width, 2),
            pool=nn.AvgPool2d(2),
            flatten=nn.Flatten(),
            linear=nn.Linear(4 * width * prod((side + 1) // 2 // 2 for side in (height, breadth)), num_classes),
        )
    )
