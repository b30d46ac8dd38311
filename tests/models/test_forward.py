"""Blocks and networks against forward passes written out by hand, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.models import build

Weights = dict[str, Tensor]


def prepared(module: nn.Module) -> tuple[nn.Module, Weights]:
    """The module in float64 with random affine numbers and statistics in its norms, so that every order shows."""
    module = module.double()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for tensor, low in (
                (part.weight, 0.5),
                (part.bias, -0.5),
                (part.running_mean, -0.5),
                (part.running_var, 0.5),
            ):
                assert tensor is not None
                nn.init.uniform_(tensor, low, low + 1)
    return module, dict(module.state_dict())


def bn(w: Weights, prefix: str, x: Tensor, *, batch: bool = False) -> Tensor:
    """Batch norm written out: statistics of the batch, or the running ones."""
    mean = x.mean((0, 2, 3)) if batch else w[f"{prefix}.running_mean"]
    variance = ((x - mean.view(-1, 1, 1)) ** 2).mean((0, 2, 3)) if batch else w[f"{prefix}.running_var"]
    normal = (x - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + 1e-5).sqrt()
    return normal * w[f"{prefix}.weight"].view(-1, 1, 1) + w[f"{prefix}.bias"].view(-1, 1, 1)


def conv(w: Weights, name: str, x: Tensor, **how: int) -> Tensor:
    return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), **how)


def relu(x: Tensor) -> Tensor:
    return x * (x > 0)


def preact(w: Weights, p: str, x: Tensor, *, stride: int, projects: bool, batch: bool = False) -> Tensor:
    """He et al. 2016: norm and ReLU before each convolution, nothing after the sum."""
    a = relu(bn(w, f"{p}bn1", x, batch=batch))
    b = conv(w, f"{p}conv1", a, stride=stride, padding=1)
    b = conv(w, f"{p}conv2", relu(bn(w, f"{p}bn2", b, batch=batch)), padding=1)
    return b + (conv(w, f"{p}shortcut.0", a, stride=stride) if projects else x)


def basic(w: Weights, x: Tensor, *, stride: int, projects: bool) -> Tensor:
    """He et al. 2015: norm and ReLU after each convolution, the last ReLU after the sum."""
    b = relu(bn(w, "bn1", conv(w, "conv1", x, stride=stride, padding=1), batch=True))
    b = bn(w, "bn2", conv(w, "conv2", b, padding=1), batch=True)
    return relu(b + (bn(w, "shortcut.1", conv(w, "shortcut.0", x, stride=stride), batch=True) if projects else x))


def bottleneck(w: Weights, x: Tensor, *, stride: int, projects: bool) -> Tensor:
    b = relu(bn(w, "bn1", conv(w, "conv1", x), batch=True))
    b = relu(bn(w, "bn2", conv(w, "conv2", b, stride=stride, padding=1), batch=True))
    b = bn(w, "bn3", conv(w, "conv3", b), batch=True)
    return relu(b + (bn(w, "shortcut.1", conv(w, "shortcut.0", x, stride=stride), batch=True) if projects else x))


@pytest.mark.parametrize(("path", "stride", "projects"), [("layer1.1", 1, False), ("layer2.0", 2, True)])
@pytest.mark.parametrize("name", ["preact_resnet20", "resnet20", "resnet50"])
def test_block(name: str, path: str, stride: int, projects: bool) -> None:
    torch.manual_seed(0)
    block, w = prepared(build(name, width=4).get_submodule(path))
    first = block.conv1
    assert isinstance(first, nn.Conv2d)
    x = torch.randn(3, first.in_channels, 6, 6, dtype=torch.float64)
    how: dict[str, Any] = {"stride": stride, "projects": projects}
    if name == "preact_resnet20":
        expected = preact(w, "", x, batch=True, **how)
    else:
        expected = (basic if name == "resnet20" else bottleneck)(w, x, **how)
    kept = x.clone()
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("final_norm", [True, False])
def test_preact_resnet18(final_norm: bool) -> None:
    torch.manual_seed(0)
    network, w = prepared(build("preact_resnet18", width=2, mean=0.4, std=0.3, final_norm=final_norm).eval())
    x = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    h = conv(w, "conv1", (x - w["normalize.mean"]) / w["normalize.std"], padding=1)
    for group in (1, 2, 3, 4):
        changes = group > 1
        h = preact(w, f"layer{group}.0.", h, stride=2 if changes else 1, projects=changes)
        h = preact(w, f"layer{group}.1.", h, stride=1, projects=False)
    h = relu(bn(w, "bn", h)) if final_norm else h
    expected = h.mean((2, 3)) @ w["linear.weight"].T + w["linear.bias"]
    torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["lenet", "lenet_relu"])
def test_lenet(name: str) -> None:
    torch.manual_seed(0)
    network, w = prepared(build(name, shape=(1, 28, 28)))
    after = relu if name == "lenet_relu" else (lambda z: z)
    x = torch.rand(2, 1, 28, 28, dtype=torch.float64)
    h = F.max_pool2d(after(conv(w, "conv1", x)), 2)
    h = F.max_pool2d(after(conv(w, "conv2", h)), 2).reshape(2, 800)
    h = relu(h @ w["fc1.weight"].T + w["fc1.bias"])
    torch.testing.assert_close(network(x), h @ w["fc2.weight"].T + w["fc2.bias"], rtol=1e-12, atol=1e-12)


def test_convnet() -> None:
    torch.manual_seed(0)
    network, w = prepared(build("convnet"))
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    h = relu(F.max_pool2d(conv(w, "conv1", x, padding=2), 2))
    h = F.avg_pool2d(relu(conv(w, "conv2", h, padding=2)), 2)
    h = F.avg_pool2d(relu(conv(w, "conv3", h, padding=2)), 2)
    h = conv(w, "conv5", relu(conv(w, "conv4", h)))
    torch.testing.assert_close(network(x), h.reshape(2, 10), rtol=1e-10, atol=1e-10)


def test_nin() -> None:
    torch.manual_seed(0)
    network, w = prepared(build("nin").eval())
    h = x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    for number in range(1, 10):
        h = conv(w, f"conv{number}", h, padding={1: 2, 4: 2, 7: 1}.get(number, 0))
        h = relu(h) if number < 9 else h
        h = F.max_pool2d(h, 2) if number == 3 else F.avg_pool2d(h, 2) if number == 6 else h
    torch.testing.assert_close(network(x), h.mean((2, 3)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("activation", "function"), [("relu", relu), ("tanh", torch.tanh)])
def test_mlp(activation: str, function: Any) -> None:
    torch.manual_seed(0)
    network, w = prepared(build("mlp", shape=(1, 4, 4), hidden=[6, 5], activation=activation))
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    h = function(x.reshape(3, 16) @ w["fc1.weight"].T + w["fc1.bias"])
    h = function(h @ w["fc2.weight"].T + w["fc2.bias"])
    torch.testing.assert_close(network(x), h @ w["fc3.weight"].T + w["fc3.bias"], rtol=1e-12, atol=1e-12)


def test_vgg11_with_fewer_pools() -> None:
    torch.manual_seed(0)
    network, w = prepared(build("vgg11", shape=(1, 8, 8), width=2, pools=2))
    h = x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    for number in range(1, 9):
        h = relu(conv(w, f"conv{number}", h, padding=1))
        h = F.max_pool2d(h, 2) if number in (1, 2) else h
    assert h.shape[2:] == (2, 2)
    expected = h.mean((2, 3)) @ w["linear.weight"].T + w["linear.bias"]
    torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kind", "plain_at", "start"), [("in", 1.0, (0.75, 0.8)), ("lambda-in", 0.0, (0.2, 0.25))])
def test_damping(kind: str, plain_at: float, start: tuple[float, float]) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"width": 2, "shape": (3, 8, 8)}
    damped = build("preact_resnet56", damping=kind, **options).eval()
    plain = build("preact_resnet56", **options).eval()
    strengths = {n: p for n, p in damped.named_parameters() if n.endswith(".k")}
    assert len(strengths) == 24
    assert not any(".0." in name for name in strengths)
    assert all(start[0] <= k.item() <= start[1] for k in strengths.values())

    block, block_in = damped.get_submodule("layer1.1"), torch.randn(2, 2, 8, 8)
    k = strengths["layer1.1.damping.k"].item()
    f = plain.get_submodule("layer1.1")
    f.load_state_dict({n: v for n, v in block.state_dict().items() if n != "damping.k"})
    branch = f(block_in) - block_in
    expected = branch + k * block_in if kind == "in" else (1 + k) * branch + (1 - k) * block_in
    torch.testing.assert_close(block(block_in), expected)

    plain.load_state_dict({n: v for n, v in damped.state_dict().items() if n not in strengths})
    for strength in strengths.values():
        nn.init.constant_(strength, plain_at)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(damped(x), plain(x))
