"""DenseNet, Inception-v2, AlexNet, residual networks for large images, dropout in VGG: sizes, shapes, passes by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.errors import ConfigError
from layerwise.models import build
from tests.models.zoo import Shape

LARGE: Shape = (3, 224, 224)
SMALL: Shape = (3, 32, 32)


def conv_norm(inputs: int, outputs: int, kernel: int) -> int:
    """A convolution without bias and its batch norm."""
    return inputs * outputs * kernel**2 + 2 * outputs


def inception_size(stem: int, classes: int) -> int:
    """The paper's figure 5, row by row: inputs; 1x1; reduced, 3x3; reduced, double 3x3; projection."""
    rows = [
        (192, 64, (64, 64), (64, 96), 32),
        (256, 64, (64, 96), (64, 96), 64),
        (320, 0, (128, 160), (64, 96), 0),
        (576, 224, (64, 96), (96, 128), 128),
        (576, 192, (96, 128), (96, 128), 128),
        (576, 160, (128, 160), (128, 160), 96),
        (576, 96, (128, 192), (160, 192), 96),
        (576, 0, (128, 192), (192, 256), 0),
        (1024, 352, (192, 320), (160, 224), 128),
        (1024, 352, (192, 320), (192, 224), 128),
    ]
    total = conv_norm(3, 64, stem) + conv_norm(64, 64, 1) + conv_norm(64, 192, 3)
    for inputs, one, (small, three), (narrow, double), pool in rows:
        total += sum(conv_norm(inputs, n, 1) for n in (one, small, narrow, pool))
        total += conv_norm(small, three, 3) + conv_norm(narrow, double, 3) + conv_norm(double, double, 3)
    return total + 1024 * classes + classes


@pytest.mark.parametrize(
    ("name", "shape", "classes", "published"),
    [
        ("resnet18_imagenet", LARGE, 1000, 11_689_512),
        ("resnet50_imagenet", LARGE, 1000, 25_557_032),
        ("alexnet", LARGE, 1000, 61_100_840),
        ("alexnet_groups", (3, 227, 227), 1000, 60_965_224),
        ("densenet40", SMALL, 10, 1_019_722),
        ("densenet100", SMALL, 10, 769_162),
        ("inception_v2_imagenet", LARGE, 1000, inception_size(7, 1000)),
        ("inception_v2", SMALL, 10, inception_size(3, 10)),
    ],
)
def test_number_of_parameters(name: str, shape: Shape, classes: int, published: int) -> None:
    """Those of the usual published weights; Inception-v2 has 11.2 million."""
    with torch.device("meta"):
        network = build(name, shape=shape, num_classes=classes)
        assert network(torch.zeros(2, *shape)).shape == (2, classes)
    assert sum(p.numel() for p in network.parameters()) == published
    if name == "inception_v2_imagenet":
        assert published == pytest.approx(11.2e6, rel=0.01)


@pytest.mark.parametrize(
    ("name", "shape", "shapes"),
    [
        ("resnet18_imagenet", LARGE, {"conv1": (64, 112, 112), "maxpool": (64, 56, 56), "layer4": (512, 7, 7)}),
        ("resnet50_imagenet", LARGE, {"maxpool": (64, 56, 56), "layer1": (256, 56, 56), "layer4": (2048, 7, 7)}),
        ("alexnet", LARGE, {"pool1": (64, 27, 27), "pool2": (192, 13, 13), "pool3": (256, 6, 6)}),
        ("alexnet_groups", (3, 227, 227), {"pool1": (96, 27, 27), "pool2": (256, 13, 13), "pool3": (256, 6, 6)}),
        ("densenet40", SMALL, {"dense1": (160, 32, 32), "transition1": (160, 16, 16), "dense3": (448, 8, 8)}),
        ("densenet100", SMALL, {"conv1": (24, 32, 32), "transition1": (108, 16, 16), "dense3": (342, 8, 8)}),
        (
            "inception_v2_imagenet",
            LARGE,
            {
                "conv1": (64, 112, 112),
                "conv3": (192, 56, 56),
                "inception3c": (576, 14, 14),
                "inception5b": (1024, 7, 7),
            },
        ),
        (
            "inception_v2",
            SMALL,
            {"inception3b": (320, 32, 32), "inception4e": (1024, 8, 8), "inception5b": (1024, 8, 8)},
        ),
    ],
)
def test_shapes_inside(name: str, shape: Shape, shapes: dict[str, Shape]) -> None:
    with torch.device("meta"):
        network = build(name, shape=shape)
        seen: dict[str, Shape] = {}
        for path in shapes:
            network.get_submodule(path).register_forward_hook(
                lambda _m, _i, out, path=path: seen.update({path: tuple(out.shape[1:])})
            )
        network(torch.zeros(2, *shape))
    assert seen == shapes


