"""Our attacks against foolbox's, on a network that learnt the digits; benchmarks/agreement.py does it on real data."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise import data
from layerwise.attacks import MIFGSM, DeepFoolAttack, FGSMAttack, PGDAttack, ThreatModel
from layerwise.attacks.external import package
from layerwise.core.deepfool import deepfool
from layerwise.core.random import Stream
from layerwise.evaluation.conditions import Batches

foolbox = package("foolbox")
ATTACKS: Any = foolbox.attacks
THREATS = [ThreatModel("linf", 0.12), ThreatModel("l2", 0.8)]


@functools.cache
def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """A convolutional network with FGSM training in it, and test images."""
    digits = data.load("digits")
    x, y = Batches(digits.train, 1000, 0, torch.device("cpu")).example(1000)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )
        optimiser = torch.optim.Adam(net.parameters(), 0.01)
        for step in range(40):
            rows = slice(100 * (step % 10), 100 * (step % 10) + 100)
            images = FGSMAttack()(net, x[rows], y[rows], ThreatModel("linf", 0.05))
            optimiser.zero_grad()
            F.cross_entropy(net(images), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return net.eval(), *Batches(digits.test, 250, 0, torch.device("cpu")).example(200)


def theirs(
    attack: Any, y: Tensor | None = None, eps: float | None = None, bounds: tuple[float, float] = (0, 1)
) -> Tensor:
    net, x, labels = problem()
    model = foolbox.PyTorchModel(net, bounds=bounds, device="cpu")
    found: Tensor = attack(model, x, foolbox.Misclassification(labels if y is None else y), epsilons=eps)[1]
    return found


def accuracy(x: Tensor) -> float:
    net, _, y = problem()
    with torch.no_grad():
        return float((net(x).argmax(1) == y).double().mean())


def name(threat: ThreatModel) -> str:
    return "Linf" if threat.norm == "linf" else "L2"


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_fgsm_and_pgd_from_the_same_start_are_the_same_images(threat: ThreatModel) -> None:
    net, x, y = problem()
    eps, alpha = threat.eps, threat.eps / 4
    fgsm = getattr(ATTACKS, f"{name(threat)}FastGradientAttack")()
    pgd = getattr(ATTACKS, f"{name(threat)}ProjectedGradientDescentAttack")(
        steps=20, abs_stepsize=alpha, random_start=False
    )
    for ours, other in (
        (FGSMAttack(), fgsm),
        (PGDAttack(20, alpha=alpha, random_start=False, stop_when_fooled=False), pgd),
    ):
        found, expected = ours(net, x, y, threat), theirs(other, eps=eps)
        assert 0.1 < accuracy(found) < accuracy(x) - 0.1, "the problem is neither trivial nor hopeless"
        assert accuracy(found) == pytest.approx(accuracy(expected), abs=0.002)
        same = ((found - expected).abs().flatten(1).amax(1) < 1e-4).double().mean()
        assert same > 0.97, "a sign may turn where the gradient is nearly zero, on few images"


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_pgd_is_at_least_as_strong_at_equal_steps(threat: ThreatModel) -> None:
    net, x, y = problem()
    attack = getattr(ATTACKS, f"{name(threat)}ProjectedGradientDescentAttack")(steps=20, abs_stepsize=threat.eps / 4)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        other = accuracy(theirs(attack, eps=threat.eps))
    found = PGDAttack(20)(net, x, y, threat, generator=Stream(0, total=len(x)))
    assert accuracy(found) <= other + 0.002


def test_deepfool_makes_steps_of_the_same_size() -> None:
    net, x, _ = problem()
    with torch.no_grad():
        prediction = net(x).argmax(1)
    # Bounds that clip nothing, as in the algorithm: with clipping at each step, its way on these black and white pictures is longer.
    attack = ATTACKS.L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02)
    found = theirs(attack, prediction, bounds=(-99, 99))
    ours = deepfool(net, x, num_steps=50, num_classes=10, overshoot=0.02)
    with torch.no_grad():
        both = ours.fooled & (net(found).argmax(1) != prediction)
    lengths = [r.flatten(1).norm(dim=1)[both].mean() for r in (ours.perturbation, found - x)]
    assert both.double().mean() > 0.95
    assert float(lengths[0] / lengths[1]) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_an_ensemble_of_ours_is_not_far_above_one_of_foolboxs(threat: ThreatModel) -> None:
    net, x, y = problem()
    ours, others = torch.ones(len(x), dtype=torch.bool), torch.ones(len(x), dtype=torch.bool)
    kind = name(threat)
    with torch.no_grad(), torch.random.fork_rng([]):
        torch.manual_seed(0)
        with torch.enable_grad():
            for attack in (PGDAttack(40, 2), MIFGSM(40), DeepFoolAttack()):
                found = attack(net, x, y, threat, generator=Stream(0, total=len(x)))
                ours &= net(found).argmax(1) == y
            for other in (
                getattr(ATTACKS, f"{kind}ProjectedGradientDescentAttack")(steps=40).repeat(2),
                getattr(ATTACKS, f"{kind}DeepFoolAttack")(),
            ):
                others &= net(theirs(other, eps=threat.eps)).argmax(1) == y
    assert float(ours.double().mean()) <= float(others.double().mean()) + 0.01
