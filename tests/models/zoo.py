"""Every network of the package, small enough for a test: its input shape and options."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from layerwise.models.densenet import densenet
from layerwise.models.preact_resnet import cifar_preact_resnet
from layerwise.models.resnet import cifar_resnet, resnet

Shape = tuple[int, ...]

_IMAGE: Shape = (3, 8, 8)
_VGG: dict[str, Any] = {"width": 4, "pools": 3, "dropout": 0.1}

ZOO: dict[str, tuple[Shape, dict[str, Any]]] = {
    "mlp": ((1, 8, 8), {"hidden": (12, 7), "batch_norm": True}),
    "toy": ((2,), {"hidden": 8}),
    "lenet": ((1, 16, 16), {}),
    "lenet_relu": ((1, 16, 16), {}),
    "convnet": ((3, 32, 32), {}),
    "nin": (_IMAGE, {}),
    "digits_cnn": ((1, 8, 8), {"width": 4}),
    **{f"vgg{depth}{suffix}": (_IMAGE, _VGG) for depth in (11, 13, 16, 19) for suffix in ("", "_bn")},
    "resnet20": (_IMAGE, {"width": 4}),
    "resnet56": (_IMAGE, {"width": 2}),
    "resnet18": (_IMAGE, {"width": 4}),
    "resnet50": (_IMAGE, {"width": 4}),
    "resnet18_imagenet": ((3, 32, 32), {"width": 4}),
    "resnet50_imagenet": ((3, 32, 32), {"width": 4}),
    "densenet40": (_IMAGE, {"growth": 2, "dropout": 0.1}),
    "densenet100": (_IMAGE, {"growth": 2}),
    "inception_v2": (_IMAGE, {"width": 4}),
    "inception_v2_imagenet": ((3, 32, 32), {"width": 4}),
    "alexnet": ((3, 63, 63), {"width": 4, "hidden": 16, "dropout": 0.1}),
    "alexnet_groups": ((3, 67, 67), {"width": 6, "hidden": 16, "dropout": 0.1}),
    "preact_resnet20": (_IMAGE, {"width": 4, "damping": "lambda-in"}),
    "preact_resnet56": (_IMAGE, {"width": 2, "damping": "in"}),
    "preact_resnet18": (_IMAGE, {"width": 4, "dropout": 0.1}),
    "wide_resnet": (_IMAGE, {"depth": 10, "width": 1, "dropout": 0.1}),
}

SHALLOW: dict[str, Callable[..., nn.Module]] = {
    "resnet20": partial(cifar_resnet, depth=8),
    "resnet50": partial(resnet, blocks=(2, 2), bottleneck=True),
    "preact_resnet20": partial(cifar_preact_resnet, depth=8),
    "densenet40": partial(densenet, depth=10),
}
"""The deep ones with fewer of the same blocks."""

ONE_OF_EACH_FAMILY = ("mlp", "lenet", "nin", "vgg11_bn", *SHALLOW, "wide_resnet", "inception_v2", "alexnet_groups")
