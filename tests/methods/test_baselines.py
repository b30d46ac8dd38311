"""PAT, NAT, EAT, Adv. Train I and Parseval: against their references, and what only they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerwise.core.driving import Partial
from layerwise.core.random import Stream, for_the_batch, uniform
from layerwise.core.sites import Sites
from layerwise.errors import ConfigError
from layerwise.methods import (
    ANP,
    AWP,
    EAT,
    FGSM,
    LAD,
    NAT,
    PAT,
    PGD,
    SLAT,
    AdvTrainI,
    FGSOrig,
    Method,
    Parseval,
    Standard,
)
from layerwise.methods.fgsm import drawn_radii
from layerwise.methods.sources import with_networks
from tests.methods.cases import train as train_cases
from tests.methods.test_references import ATTACK, BATCHES, OURS, PROBES, SGD, UNIFORM
from tests.methods.test_references import train as follow
from tests.networks import TinyConv, TinyMLP, TinyResNet, batch
from tests.reference.common import Batches
from tests.reference.mixed import adv_train_1, eat, pat
from tests.reference.nets import Net
from tests.reference.parseval import parseval

LR = 0.3
SHARES = [(uniform(x[:, 0, 0, 0], Stream(0, step), key="radius") + 1) / 2 for step, (x, _) in enumerate(BATCHES)]
SOURCES = [TinyConv(seed=3), TinyResNet(seed=4), TinyMLP(seed=5)]
DRAWN = [int(4 * for_the_batch(1, Stream(0, step), key="source")) for step in range(len(BATCHES))]


def same(
    method: Method, reference: Callable[..., Net], network: Callable[[], nn.Module], batches: Batches = BATCHES
) -> None:
    """Equal weights and statistics after three steps."""
    model = network().double()
    start = Net.of(model)
    expected = reference(start, batches, lr=LR, **SGD)
    follow(method, model, batches, LR)
    assert start.distance(model) > LR / 300
    assert expected.distance(model) < 1e-10


NETWORKS = pytest.mark.parametrize("network", [TinyMLP, TinyConv, TinyResNet])
HALVES = pytest.mark.parametrize("halves", ["apart", "together"])


@NETWORKS
@HALVES
@pytest.mark.parametrize("bn", PROBES)
def test_pat_and_nat_are_their_references(network: Callable[[], nn.Module], halves: Any, bn: str) -> None:
    for random_start in (False, True):
        attack = PGD(**OURS, random_start=random_start, probe=PROBES[bn])
        method = PAT(attack=attack, halves=halves)
        draws: dict[str, Any] = {"uniform": UNIFORM} if random_start else {}
        same(method, partial(pat, halves=halves, probe_bn=bn, **ATTACK, **draws), network)
    targets: list[Any] = ["least-likely", "label"]
    for target in targets:
        single = NAT(attack=FGSM(eps=0.05, std=1.0, step=1.6, target=target, probe=PROBES[bn]), halves=halves)
        radii: dict[str, Any] = {"std": 0.05, "largest": 0.08, "gradient": target == "label"}
        same(single, partial(eat, shares=SHARES, halves=halves, probe_bn=bn, **radii), network)


@NETWORKS
def test_eat_is_its_reference(network: Callable[[], nn.Module]) -> None:
    assert len({number for number in DRAWN}) > 1
    fixed = [Net.of(source) for source in SOURCES]
    same(EAT(sources=SOURCES), partial(eat, shares=SHARES, sources=fixed, drawn=DRAWN), network)
    same(EAT(), partial(eat, shares=SHARES), network)


@pytest.mark.parametrize("alpha", [0.5, 0.2, 0.0])
def test_adv_train_1_is_its_reference(alpha: float) -> None:
    few = [(x[:3], y[:3]) for x, y in BATCHES]
    fixed = TinyMLP(seed=3)
    reference = partial(adv_train_1, fixed=Net.of(fixed), alpha=alpha, iterations=4)
    same(AdvTrainI(network=fixed, alpha=alpha, num_steps=4), reference, TinyConv, few)


@NETWORKS
@pytest.mark.parametrize(("beta", "share"), [(0.01, 0.3), (0.2, 1.0)])
def test_parseval_is_its_reference(network: Callable[[], nn.Module], beta: float, share: float) -> None:
    matrices = {name: len(w) for name, w in network().named_parameters() if w.ndim > 1}
    rows = [
        {
            name: for_the_batch(count, Stream(0, step), key=f"parseval/0/{name}")
            .argsort()[: max(1, round(share * count))]
            .tolist()
            for name, count in matrices.items()
        }
        for step in range(len(BATCHES))
    ]
    same(Parseval(beta=beta, share=share), partial(parseval, rows=rows, beta=beta), network)


def test_radii_are_a_truncated_normal() -> None:
    like = torch.zeros(40_000, 1, dtype=torch.float64)
    drawn = drawn_radii(like, Stream(0), std=0.1, largest=0.2)
    kept = (0.1 * torch.randn(200_000, generator=torch.Generator().manual_seed(0))).abs()
    kept = kept[kept <= 0.2]
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 0.2
    assert float(drawn.mean()) == pytest.approx(float(kept.mean()), rel=0.02)
    one_deviation, two = 0.6827, 0.9545
    assert float((drawn < 0.1).double().mean()) == pytest.approx(one_deviation / two, abs=0.01)
    assert float(drawn_radii(like.float(), Stream(0), std=0.01, largest=1.0).max()) < 0.06


def test_a_step_to_the_least_likely_class_makes_it_likelier() -> None:
    model, (x, y) = TinyMLP().double(), batch(32)
    least = model(x).argmin(1, keepdim=True)
    x_adv, _ = NAT().perturb(model, x, y, generator=Stream(0))
    before, after = (model(v).detach().log_softmax(1).gather(1, least).mean() for v in (x, x_adv))
    assert float(after) > float(before)


def weights(method: Method, network: Callable[[], nn.Module] = TinyConv) -> list[Tensor]:
    model = network().double()
    follow(method, model, BATCHES, LR)
    method.detach()
    return list(model.state_dict().values())


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(v, w) for v, w in zip(a, b, strict=True))


def test_special_cases_are_other_methods() -> None:
    eps = 0.05
    one_step = PAT(attack=PGD(eps=eps, steps=1, step=1.0, random_start=False))
    assert equal(weights(one_step), weights(FGSOrig(attack=FGSM(eps=eps))))
    assert equal(weights(Parseval(beta=0.0, base=FGSM())), weights(FGSM()))
    assert not equal(weights(Parseval(beta=0.1)), weights(Standard()))


def test_the_sources_stay_as_they_are() -> None:
    source = TinyResNet(seed=4).train()
    before = {k: v.clone() for k, v in source.state_dict().items()}
    method = EAT(sources=[source])
    weights(method)
    assert source.training
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in source.parameters())
    assert all(torch.equal(v, before[k]) for k, v in source.state_dict().items())
    assert method.state_dict() == {}
    (copy,) = method._networks.like(BATCHES[0][0])
    assert not any(m.training for m in copy.modules())
    assert not any(p.requires_grad for p in copy.parameters())
    assert next(copy.parameters()).dtype == torch.float64


def test_every_source_has_its_turn_and_all_micro_batches_see_the_same() -> None:
    drawn = [int(4 * for_the_batch(1, Stream(0, step), key="source")) for step in range(400)]
    assert all(60 < drawn.count(number) < 140 for number in range(4))
    model = TinyConv(batch_norm=False).double()
    other = TinyConv(batch_norm=False).double()
    whole = train_cases(EAT(sources=SOURCES), model, BATCHES)
    parts = train_cases(EAT(sources=SOURCES), other, [*BATCHES[:1]], parts=(4, 2))
    again = train_cases(EAT(sources=SOURCES), TinyConv(batch_norm=False).double(), BATCHES[:1])
    assert max(float((parts[k] - again[k]).abs().max()) for k in parts) < 1e-12
    assert not torch.equal(whole["fc.weight"], again["fc.weight"])


@pytest.mark.parametrize(
    "base", [EAT(sources=SOURCES), NAT(), PAT(attack=PGD(steps=2)), AdvTrainI(network=SOURCES[0], num_steps=2)]
)
def test_layerwise_methods_go_around_them(base: Any) -> None:
    """What they record at the sites of the trained network is its own gradient, whatever made the images."""
    model, (x, y) = TinyConv().double(), batch(4)
    with Sites(model, ["conv1"], example=x) as sites:
        for step in range(4):
            _, g = base.perturb(model, x, y, record=sites, generator=Stream(0, step))
            assert [float(v.abs().sum()) > 0 for v in g.values()] == [True]
    for method in (LAD(base=base, sites=("conv1",)), SLAT(base=base, sites=("conv1",))):
        assert not equal(weights(method), weights(base))


def test_parseval_follows_every_step_of_a_base_with_several() -> None:
    model, (x, y) = TinyConv().double(), batch(6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight, after = model.conv2.weight, list[Tensor]()
    for loss in Parseval(beta=0.1, share=1.0, base=ANP(k=3, layers=2)).losses(model, x, y, generator=Stream(0)):
        if after:
            w = after[-1].flatten(1)
            torch.testing.assert_close(weight.detach().flatten(1), 1.1 * w - 0.1 * w @ w.T @ w)
        assert not isinstance(loss, Partial)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        after.append(weight.detach().clone())
    assert len(after) == 3
    w = after[-1].flatten(1)
    torch.testing.assert_close(weight.detach().flatten(1), 1.1 * w - 0.1 * w @ w.T @ w)


def test_parseval_and_awp_go_around_each_other() -> None:
    """The rows move after the weights went back, whichever is outside."""
    inner = weights(AWP(base=Parseval(beta=0.1, base=FGSM())))
    assert equal(weights(Parseval(beta=0.1, base=AWP(base=FGSM()))), inner)
    assert not equal(weights(Parseval(beta=0.1, base=FGSM())), inner)


def test_parseval_moves_the_weights_once_however_a_batch_is_split() -> None:
    for base in (FGSM(), ANP(k=2, layers=2)):
        found = [
            train_cases(
                Parseval(beta=0.1, base=replace(base)), TinyConv(batch_norm=False).double(), BATCHES[:1], parts=p
            )
            for p in ((6,), (4, 2))
        ]
        assert max(float((found[0][k] - found[1][k]).abs().max()) for k in found[0]) < 1e-12


def test_parseval_makes_a_tight_frame() -> None:
    layer = nn.Linear(8, 6, bias=False).double()
    nn.init.orthogonal_(layer.weight, gain=0.5)
    for step in range(200):
        Parseval(beta=0.1, share=0.5)._tighten(layer, Stream(0, step), 0)
    torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(6).double(), atol=1e-3, rtol=0)


def test_names_become_networks() -> None:
    asked: list[str] = []

    def find(name: str) -> nn.Module:
        asked.append(name)
        return SOURCES[0]

    inner = EAT(sources=["a", SOURCES[1], "b"])
    found = with_networks(Parseval(base=LAD(base=inner)), find)
    assert asked == ["a", "b"]
    assert isinstance(found.base, LAD)
    assert isinstance(found.base.base, EAT)
    assert found.base.base.sources == [SOURCES[0], SOURCES[1], SOURCES[0]]
    assert inner.sources[0] == "a"
    assert with_networks(AdvTrainI(network="c"), find).network is SOURCES[0]
    assert with_networks(FGSM(), find) == FGSM()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PAT(attack=PGD(eps=8)), "in units of 0 to 255 pixels"),
        (lambda: PAT(halves="mixed"), "halves='mixed' is unknown; type one of 'apart', 'together'"),  # type: ignore[arg-type]
        (lambda: NAT(attack=FGSM(eps=16)), "in units of 0 to 255 pixels"),
        (lambda: FGSM(std=0.0), "std=0.0 is too small"),
        (lambda: FGSM(target="up"), "target='up' is unknown; type one of 'label', 'least-likely'"),  # type: ignore[arg-type]
        (lambda: EAT(alpha=-1.0), "alpha=-1.0 is not a share"),
        (lambda: AdvTrainI(alpha=2.0), "alpha=2.0 is not a share"),
        (lambda: AdvTrainI(num_steps=0), "num_steps=0 is too small"),
        (lambda: Parseval(beta=-1.0), "beta=-1.0 is too small"),
        (lambda: Parseval(share=1.5), "share=1.5 is not a share"),
        (lambda: weights(EAT(sources=["a-run"])), "EAT.sources holds 'a-run', which is no network"),
        (
            lambda: weights(AdvTrainI()),
            "AdvTrainI learns the DeepFool images of a reference network; set its field network",
        ),
        (lambda: weights(AdvTrainI(network=3)), "AdvTrainI.network holds 3, which is no network"),
    ],
)
def test_what_does_not_fit_is_told(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
