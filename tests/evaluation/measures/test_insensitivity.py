"""Insensitivity of linear models by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from layerwise.core.criteria import Criterion
from layerwise.core.random import Source, Stream
from layerwise.errors import ConfigError, DataError
from layerwise.evaluation.measures import noise_insensitivity, representation_insensitivity
from tests.networks import SharedReLU, TinyMLP, batch

pytestmark = pytest.mark.usefixtures("float64")


class MinusLogit(Criterion):
    """-z_y: linear, so that differences are known."""

    def __call__(self, logits: Tensor, y: Tensor, /) -> Tensor:
        return -logits.gather(1, y[:, None]).squeeze(1)


W = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64)
X, Y = torch.tensor([[0.2, 0.4], [0.6, 0.1], [0.5, 0.5]], dtype=torch.float64), torch.tensor([0, 1, 0])


def model() -> nn.Linear:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = W.clone()
    return layer


def brighter(network: nn.Module, x: Tensor, y: Tensor, eps: float, source: Source) -> Tensor:
    return x + eps


def test_a_linear_loss_changes_by_the_sum_of_its_weights_for_each_unit_of_brightness() -> None:
    found = noise_insensitivity(model(), X, Y, eps=[0.1, 0.3], pollute=brighter, copies=2, criterion=MinusLogit())
    expected = (3.0 + 2.5 + 3.0) / 3
    assert found.values == pytest.approx((expected, expected))
    assert (found.radii, found.skipped, found.images, found.copies) == ((0.1, 0.3), (0, 0), 3, 2)


def test_pairs_that_are_equal_or_too_far_apart_are_left_out_and_counted() -> None:
    def some(network: nn.Module, x: Tensor, y: Tensor, eps: float, source: Source) -> Tensor:
        return x + torch.tensor([[0.0], [eps], [3 * eps]])

    found = noise_insensitivity(model(), X, Y, eps=[0.1], pollute=some, copies=2, criterion=MinusLogit())
    assert found.values == pytest.approx((2.5,))
    assert found.skipped == (4,)


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"all 6 polluted images .* eps=0\.1; give noise that keeps to eps"):
        noise_insensitivity(model(), X, Y, eps=[0.1], pollute=lambda m, x, y, e, s: x, copies=2)
    with pytest.raises(ConfigError, match="leave nothing to compare"):
        noise_insensitivity(model(), X, Y, eps=[])
    with pytest.raises(ConfigError, match="type eps=8/255"):
        noise_insensitivity(model(), X, Y, eps=[8])


def test_every_copy_has_its_own_random_numbers_and_the_network_is_passed_on() -> None:
    seen: list[tuple[nn.Module, Source]] = []

    def note(network: nn.Module, x: Tensor, y: Tensor, eps: float, source: Source) -> Tensor:
        seen.append((network, source))
        return x + eps

    net = model()
    noise_insensitivity(net, X, Y, eps=[0.1], pollute=note, copies=3, seed=7)
    assert [network is net for network, _ in seen] == [True] * 3
    assert [source for _, source in seen] == [Stream(7, step=k, start=0, total=3) for k in range(3)]


def test_a_network_without_bias_passes_a_relative_change_on() -> None:
    """f(1.25 x) = 1.25 f(x) at every site of a ReLU network without bias, so the relative change is 1/4 everywhere."""
    net = nn.Sequential(nn.Linear(2, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    found = representation_insensitivity(net, X, 1.25 * X, sites=["input", "0", "1", "2"])
    assert found.sites == ("input", "0", "1", "2")
    assert found.changes == pytest.approx((0.25,) * 4)
    assert found.mean == pytest.approx(0.25)
    assert (found.blank, found.images) == ((0,) * 4, 3)


def test_the_change_is_the_mean_of_the_images_own_by_hand() -> None:
    polluted = X + torch.tensor([0.1, -0.2])
    found = representation_insensitivity(model(), X, polluted, sites=["model"])
    change = torch.linalg.vector_norm(torch.tensor([0.1, -0.2]) @ W.T)
    assert found.changes == pytest.approx([float((change / torch.linalg.vector_norm(X @ W.T, dim=1)).mean())])


def test_images_whose_activation_is_zero_are_left_out_and_counted() -> None:
    x = torch.cat([X, torch.zeros(1, 2)])
    found = representation_insensitivity(model(), x, torch.cat([2 * X, torch.ones(1, 2)]), sites=["model"])
    assert found.changes == pytest.approx((1.0,))
    assert found.blank == (1,)


def test_each_call_of_a_shared_module_is_a_site_of_its_own() -> None:
    x, _ = batch(4)
    net = SharedReLU().double().eval()
    found = representation_insensitivity(net, x, x.flip(0), sites=["relu#0", "relu#1", "relu#2"])
    with torch.no_grad():
        first = net.relu(net.conv1(x))
        second = net.relu(net.conv2(first))
        third = net.relu(net.fc1(second.flatten(1)))
    for z, change in zip((first, second, third), found.changes, strict=True):
        flat = z.flatten(1)
        expected = torch.linalg.vector_norm(flat.flip(0) - flat, dim=1) / torch.linalg.vector_norm(flat, dim=1)
        assert change == pytest.approx(float(expected.mean()))


def test_each_image_needs_its_copy() -> None:
    x, _ = batch(4)
    with pytest.raises(DataError, match="give one copy of each"):
        representation_insensitivity(TinyMLP().double(), x, x[:2])
