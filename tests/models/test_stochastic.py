"""NoisyAverage and Rand against loops by hand, and the settings that make them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import NoisyAverage
from layerwise.core.sites import Sites
from layerwise.errors import ConfigError
from layerwise.models.stochastic import NoisyAveraging, Rand, RandomResizing

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


# Random size and place


class Seen(nn.Module):
    """Keeps what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        return x.flatten(1)[:, :3]


def placements(image: Tensor, largest: int) -> list[Tensor]:
    """Every size and place that an image can have among zeros."""
    found = []
    for size in range(image.shape[-1], largest + 1):
        grown = F.interpolate(image[None].double(), size=(size, size), mode="nearest")[0]
        room = largest - size
        found += [F.pad(grown, (j, room - j, i, room - i)) for i in range(room + 1) for j in range(room + 1)]
    return found


def test_images_have_a_random_size_and_place(x: Tensor) -> None:
    seen, many = Seen(), x[:1].expand(600, -1, -1, -1)
    Rand(seen, largest=8)(many)
    allowed = placements(x[0], 8)
    assert len(allowed) == 9 + 4 + 1
    index = [next(i for i, image in enumerate(allowed) if torch.equal(image, given)) for given in seen.x]
    assert set(index) == set(range(14))
    assert 150 < sum(i < 9 for i in index) < 250
    assert 150 < index.count(13) < 250


def test_images_that_are_not_square_keep_all_their_pixels() -> None:
    seen, x = Seen(), torch.rand(50, 2, 5, 9)
    Rand(seen, largest=11)(x)
    assert seen.x.shape == (50, 2, 7, 11)
    assert all(
        set(image.flatten().tolist()) <= {0.0, *given.flatten().tolist()}
        for image, given in zip(seen.x, x, strict=True)
    )
    assert all(
        set(given.flatten().tolist()) <= set(image.flatten().tolist()) for image, given in zip(seen.x, x, strict=True)
    )


def test_gradients_come_back_to_the_pixels_they_were_copied_from(x: Tensor) -> None:
    seen = Seen()
    x.requires_grad_()
    Rand(seen, largest=9)(x)
    (g,) = torch.autograd.grad(seen.x.sum(), x)
    copies = torch.stack([(seen.x[i].detach().unsqueeze(0) == v).sum() for i, v in enumerate(x[:, 0, 2, 3].detach())])
    assert torch.equal(g[:, 0, 2, 3], copies.double())


def test_without_room_it_is_the_network(net: nn.Sequential, x: Tensor) -> None:
    rand = Rand(net, largest=6)
    assert torch.equal(rand(x), net(x))
    with pytest.raises(ConfigError, match="largest=6 is smaller than images of \\(7, 7\\); type a larger one"):
        rand(torch.rand(1, 1, 7, 7))
    with pytest.raises(ConfigError, match="largest=0 is too small"):
        Rand(net, largest=0)


def test_settings_wrap_the_network_for_its_evaluation(net: nn.Sequential, x: Tensor) -> None:
    noisy = NoisyAveraging(sites=["0"], std=0.3, passes=2, attack_passes=3).wrap(net)
    assert isinstance(noisy, NoisyAverage)
    assert (noisy.model, noisy.std, noisy.passes, noisy.attack_passes) == (net, 0.3, 2, 3)
    resized = RandomResizing(largest=8).wrap(net)
    assert isinstance(resized, Rand)
    assert (resized.model, resized.largest) == (net, 8)


def test_an_evaluation_uses_the_inference_that_is_set() -> None:
    from layerwise import data
    from layerwise.evaluation import evaluate_run
    from layerwise.evaluation.settings import EvaluationSettings

    digits, seen = data.load("digits"), list[tuple[int, ...]]()
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 10)).eval()
    network.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[1:])))
    settings = EvaluationSettings(attacks=["clean"], num_examples=4, inference=RandomResizing(largest=12))
    evaluate_run(network, digits, settings, progress=False)
    assert set(seen) == {(1, 12, 12)}
