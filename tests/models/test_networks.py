"""Every network: size, shape, gradients, one call a module, compile and export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.core import registry
from layerwise.models import build
from layerwise.models.normalize import Normalize
from tests.models.zoo import ONE_OF_EACH_FAMILY, SHALLOW, ZOO, Shape


def small(name: str, *, shallow: bool = False, **options: Any) -> tuple[nn.Module, Tensor]:
    """A small network of a kind, and a batch of four for it; both the same in every call."""
    shape, defaults = ZOO[name]
    torch.manual_seed(0)
    if shallow and name in SHALLOW:
        own = {**defaults, **options}
        return SHALLOW[name](normalize=Normalize(0.4, 0.3), num_classes=5, shape=shape, **own), torch.rand(4, *shape)
    statistics: dict[str, Any] = {"mean": 0.4, "std": 0.3} if len(shape) == 3 else {}
    network = build(name, num_classes=5, shape=shape, **statistics, **{**defaults, **options})
    return network, torch.rand(4, *shape)


def test_the_zoo_holds_every_network_of_the_package() -> None:
    known = registry.entries("model").items()
    ours = {name for name, entry in known if entry.thing.__module__.startswith("layerwise.models.")}
    assert ours == set(ZOO)


# Sizes by hand, from the papers' tables: c = convolution without bias, two numbers a channel for a batch norm.


def c(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * outputs * kernel**2


def basic_groups(counts: list[int], widths: list[int], inputs: int) -> int:
    """Two 3x3 convolutions with batch norms a block; 1x1 shortcut with batch norm where the shape changes."""
    total = 0
    for index, (count, width) in enumerate(zip(counts, widths, strict=True)):
        total += c(inputs, width, 3) + (2 * count - 1) * c(width, width, 3) + 4 * count * width
        total += (c(inputs, width, 1) + 2 * width) if index > 0 else 0
        inputs = width
    return total


def bottleneck_groups(counts: list[int], middles: list[int], inputs: int) -> int:
    """1x1, 3x3, 1x1 to four times the middle; every group begins with a shortcut convolution."""
    total = 0
    for count, middle in zip(counts, middles, strict=True):
        outer = 4 * middle
        rest = c(middle, middle, 3) + c(middle, outer, 1) + 2 * (middle + middle + outer)
        total += (
            c(inputs, middle, 1) + (count - 1) * c(outer, middle, 1) + count * rest + c(inputs, outer, 1) + 2 * outer
        )
        inputs = outer
    return total


def preact_groups(counts: list[int], widths: list[int], inputs: int) -> int:
    """The first batch norm of a block sees its input; a shortcut where the number of channels changes, without norm."""
    total = 0
    for count, width in zip(counts, widths, strict=True):
        total += c(inputs, width, 3) + (2 * count - 1) * c(width, width, 3)
        total += 2 * inputs + 2 * (2 * count - 1) * width
        total += c(inputs, width, 1) if inputs != width else 0
        inputs = width
    return total


def vgg_convolutions(counts: list[int], *, extra: int) -> int:
    """3x3 convolutions of the five stages, and `extra` further numbers for each channel."""
    total, inputs = 0, 3
    for count, width in zip(counts, [64, 128, 256, 512, 512], strict=True):
        total += c(inputs, width, 3) + (count - 1) * c(width, width, 3) + extra * count * width
        inputs = width
    return total


CIFAR: Shape = (3, 32, 32)
MNIST: Shape = (1, 28, 28)
LINEAR_512 = 512 * 10 + 10
STEM_16, STEM_64 = c(3, 16, 3), c(3, 64, 3)
FOUR = [64, 128, 256, 512]
NIN = [
    (3, 192, 5),
    (192, 160, 1),
    (160, 96, 1),
    (96, 192, 5),
    (192, 192, 1),
    (192, 192, 1),
    (192, 192, 3),
    (192, 192, 1),
]
NIN.append((192, 10, 1))

SIZES: list[tuple[str, Shape, int]] = [
    ("mlp", MNIST, 784 * 500 + 500 + 500 * 150 + 150 + 150 * 10 + 10),
    ("lenet", MNIST, 25 * 20 + 20 + 25 * 20 * 50 + 50 + 800 * 500 + 500 + 500 * 10 + 10),
    ("lenet_relu", MNIST, 25 * 20 + 20 + 25 * 20 * 50 + 50 + 800 * 500 + 500 + 500 * 10 + 10),
    ("convnet", CIFAR, c(3, 32, 5) + 32 + c(32, 32, 5) + 32 + c(32, 64, 5) + 64 + c(64, 64, 4) + 64 + 650),
    ("nin", CIFAR, sum(c(i, o, k) + o for i, o, k in NIN)),
    ("digits_cnn", (1, 8, 8), c(1, 16, 3) + 32 + c(16, 32, 3) + 64 + c(32, 64, 3) + 128 + 64 * 4 * 10 + 10),
    ("vgg16", CIFAR, vgg_convolutions([2, 2, 3, 3, 3], extra=1) + LINEAR_512),
    ("vgg19_bn", CIFAR, vgg_convolutions([2, 2, 4, 4, 4], extra=2) + LINEAR_512),
    ("vgg11_bn", CIFAR, vgg_convolutions([1, 1, 2, 2, 2], extra=2) + LINEAR_512),
    ("vgg13", CIFAR, vgg_convolutions([2, 2, 2, 2, 2], extra=1) + LINEAR_512),
    ("resnet18", CIFAR, STEM_64 + 128 + basic_groups([2, 2, 2, 2], FOUR, 64) + LINEAR_512),
    ("resnet50", CIFAR, STEM_64 + 128 + bottleneck_groups([3, 4, 6, 3], FOUR, 64) + 2048 * 10 + 10),
    ("resnet20", CIFAR, STEM_16 + 32 + basic_groups([3, 3, 3], [16, 32, 64], 16) + 650),
    ("resnet56", CIFAR, STEM_16 + 32 + basic_groups([9, 9, 9], [16, 32, 64], 16) + 650),
    ("preact_resnet18", CIFAR, STEM_64 + preact_groups([2, 2, 2, 2], FOUR, 64) + 1024 + LINEAR_512),
    ("preact_resnet20", CIFAR, STEM_16 + preact_groups([3, 3, 3], [16, 32, 64], 16) + 128 + 650),
    ("preact_resnet56", CIFAR, STEM_16 + preact_groups([9, 9, 9], [16, 32, 64], 16) + 128 + 650),
    ("wrn-28-10", CIFAR, STEM_16 + preact_groups([4, 4, 4], [160, 320, 640], 16) + 1280 + 6410),
    ("wrn-40-10", CIFAR, STEM_16 + preact_groups([6, 6, 6], [160, 320, 640], 16) + 1280 + 6410),
]

PUBLISHED = {
    # millions: He et al. 2015 (with option A, 0.3 to 1 % fewer), Zagoruyko and Komodakis 2016
    "resnet20": 0.27,
    "resnet56": 0.85,
    "wrn-28-10": 36.5,
    "wrn-40-10": 55.8,
    # the usual CIFAR forms, and Caffe's LeNet
    "resnet18": 11.17,
    "preact_resnet18": 11.17,
    "resnet50": 23.52,
    "lenet": 0.431,
    "nin": 0.967,
}


@pytest.mark.parametrize(("name", "shape", "formula"), SIZES, ids=[row[0] for row in SIZES])
def test_number_of_parameters(name: str, shape: Shape, formula: int) -> None:
    with torch.device("meta"):
        network = build(name, shape=shape)
    assert sum(p.numel() for p in network.parameters()) == formula
    assert formula / 1e6 == pytest.approx(PUBLISHED.get(name, formula / 1e6), rel=0.01)


@pytest.mark.parametrize("name", ZOO)
def test_logits_and_a_gradient_at_every_parameter(name: str) -> None:
    network, x = small(name)
    logits = network(x)
    assert logits.shape == (4, 5)
    loss = F.cross_entropy(logits, torch.tensor([0, 1, 2, 3]))
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    sizes = zip(network.named_parameters(), gradients, strict=True)
    assert [n for (n, _), g in sizes if not g.abs().sum() > 0] == []


@pytest.mark.parametrize("name", ZOO)
def test_every_module_is_called_exactly_once(name: str) -> None:
    network, x = small(name)
    calls: Counter[str] = Counter()
    for path, module in network.named_modules():
        module.register_forward_pre_hook(lambda *_, path=path: calls.update([path]))
    network(x)
    assert dict(calls) == {path: 1 for path, _ in network.named_modules(remove_duplicate=False)}


@pytest.mark.parametrize("name", ZOO)
def test_normalisation_comes_first(name: str) -> None:
    network, x = small(name)
    assert next(network.named_children())[0] == "normalize"
    plain = build(name, num_classes=5, shape=ZOO[name][0], **ZOO[name][1])
    assert isinstance(plain.normalize, nn.Identity)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("normalize.")})
    expected = plain.eval()((x - 0.4) / 0.3 if len(x.shape) == 4 else x)
    torch.testing.assert_close(network.eval()(x), expected)


BLOCKS = {
    "resnet20": 9,
    "resnet56": 27,
    "resnet18": 8,
    "resnet50": 16,
    "resnet18_imagenet": 8,
    "resnet50_imagenet": 16,
    "preact_resnet20": 9,
    "preact_resnet56": 27,
    "preact_resnet18": 8,
    "wide_resnet": 3,
}


@pytest.mark.parametrize("name", ZOO)
def test_number_of_residual_blocks(name: str) -> None:
    network, _ = small(name)
    blocks = [path for path, module in network.named_modules() if getattr(module, "is_residual_block", False)]
    assert len(blocks) == BLOCKS.get(name, 0)
    assert all(path.startswith("layer") and path.count(".") == 1 for path in blocks)


@pytest.mark.parametrize(
    ("name", "first", "shapes"),
    [
        ("wrn-10-2", 1, {"conv1": (16, 8, 8), "layer1": (32, 8, 8), "layer2": (64, 4, 4), "layer3": (128, 2, 2)}),
        ("resnet56", 0, {"conv1": (16, 8, 8), "layer1": (16, 8, 8), "layer2": (32, 4, 4), "layer3": (64, 2, 2)}),
        ("preact_resnet18", 0, {"conv1": (64, 8, 8), "layer1": (64, 8, 8), "layer4": (512, 1, 1)}),
        ("resnet50", 1, {"conv1": (64, 8, 8), "layer1": (256, 8, 8), "layer4": (2048, 1, 1)}),
    ],
)
def test_groups_and_shortcuts_of_residual_networks(name: str, first: int, shapes: dict[str, Shape]) -> None:
    with torch.device("meta"):
        network = build(name).eval()
        x = torch.zeros(2, 3, 8, 8)
    seen: dict[str, Shape] = {}
    for path in shapes:
        network.get_submodule(path).register_forward_hook(
            lambda _m, _i, out, path=path: seen.update({path: tuple(out.shape[1:])})
        )
    network(x)
    assert seen == shapes
    projected = {
        p.split(".shortcut")[0] for p, m in network.named_modules() if ".shortcut" in p and isinstance(m, nn.Conv2d)
    }
    groups = sum(p.startswith("layer") and "." not in p for p, _ in network.named_modules())
    assert projected == {f"layer{g}.0" for g in range(2 - first, groups + 1)}


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_export_with_any_batch_size(name: str) -> None:
    network, x = small(name, shallow=True)
    program = torch.export.export(network.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    other = torch.rand(7, *x.shape[1:])
    torch.testing.assert_close(program.module()(other), network(other))


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_compiles_into_one_graph(name: str) -> None:
    network, x = small(name, shallow=True, **({"dropout": 0.0} if "dropout" in ZOO[name][1] or name == "nin" else {}))
    expected = network(x)
    torch._dynamo.reset()
    compiled: Callable[[Tensor], Tensor] = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("name", ["digits_cnn", "vgg11_bn", "resnet20", "preact_resnet20"])
def test_channels_last_stays_so_and_changes_nothing(name: str) -> None:
    network, x = small(name)
    expected = network.eval()(x)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in the stubs
    formats = []
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(
                lambda _m, _i, out: formats.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    torch.testing.assert_close(network(x.contiguous(memory_format=torch.channels_last)), expected)
    assert formats
    assert all(formats)


@pytest.mark.parametrize(
    ("name", "path", "fan"),
    [
        ("resnet18", "layer3.0.conv1", 256 * 9),
        ("preact_resnet18", "layer3.0.shortcut.0", 256),
        ("nin", "conv4", 96 * 25),
    ],
)
def test_convolutions_start_from_he_normal(name: str, path: str, fan: int) -> None:
    torch.manual_seed(0)
    network = build(name)
    weight = network.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    assert weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.02)
    assert all((p == 0).all() for n, p in network.named_parameters() if n.endswith("bias"))


def test_dropout_acts_in_training_only() -> None:
    network, x = small("wide_resnet", dropout=0.5)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))
