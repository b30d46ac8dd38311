from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerwise.attacks import BIM, BPDA, EOT, DeepFoolAttack, FGSMAttack, PGDAttack, StepLL, ThreatModel, loss_gradient
from layerwise.attacks.base import Averaged
from layerwise.attacks.wrappers import identity_gradient
from layerwise.core.random import Stream
from layerwise.errors import ConfigError, SiteError
from layerwise.evaluation import evaluate
from tests.evaluation.problems import Quantise, Wrapped, gradient, trained
from tests.networks import batch

THREAT = ThreatModel("linf", 0.15)


def test_bpda_beats_the_plain_attack_through_a_quantiser() -> None:
    net = Wrapped(Quantise(), trained())
    record = evaluate(
        net, batch(60, seed=3), threat=THREAT, attacks=["clean", "bim-10", BPDA(BIM(10), "front")], progress=False
    )
    assert record["bim-10"].accuracy == record["clean"].accuracy > 0.9, "no gradient, no attack"
    assert record["bpda:front:bim-10"].accuracy < 0.1


def test_bpda_is_the_gradient_at_the_filtered_image() -> None:
    inner, (x, y) = trained(), batch(8)
    net = Wrapped(Quantise(), inner)
    kept = net(x)
    with identity_gradient(net, "front"):
        assert torch.equal(net(x), kept), "the values stay exact"
        found = gradient(net, x, y)
    assert torch.equal(found, gradient(inner, (16 * x).round() / 16, y))
    assert not gradient(net, x, y).any(), "the hook is gone"


class Brittle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken")


def test_bpda_removes_its_hook_after_an_error() -> None:
    net = Wrapped(Quantise(), Brittle())
    x, y = batch(2)
    with pytest.raises(RuntimeError, match="broken"):
        BPDA(FGSMAttack(), "front")(net, x, y, THREAT)
    assert not net.front._forward_hooks


def test_bpda_needs_a_module_that_keeps_the_shape() -> None:
    net, (x, y) = Wrapped(Quantise(), trained()), batch(2)
    with pytest.raises(SiteError, match=r"the network has no module 'fron'; did you mean 'front'\?"):
        BPDA(FGSMAttack(), "fron")(net, x, y, THREAT)
    with pytest.raises(SiteError, match=r"module 'network.fc1' has no identity gradient: \(2, 192\) -> \(2, 16\)"):
        BPDA(FGSMAttack(), "network.fc1")(net, x, y, THREAT)


class Cycle(nn.Module):
    """A filter that takes turns between four scales, as if it drew them."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = itertools.cycle([0.6, 0.8, 1.0, 1.2])

    def forward(self, x: Tensor) -> Tensor:
        return x * next(self.turn)


def test_eot_averages_the_gradients() -> None:
    inner, (x, y) = trained(), batch(8)
    net = Wrapped(Cycle(), inner)
    mean = sum(s * gradient(inner, s * x, y) for s in (0.6, 0.8, 1.0, 1.2)) / 4
    assert isinstance(mean, Tensor)
    torch.testing.assert_close(loss_gradient(Averaged(net, 4), x, y), mean, rtol=0, atol=1e-12)
    assert torch.equal(EOT(FGSMAttack(), 4)(net, x, y, THREAT), (x + 0.15 * mean.sign()).clamp(0, 1))
    one = FGSMAttack()(net, x, y, THREAT)
    assert not torch.equal(one, EOT(FGSMAttack(), 4)(net, x, y, THREAT)), "one pass sees one scale"


def test_eot_logits_are_means() -> None:
    inner, (x, y) = trained(), batch(8)
    net = Wrapped(Cycle(), inner)
    mean = torch.stack([inner(s * x) for s in (0.6, 0.8, 1.0, 1.2)]).mean(0)
    torch.testing.assert_close(Averaged(net, 4)(x), mean, rtol=0, atol=1e-12)
    least = mean.argmin(1)
    expected = sum(s * gradient(inner, s * x, least) for s in (0.6, 0.8, 1.0, 1.2))
    assert isinstance(expected, Tensor)
    assert torch.equal(EOT(StepLL(), 4)(net, x, y, THREAT), (x - 0.15 * expected.sign()).clamp(0, 1))


class Mask(nn.Module):
    """Shows half of the pixels, drawn anew: a single gradient knows nothing of the others."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x * (torch.rand_like(x) < 0.5)


def test_eot_is_stronger_on_a_network_with_randomness() -> None:
    net = Wrapped(Mask(), trained())
    options: dict[str, Any] = {"threat": ThreatModel("linf", 0.1), "attacks": [FGSMAttack()], "progress": False}
    data = batch(300, seed=3)
    torch.manual_seed(1)
    plain = evaluate(net, data, **options)
    averaged = evaluate(net, data, eot=16, **options)
    assert averaged.eot == 16
    assert [r.attack for r in averaged.results] == ["eot-16:fgsm"]
    assert averaged.results[0].accuracy < plain.results[0].accuracy - 0.03
    torch.manual_seed(2)
    again = evaluate(net, data, **options)
    assert again.accuracies == plain.accuracies, "the network's own noise is seeded"


def test_wrappers_compose() -> None:
    inner, (x, y) = trained(), batch(8)
    net = nn.Sequential(Cycle(), Quantise(), inner)
    attack = EOT(BPDA(BIM(3), "1"), 4)
    found = attack(net, x, y, THREAT, generator=Stream(0))
    other = BPDA(EOT(BIM(3), 4), "1")(net, x, y, THREAT, generator=Stream(0))
    assert torch.equal(found, other)
    assert not torch.equal(found, x)
    resolved = attack.resolved(THREAT)
    assert isinstance(resolved.attack, BPDA)
    assert resolved.attack.attack == BIM(3, alpha=0.15 / 3)


def test_eot_deepfool_runs_on_the_mean() -> None:
    net, (x, y) = Wrapped(Mask(), trained()), batch(8)
    found = EOT(DeepFoolAttack(3), 4)(net, x, y, ThreatModel("l2", 1.0))
    assert 0 < (found - x).flatten(1).norm(dim=1).max() <= 1 + 1e-6


def test_eot_of_eot_and_of_nothing() -> None:
    with pytest.raises(ConfigError, match="eot-4:pgd-20 averages already"):
        EOT(EOT(PGDAttack(), 4))
    with pytest.raises(ConfigError, match="count=0 is too small"):
        EOT(PGDAttack(), 0)
    with pytest.raises(ConfigError, match="eot=0 passes cannot be averaged"):
        evaluate(trained(), batch(2), eot=0, progress=False)
