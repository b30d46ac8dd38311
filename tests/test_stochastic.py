"""NoisyAverage against a loop by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from layerwise import NoisyAverage
from layerwise.errors import ConfigError
from layerwise.sites import Sites

PASSES = 5


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 4)).double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(net: nn.Sequential, x: Tensor, std: float, passes: int) -> Tensor:
    """Noise after the convolution and after the ReLU."""
    logits = []
    for _ in range(passes):
        first = torch.randn(2, 3, 4, 4, dtype=torch.float64)
        second = torch.randn(2, 3, 4, 4, dtype=torch.float64)
        logits.append(net[3](net[2](net[1](net[0](x) + std * first) + std * second)))
    return torch.stack(logits).mean(dim=0)


def test_it_is_the_mean_of_the_noisy_passes(net: nn.Sequential, x: Tensor) -> None:
    noisy = NoisyAverage(net, sites=["0", "1"], std=0.3, passes=PASSES)
    torch.manual_seed(7)
    with torch.no_grad():
        found = noisy(x)
    torch.manual_seed(7)
    expected = by_hand(net, x, 0.3, PASSES)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(found, net(x))


@pytest.mark.parametrize("attack_passes", [1, 3])
def test_an_attacked_input_goes_through_the_attack_passes(net: nn.Sequential, x: Tensor, attack_passes: int) -> None:
    noisy = NoisyAverage(net, sites=["0", "1"], std=0.3, passes=PASSES, attack_passes=attack_passes)
    x.requires_grad_()
    torch.manual_seed(7)
    (found,) = torch.autograd.grad(noisy(x).square().sum(), x)
    torch.manual_seed(7)
    (expected,) = torch.autograd.grad(by_hand(net, x, 0.3, attack_passes).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_without_noise_it_is_the_network(net: nn.Sequential, x: Tensor) -> None:
    # 4 equal terms: the mean is exact.
    assert torch.equal(NoisyAverage(net, sites=["0", "1"], std=0.0, passes=4)(x), net(x))


def test_removed_sites_leave_the_network_as_it_was(net: nn.Sequential, x: Tensor) -> None:
    before = net(x)
    noisy = NoisyAverage(net, sites=["0"], std=0.3, passes=2)
    noisy(x)
    noisy.sites.remove()
    assert torch.equal(net(x), before)
    assert list(noisy.state_dict()) == [f"model.{name}" for name in net.state_dict()]


@pytest.mark.parametrize("setting", [{"passes": 0}, {"attack_passes": 0}, {"std": -0.1}])
def test_settings_out_of_range_are_told(net: nn.Sequential, setting: dict[str, float]) -> None:
    (name,) = setting
    with pytest.raises(ConfigError, match=f"{name}=.* is too small"):
        NoisyAverage(net, sites=["0"], **setting)  # type: ignore[arg-type]


def test_the_default_sites_are_residual_block_outputs() -> None:
    from layerwise import models

    net = models.build("preact_resnet20", width=4, shape=(1, 8, 8)).eval()
    noisy = NoisyAverage(net, passes=1)
    noisy(torch.rand(2, 1, 8, 8))
    with Sites(net, "residual-block outputs", example=torch.rand(2, 1, 8, 8)) as expected:
        assert [str(s) for s in noisy.sites] == [str(s) for s in expected]
        assert len(expected) == 9