def normed(w: dict[str, Tensor], name: str, h: Tensor) -> Tensor:
    """Batch norm with statistics of the batch, ReLU."""
    mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), keepdim=True, correction=0)
    scaled = (h - mean) / (var + 1e-5).sqrt() * w[f"{name}.weight"].view(-1, 1, 1) + w[f"{name}.bias"].view(-1, 1, 1)
    return scaled.clamp(min=0)


def weights(module: nn.Module) -> dict[str, Tensor]:
    """The module's weights, those of its norms moved off one and zero."""
    for name, value in module.named_parameters():
        if "bn" in name:
            nn.init.uniform_(value, 0.5, 1.5)
    return dict(module.named_parameters())


def test_a_dense_block_hands_on_all_earlier_channels() -> None:
    torch.manual_seed(0)
    block = build("densenet100", growth=2, shape=(3, 8, 8)).double().get_submodule("dense1")
    w, h = weights(block), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    expected = h
    for i in range(16):
        new = F.conv2d(normed(w, f"{i}.branch.bn1", expected), w[f"{i}.branch.conv1.weight"])
        new = F.conv2d(normed(w, f"{i}.branch.bn2", new), w[f"{i}.branch.conv2.weight"], padding=1)
        expected = torch.cat([expected, new], dim=1)
    torch.testing.assert_close(block(h.clone()), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "stride"), [("inception4a", 1), ("inception4e", 2), ("inception5b", 1)])
def test_an_inception_block_puts_its_branches_side_by_side(name: str, stride: int) -> None:
    torch.manual_seed(0)
    block = build("inception_v2", width=4, shape=(3, 8, 8)).double().get_submodule(name)
    w = weights(block)
    first = next(v for k, v in w.items() if k.endswith("conv1.weight"))
    h = torch.rand(2, first.shape[1], 6, 6, dtype=torch.float64)

    def unit(path: str, number: int, x: Tensor, step: int = 1) -> Tensor:
        kernel = w[f"{path}.conv{number}.weight"]
        out = F.conv2d(x, kernel, stride=step, padding=kernel.shape[-1] // 2)
        return normed(w, f"{path}.bn{number}", out)

    three = unit("three", 2, unit("three", 1, h), stride)
    double = unit("double3", 3, unit("double3", 2, unit("double3", 1, h)), stride)
    if stride == 2:
        expected = [three, double, F.max_pool2d(h, 3, 2, 1)]
    else:
        ones = F.avg_pool2d(torch.ones_like(h), 3, 1, 1)
        pooled = F.max_pool2d(h, 3, 1, 1) if name == "inception5b" else F.avg_pool2d(h, 3, 1, 1) / ones
        expected = [unit("one", 1, h), three, double, unit("pool", 1, pooled)]
    torch.testing.assert_close(block(h), torch.cat(expected, dim=1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["densenet100", "inception_v2"])
def test_convolutions_start_from_he_normal(name: str) -> None:
    torch.manual_seed(0)
    network = build(name)
    drawn = torch.cat(
        [
            (m.weight * (m.out_channels * m.kernel_size[0] ** 2 / 2) ** 0.5).flatten()
            for m in network.modules()
            if isinstance(m, nn.Conv2d)
        ]
    )
    assert drawn.std().item() == pytest.approx(1, rel=0.01)


def test_dropout_stands_between_the_convolutions_of_a_stage() -> None:
    network = build("vgg16_bn", width=4, conv_dropout=0.4, dropout=0.5)
    names = list(dict(network.named_children()))
    assert [n for n in names if n.startswith("dropout")] == [
        *(f"dropout{i}" for i in (1, 3, 5, 6, 8, 9, 11, 12)),
        "dropout",
    ]
    assert names[names.index("dropout5") - 1] == "relu5"
    assert network.get_submodule("dropout5").p == 0.4
    assert list(build("vgg16_bn", width=4).state_dict()) == list(network.state_dict())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("densenet40", {"dropout": 1.0}, "dropout is 1.0; give a number from 0 to below 1"),
        ("densenet40", {"growth": 0}, "growth is 0; give a whole number of at least 1"),
        ("alexnet", {"shape": (3, 32, 32)}, "alexnet takes images of shape .* with sides of at least 63"),
        ("inception_v2_imagenet", {"shape": (3, 16, 16)}, "inception_v2 takes images .* at least 32"),
    ],
)
def test_what_does_not_fit_is_told(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, **options)  # type: ignore[arg-type]


def test_a_depth_that_does_not_fit_is_told() -> None:
    from layerwise.models.densenet import densenet

    with pytest.raises(ConfigError, match=r"with bottleneck=True takes a depth of 6n \+ 4, not 41"):
        densenet(normalize=nn.Identity(), num_classes=10, shape=(3, 8, 8), depth=41, bottleneck=True)
