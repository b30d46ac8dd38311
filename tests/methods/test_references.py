"""Each method against its algorithm written out naively in `tests.reference`: equal weights after three steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerwise.core.driving import Partial
from layerwise.core.probe import Probe
from layerwise.core.random import Stream, normal, uniform
from layerwise.methods import (
    ANP,
    AWP,
    FGSM,
    FGSMCKPT,
    FGSMRS,
    LAD,
    LAT,
    MART,
    NFGSM,
    PGD,
    SLAT,
    TRADES,
    YOPO,
    DeepDefense,
    FGSInter,
    FGSOrig,
    FreeAT,
    GradAlign,
    Method,
    Standard,
)
from tests.networks import TinyConv, TinyMLP, TinyResNet, batch
from tests.reference.anp import anp, schedule
from tests.reference.awp import Loss, awp
from tests.reference.ckpt import ckpt
from tests.reference.common import Batches, each_loss, gradients, mean_loss
from tests.reference.deep_defense import deep_defense
from tests.reference.fgsm import fgsm, fgsm_rs, n_fgsm
from tests.reference.fixtures import LEARNING
from tests.reference.free import free
from tests.reference.grad_align import grad_align
from tests.reference.lad import lad, layer_noise
from tests.reference.lat import fgs_inter, fgs_orig, lat
from tests.reference.mart import mart
from tests.reference.nets import Net
from tests.reference.pgd import pgd, pgd_attack
from tests.reference.slat import slat
from tests.reference.standard import standard
from tests.reference.trades import kl, trades, trades_attack
from tests.reference.yopo import yopo

EPS = 8 / 255
SGD: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.01}
BATCHES: Batches = tuple(batch(n, seed=n) for n in (6, 4, 7))
UNIFORM = [uniform(x, Stream(0, step), key="start") for step, (x, _) in enumerate(BATCHES)]
NEAR = [uniform(x, Stream(0, step), key="near") for step, (x, _) in enumerate(BATCHES)]
NORMAL = [normal(x, Stream(0, step), key="start") for step, (x, _) in enumerate(BATCHES)]
ATTACK: dict[str, Any] = {"eps": EPS, "alpha": EPS / 3, "steps": 3}
OURS: dict[str, Any] = {"eps": EPS, "step": 1 / 3, "steps": 3}
"""The same attack in our fields."""
PROBES = {"frozen": Probe(), "train": Probe(batch_norm="train"), "eval": Probe(batch_norm="eval")}


def resnet_without_norm() -> nn.Module:
    return TinyResNet(batch_norm=False)


@dataclass
class Case:
    """A method with its settings, and the reference with the same."""

    method: Method
    reference: Callable[..., Any]
    networks: tuple[Callable[[], nn.Module], ...] = (TinyConv,)
    batches: Batches = BATCHES
    training: bool = True
    lr: float = 0.3

    def __str__(self) -> str:
        """The settings that are not the defaults."""
        plain = type(self.method)()
        changed = {k: v for k, v in vars(self.method).items() if k in vars(plain) and v != getattr(plain, k)}
        return type(self.method).__name__ + " " + ", ".join(f"{k}={v}" for k, v in changed.items())

    def agree(self) -> None:
        """The weights are those of the algorithm written out, on every network."""
        for network in self.networks:
            model = network().double().train(self.training)
            start = Net.of(model)
            expected = self.reference(start, self.batches, lr=self.lr, **SGD)
            train(replace(self.method), model, self.batches, self.lr)  # type: ignore[type-var]
            assert start.distance(model) > self.lr / 300
            assert (expected[0] if isinstance(expected, tuple) else expected).distance(model) < 1e-10


def train(method: Method, model: nn.Module, batches: Batches, lr: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, **SGD)
    for step, (x, y) in enumerate(batches):
        for loss in method.losses(model, x, y, generator=Stream(0, step)):
            torch.autograd.backward(loss.loss if isinstance(loss, Partial) else loss)
            if not isinstance(loss, Partial):
                optimizer.step()
                optimizer.zero_grad()


def single_steps() -> Iterator[Case]:
    everywhere = (TinyMLP, TinyConv, TinyResNet)
    yield Case(Standard(), standard, everywhere)
    for bn, probe in PROBES.items():
        yield Case(FGSM(eps=EPS, step=0.9, probe=probe), partial(fgsm, eps=EPS, step=0.9, probe_bn=bn), everywhere)
        yield Case(FGSMRS(eps=EPS, probe=probe), partial(fgsm_rs, uniform=UNIFORM, eps=EPS, probe_bn=bn), everywhere)
        yield Case(NFGSM(eps=EPS, probe=probe), partial(n_fgsm, uniform=UNIFORM, eps=EPS, probe_bn=bn), everywhere)
        yield Case(PGD(**OURS, probe=probe), partial(pgd, uniform=UNIFORM, probe_bn=bn, **ATTACK), everywhere)
        yield Case(
            TRADES(attack=PGD(**OURS, probe=probe)), partial(trades, normal=NORMAL, attack_bn=bn, **ATTACK), everywhere
        )
    yield Case(FGSMRS(eps=EPS, step=0.5), partial(fgsm_rs, uniform=UNIFORM, eps=EPS, alpha=0.5))
    yield Case(NFGSM(eps=EPS, noise=1.0, step=0.5), partial(n_fgsm, uniform=UNIFORM, eps=EPS, noise=1.0, step=0.5))
    yield Case(TRADES(attack=PGD(**OURS), beta=1.5), partial(trades, normal=NORMAL, beta=1.5, **ATTACK))


def slats() -> Iterator[Case]:
    sites = ["conv1", "bn2"]
    for clamp, probes, (bn, probe) in product((False, True), (1, 3), PROBES.items()):
        options: dict[str, Any] = {"clamp_to_activation_range": clamp, "num_probes": probes}
        reference = partial(slat, sites=sites, eta=EPS, probe_bn=bn, **options)
        yield Case(SLAT(sites=sites, eta=EPS, probe=probe, **options), reference)
        if bn == "frozen":
            started = partial(reference, uniform=UNIFORM)
            yield Case(SLAT(sites=sites, base=FGSMRS(eps=EPS), **options), partial(started, base="fgsm-rs"))
            yield Case(SLAT(sites=sites, base=NFGSM(eps=EPS), **options), partial(started, base="n-fgsm"))
    etas = {"input": EPS, "conv1": 0.1, "blocks.block3": 0.02}
    hidden, both = list(etas)[1:], (TinyResNet, resnet_without_norm)
    yield Case(
        SLAT(sites=hidden, eta=etas, input_step=0.9), partial(slat, sites=hidden, eta=etas, input_step=0.9), both
    )
    stepped: dict[str, Any] = {"input_step": 0.9, "num_probes": 2}
    yield Case(SLAT(sites=hidden, eta=etas, **stepped), partial(slat, sites=hidden, eta=etas, **stepped), both)


def gaussians(k: int, update: str, descend_at: str, std: float) -> Iterator[dict[str, Tensor]]:
    shapes = {"input": (3, 8, 8), "conv1": (6, 8, 8), "conv2": (8, 8, 8)}
    for step, (x, _) in enumerate(BATCHES):
        for t in range(len(schedule(k, update, descend_at))):
            zeros = {site: x.new_zeros(len(x), *shape) for site, shape in shapes.items()}
            yield {site: std * normal(z, Stream(0, step), key=f"{site}/{t}") for site, z in zeros.items()}


def anps() -> Iterator[Case]:
    networks = (TinyConv, TinyMLP, TinyResNet)
    updates = [
        ("every-step", "printed"),
        ("every-step", "shifted"),
        ("last-step", "printed"),
        ("after-probes", "printed"),
    ]
    for (update, descend_at), norm, apply in product(updates, ("l2", "l2-batch", "sign"), ("raw", "sign")):
        options: dict[str, Any] = {"k": 3, "eta": 0.4, "eps": 6.0, "norm": norm, "apply": apply, "update": update}
        options["descend_at"] = descend_at
        printed = norm == "l2" and apply == "raw"
        yield Case(ANP(layers=3, **options), partial(anp, m=3, **options), networks if printed else networks[:1])
    for update, descend_at in updates:
        plan: dict[str, Any] = {"k": 2, "eta": 0.0, "eps": 3.0, "include_input": True, "update": update}
        plan["descend_at"] = descend_at
        noisy = partial(anp, m=2, **plan)
        yield Case(ANP(layers=2, **plan), noisy)

        def with_noise(
            *args: Any, of: Callable[..., Any] = noisy, u: str = update, d: str = descend_at, **sgd: Any
        ) -> Any:
            return of(*args, gaussian=gaussians(2, u, d, 0.2), **sgd)

        yield Case(ANP(layers=2, noise_std=0.2, **plan), with_noise)
        for bn in ("train", "eval"):
            yield Case(ANP(layers=2, probe=PROBES[bn], **plan), partial(noisy, probe_bn=bn))


def lads() -> Iterator[Case]:
    networks = (TinyResNet, resnet_without_norm)
    schemes: list[dict[str, Any]] = [
        {"splitting": "lie-trotter"},
        {"splitting": "strang-marchuk"},
        {"num_inner_steps": 3},
    ]
    for scheme in schemes:
        options: dict[str, Any] = {"eta": 60.0, **scheme}
        reference = partial(lad, **options, **ATTACK)
        for bn, probe in PROBES.items():
            natural = partial(reference, base="natural", probe_bn=bn)
            yield Case(LAD(base=Standard(), probe=probe, **options), natural, networks)
        yield Case(LAD(base=PGD(**OURS), **options), partial(reference, base="pgd", draws=UNIFORM), networks)
        for gamma in (0.5, 0.2, 0.0):
            on_trades = partial(reference, base="trades", draws=NORMAL, gamma=gamma)
            yield Case(LAD(base=TRADES(attack=PGD(**OURS)), gamma=gamma, **options), on_trades, networks[:1])
    yield Case(
        LAD(eta=20.0, base=TRADES(beta=2.0, attack=PGD(**OURS))),
        partial(lad, eta=20.0, base="trades", draws=NORMAL, lambda_=0.5, **ATTACK),
        networks[:1],
    )
    halved = LAD(eta=30.0, reference_batch=64, base=Standard())
    yield Case(halved, partial(lad, eta=60.0, base="natural"), networks)


def lats() -> Iterator[Case]:
    sites, convs = ["bn1", "bn2"], ["conv1", "conv2"]

    def without_norm() -> nn.Module:
        return TinyConv(batch_norm=False)

    for alpha, scale in product(
        (0.0, 0.5, 0.3), ({"eps": 40.0}, {"eps": 0.1, "relative": False}, {"eps": 2.0, "reference_batch": 7})
    ):
        joint: dict[str, Any] = {"joint": True, "alpha": alpha} if alpha else {}
        options: dict[str, Any] = scale
        yield Case(LAT(**options, **joint), partial(lat, sites=sites, alpha=alpha, **options))
        yield Case(LAT(**options, **joint), partial(lat, sites=convs, alpha=alpha, **options), (without_norm,))
        fc = partial(lat, sites=["fc1"], alpha=alpha, **options)
        yield Case(LAT(sites=["fc1"], **options, **joint), fc, (TinyMLP,))
        for bn, probe in PROBES.items():
            same = partial(fgs_inter, sites=sites, alpha=alpha, probe_bn=bn, **options)
            yield Case(FGSInter(alpha=alpha, probe=probe, **options), same)
    for alpha, (bn, probe) in product((0.5, 0.2), PROBES.items()):
        yield Case(
            FGSOrig(attack=FGSM(eps=EPS, probe=probe), alpha=alpha),
            partial(fgs_orig, eps=EPS, alpha=alpha, probe_bn=bn),
        )


def blank() -> Batches:
    """Some images without a relative size; and few rows, since the reference goes through them one by one."""
    batches = [(x[:4].clone(), y[:4]) for x, y in BATCHES]
    batches[1][0][2] = 0
    return batches


@cache
def learnt(network: Callable[[], nn.Module]) -> nn.Module:
    model = network().double()
    standard(Net.of(model), LEARNING, lr=0.2).copy_to(model)
    return model


def trained(network: Callable[[], nn.Module]) -> nn.Module:
    """Fine-tuning starts at a network that knows its classes."""
    return copy.deepcopy(learnt(network))


def deep_defenses() -> Iterator[Case]:
    smaller: dict[str, Any] = {"lambda_": 2.0, "c": 4.0, "d": 3.0}
    ours: dict[str, Any] = {"weight": 2.0, "c": 4.0, "d": 3.0}

    def case(
        *networks: Callable[[], nn.Module], method: dict[str, Any], reference: dict[str, Any], lr: float = 0.01
    ) -> Case:
        def weights(net: Net, batches: Batches, **sgd: Any) -> Net:
            return deep_defense(net, batches, **{**smaller, **reference}, **sgd)[0]

        started = tuple(partial(trained, network) for network in networks)
        return Case(DeepDefense(**{**ours, **method}), weights, started, blank(), training=False, lr=lr)

    for regulariser, alike in product(("exp", "linear"), (False, True)):
        method = {"regulariser": regulariser, "treat_wrong": "alike" if alike else "separately"}
        reference = {"regulariser": regulariser, "single_formula": alike}
        yield case(TinyMLP, TinyConv, method=method, reference=reference)
    for p in (1.5, 3.0, math.inf):
        yield case(TinyMLP, method={"p": p}, reference={"p": p})
    yield case(TinyMLP, method={"num_classes": 2}, reference={"num_classes": 2})
    yield case(TinyMLP, method={"num_steps": 2, "overshoot": 0.5}, reference={"iterations": 2, "overshoot": 0.5})
    yield case(TinyMLP, method={"layer": "fc2"}, reference={"layer": "fc2"})
    yield case(TinyConv, method={"layer": "conv2"}, reference={"layer": "conv2"})
    defaults = {"weight": 15.0, "c": 25.0, "d": 5.0}
    yield case(TinyMLP, method=defaults, reference={"lambda_": 15.0, "c": 25.0, "d": 5.0}, lr=1e-4)


def accelerated() -> Iterator[Case]:
    """What came after FGSM to make adversarial training cheap or safe."""
    everywhere = (TinyMLP, TinyConv, TinyResNet)
    learnt = tuple(partial(trained, network) for network in everywhere)
    steps: dict[str, Any] = {"eps": EPS, "alpha": EPS / 3, "m": 3, "n": 2}
    yopos: dict[str, Any] = {"eps": EPS, "step": 1 / 3, "m": 3, "n": 2}
    for bn, probe in PROBES.items():
        aligned = partial(grad_align, uniform=NEAR, eps=EPS, probe_bn=bn)
        yield Case(GradAlign(eps=EPS, probe=probe), aligned, everywhere)
        checked = partial(ckpt, uniform=UNIFORM, eps=0.2, probe_bn=bn)
        yield Case(FGSMCKPT(attack=FGSMRS(eps=0.2, probe=probe)), checked, learnt, lr=0.05)
        # The steps reach no norm but that at their end; the reference makes a whole pass, which would move the others.
        steps_bn = "frozen" if bn == "train" else bn
        for twice in (False, True):
            ours: dict[str, Any] = {**yopos, "adjoint_update": twice, "probe": probe}
            theirs = partial(yopo, uniform=UNIFORM, adjoint_update=twice, probe_bn=steps_bn, **steps)
            yield Case(YOPO(**ours), partial(theirs, site="conv1"), everywhere[1:])
            yield Case(YOPO(**ours, site="fc1"), partial(theirs, site="fc1"), everywhere[:1])
        if bn != "train":
            for site, network in (("fc2", TinyMLP), ("bn1", TinyConv), ("blocks.block1", TinyResNet)):
                deep = partial(yopo, uniform=UNIFORM, site=site, probe_bn=bn, **steps)
                yield Case(YOPO(**yopos, site=site, probe=probe), deep, (network,))
        mild = partial(mart, uniform=UNIFORM, probe_bn=bn, **ATTACK)
        yield Case(MART(attack=PGD(**OURS, probe=probe)), mild, everywhere)
    yield Case(
        GradAlign(eps=EPS, step=0.5, weight=2.0), partial(grad_align, uniform=NEAR, eps=EPS, step=0.5, weight=2.0)
    )
    on_rs = partial(grad_align, uniform=NEAR, starts=UNIFORM, eps=EPS)
    yield Case(GradAlign(eps=EPS, base=FGSMRS(eps=EPS)), on_rs, everywhere)
    for c in (1, 2, 5):
        yield Case(
            FGSMCKPT(attack=FGSMRS(eps=0.2), c=c), partial(ckpt, uniform=UNIFORM, eps=0.2, c=c), learnt[:1], lr=0.05
        )
    yield Case(FreeAT(eps=EPS, m=1), partial(free, eps=EPS, m=1), everywhere)
    yield Case(FreeAT(eps=EPS, m=4, step=0.5), partial(free, eps=EPS, m=4, step=0.5), everywhere, lr=0.05)
    yield Case(MART(attack=PGD(**OURS), beta=2.0), partial(mart, uniform=UNIFORM, beta=2.0, **ATTACK))


def weight_perturbations() -> Iterator[Case]:
    """AWP over each kind of base, attacked once at w."""
    sites = ["conv1", "bn2"]

    def on_pgd(net: Net, x: Tensor, y: Tensor, step: int) -> Loss:
        x_adv = pgd_attack(net, x, y, x + EPS * UNIFORM[step], **ATTACK)
        return lambda bn: mean_loss(net, x_adv, y, bn=bn)

    def on_trades(net: Net, x: Tensor, y: Tensor, step: int) -> Loss:
        x_adv = trades_attack(net, x, x + 0.001 * NORMAL[step], **ATTACK)

        def loss(bn: str) -> Tensor:
            clean, adversarial = net.logits(x, bn=bn), net.logits(x_adv, bn=bn)
            return each_loss(clean, y).mean() + 6 * kl(clean, adversarial).mean()

        return loss

    def on_slat(net: Net, x: Tensor, y: Tensor, step: int) -> Loss:
        g = gradients(net, x, y, ["input", *sites])
        noise = {site: EPS * g[site].sign() for site in sites}
        x_adv = (x + EPS * g["input"].sign()).clamp(0, 1)
        return lambda bn: mean_loss(net, x_adv, y, noise, bn=bn)

    def on_lad(net: Net, x: Tensor, y: Tensor, step: int) -> Loss:
        x_adv = pgd_attack(net, x, y, x + EPS * UNIFORM[step], **ATTACK)
        noise = layer_noise(net, x_adv, y, eta=60.0, splitting="lie-trotter", num_inner_steps=1, bn="frozen")
        return lambda bn: mean_loss(net, x_adv, y, noise, bn=bn)

    pgd_ = PGD(**OURS)
    trades_ = TRADES(attack=pgd_)
    yield Case(AWP(base=pgd_, gamma=0.05), partial(awp, find=on_pgd, gamma=0.05), (TinyMLP, TinyConv, TinyResNet))
    yield Case(AWP(base=trades_), partial(awp, find=on_trades, gamma=0.01), (TinyMLP, TinyConv))
    yield Case(AWP(base=SLAT(sites=sites, eta=EPS), gamma=0.05), partial(awp, find=on_slat, gamma=0.05))
    yield Case(AWP(base=LAD(eta=60.0, base=pgd_), gamma=0.05), partial(awp, find=on_lad, gamma=0.05), (TinyResNet,))


CASES = [
    *single_steps(),
    *slats(),
    *anps(),
    *lads(),
    *lats(),
    *deep_defenses(),
    *accelerated(),
    *weight_perturbations(),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_weights_are_those_of_the_algorithm_written_out(case: Case) -> None:
    case.agree()
