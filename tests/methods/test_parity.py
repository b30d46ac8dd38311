"""Methods that must be another one, bit for bit: written by hand, or the simpler method that they contain."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.core.driving import Partial
from layerwise.core.random import Stream
from layerwise.methods import (
    ANP,
    FGSM,
    FGSMRS,
    LAD,
    LAT,
    NFGSM,
    PGD,
    SLAT,
    TRADES,
    DeepDefense,
    FGSInter,
    FGSOrig,
    GaussianNoise,
    Method,
    Standard,
)
from tests.networks import TinyConv, TinyMLP, TinyResNet, batch

EPS = 8 / 255
Weights = dict[str, Tensor]


def data(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    return [batch(6, seed=seed, dtype=dtype) for seed in range(3)]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, weight_decay=5e-4)


def train(method: Method, model: nn.Module, *, streams: bool = True) -> Weights:
    """The user's own four lines, with the run's stream or a plain generator."""
    optimizer, generator = sgd(model), torch.Generator().manual_seed(1)
    for step, (x, y) in enumerate(data(next(model.parameters()).dtype)):
        for loss in method.losses(model, x, y, generator=Stream(1, step) if streams else generator):
            assert not isinstance(loss, Partial)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    method.detach()
    return model.state_dict()


def fgsm_by_hand(model: nn.Module) -> Weights:
    """What everybody writes, but for the running statistics, which the first pass has to leave alone."""
    optimizer = sgd(model)
    for x, y in data(next(model.parameters()).dtype):
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        x.requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
        for name, b in model.named_buffers():
            b.copy_(buffers[name])
        x_adv = (x.detach() + EPS * g.sign()).clamp(0, 1)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(x_adv), y))
        optimizer.step()
    return model.state_dict()


def differing(a: Weights, b: Weights) -> list[str]:
    assert list(a) == list(b)
    return [name for name, value in a.items() if not torch.equal(value, b[name])]


NETWORKS: list[type[nn.Module]] = [TinyMLP, TinyConv, TinyResNet]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "method",
    [lambda: FGSM(eps=EPS), lambda: SLAT(sites=()), lambda: SLAT(sites=("input",)), lambda: SLAT(sites="input")],
    ids=["FGSM", "SLAT without sites", "SLAT at the input", "SLAT at the phrase input"],
)
def test_fgsm_is_the_loop_written_by_hand(
    method: Callable[[], Method], network: type[nn.Module], dtype: torch.dtype
) -> None:
    ours, by_hand = train(method(), network().to(dtype)), fgsm_by_hand(network().to(dtype))
    assert differing(ours, by_hand) == []
    assert differing(ours, train(Standard(), network().to(dtype))) != []


def pgd() -> PGD:
    return PGD(eps=EPS, step=0.5, steps=2)


def trades() -> TRADES:
    return TRADES(attack=pgd())


SIMPLER: list[tuple[Callable[[], Method], Callable[[], Method]]] = [
    (lambda: LAD(eta=0.0, base=Standard()), Standard),
    (lambda: LAD(eta=0.0, base=Standard(), splitting="strang-marchuk"), Standard),
    (lambda: LAD(eta=0.0, base=Standard(), num_inner_steps=3), Standard),
    (lambda: LAD(eta=0.0, base=pgd()), pgd),
    (lambda: LAD(eta=0.0, base=pgd(), splitting="strang-marchuk"), pgd),
    (lambda: LAD(eta=0.0, base=FGSMRS()), FGSMRS),
    (lambda: LAD(eta=0.0, base=trades(), gamma=1.0), trades),
    (lambda: LAD(eta=50.0, base=trades(), gamma=1.0, splitting="strang-marchuk"), trades),
    (lambda: SLAT(sites=(), base=FGSMRS()), FGSMRS),
    (lambda: SLAT(sites=(), base=NFGSM()), NFGSM),
    (lambda: SLAT(sites=("input",), base=pgd()), pgd),
    (lambda: ANP(k=1, layers=2), Standard),
    (lambda: ANP(k=1, layers=2, base=pgd()), pgd),
    (lambda: ANP(k=1, layers=2, base=trades()), trades),
    (lambda: ANP(k=1, layers=2, update="last-step"), Standard),
    (lambda: ANP(k=3, layers=2, eps=0.0, update="after-probes"), Standard),
    (lambda: LAT(eps=0.0), Standard),
    (lambda: LAT(eps=0.0, base=pgd()), pgd),
    (lambda: LAT(eps=0.0, base=trades()), trades),
    (lambda: FGSOrig(attack=FGSM(eps=EPS), alpha=0.0), lambda: FGSM(eps=EPS)),
    (lambda: GaussianNoise(std=0.0), Standard),
    (lambda: GaussianNoise(std=0.0, base=FGSM()), FGSM),
    (lambda: DeepDefense(weight=0.0, num_steps=1), Standard),
    (lambda: DeepDefense(weight=0.0, num_steps=1, base=FGSMRS()), FGSMRS),
    (lambda: PGD(eps=EPS, step=1.0, steps=1, random_start=False), lambda: FGSM(eps=EPS)),
    (lambda: TRADES(attack=PGD(steps=1), beta=0.0), Standard),
]


@pytest.mark.parametrize("streams", [True, False], ids=["stream", "generator"])
@pytest.mark.parametrize(("method", "simpler"), SIMPLER)
def test_a_method_without_its_own_part_is_the_simpler_one(
    method: Callable[[], Method], simpler: Callable[[], Method], streams: bool
) -> None:
    ours = train(method(), TinyResNet().double(), streams=streams)
    expected = train(simpler(), TinyResNet().double(), streams=streams)
    moved = differing(ours, expected)
    if isinstance(method(), FGSOrig | TRADES):
        # Their clean pass also moves the running statistics.
        moved = [name for name in moved if name in dict(TinyResNet().named_parameters())]
    assert moved == []


def test_the_joint_forms_with_the_clean_loss_alone_are_standard_training() -> None:
    """Up to rounding (alpha L + 0 L') and to the running statistics of the second pass."""
    for method in (FGSInter(alpha=1.0), FGSOrig(alpha=1.0), LAT(joint=True, alpha=1.0)):
        ours, expected = train(method, TinyResNet().double()), train(Standard(), TinyResNet().double())
        for name, _ in TinyResNet().named_parameters():
            torch.testing.assert_close(ours[name], expected[name], rtol=1e-10, atol=1e-12)
