"""AWP beyond its reference: one attack a batch, weights that move and go back; and the tape that it rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerwise.core.criteria import Criterion, CrossEntropy
from layerwise.core.driving import Partial, Step
from layerwise.core.modes import BatchNormMode
from layerwise.core.probe import Probe
from layerwise.core.random import Stream
from layerwise.core.sites import Sites
from layerwise.core.tape import Tape, remembered
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
    DeepDefense,
    FGSInter,
    GradAlign,
    InputMethod,
    Method,
    Perturbed,
    Standard,
)
from layerwise.training import fit
from tests.methods.cases import backward, data, differing, distance, resnet, train, unchecked
from tests.networks import TinyConv, TinyMLP, TinyResNet, batch
from tests.training.fakes import cheap, pictures, weights

X, Y = batch(6)


# AWP


@dataclass(kw_only=True)
class Counted(InputMethod):
    """PGD that counts its attacks' probes."""

    criterion: Criterion = field(default_factory=CrossEntropy)
    forwards: list[str] = field(default_factory=list)

    def batch_perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, step: Step, record: Sites | None = None
    ) -> Perturbed:
        def note() -> Tensor:
            self.forwards.append("attack")
            return (x + 0.1).clamp(0, 1)

        return remembered(note), {}

    @property
    def passes(self) -> Any:
        return Standard().passes


def test_the_attack_runs_once_a_batch() -> None:
    """MAIR's AWP runs it twice."""
    base = Counted()
    train(AWP(base=base), resnet(), data(2))
    assert base.forwards == ["attack"] * 2


BASES: list[Callable[[], Method]] = [
    lambda: FGSM(eps=0.1),
    lambda: FGSMRS(eps=0.1),
    lambda: NFGSM(eps=0.1),
    lambda: FGSMCKPT(attack=FGSMRS(eps=0.1)),
    lambda: GradAlign(eps=0.1),
    lambda: PGD(steps=2),
    lambda: TRADES(attack=PGD(steps=2)),
    lambda: MART(attack=PGD(steps=2)),
    lambda: SLAT(sites=["conv1"], base=NFGSM()),
    lambda: LAD(base=TRADES(attack=PGD(steps=1)), splitting="strang-marchuk"),
    lambda: LAD(base=PGD(steps=1), num_inner_steps=2),
    lambda: LAT(eps=2.0, joint=True),
    lambda: FGSInter(eps=2.0),
    lambda: ANP(k=3, layers=2, update="last-step"),
    lambda: ANP(k=3, layers=2, update="after-probes"),
    lambda: DeepDefense(num_steps=1, weight=0.1, d=0.1),
    lambda: DeepDefense(num_steps=1, weight=0.1, d=0.1, base=FGSM(eps=0.1)),
]


@pytest.mark.parametrize("base", BASES)
def test_a_base_that_is_wrapped_finds_the_same_and_no_probe_is_made_twice(base: Callable[[], Method]) -> None:
    """A vanishing perturbation of the weights is the base; forward passes are the base's and its descents' once more."""
    forwards: list[int] = []

    model, method = resnet(), unchecked(AWP(base=base(), gamma=1e-13))
    method.attach(model, X)
    model.fc.register_forward_hook(lambda m, a, o: forwards.append(1))
    expected = train(base(), resnet(), data(2))
    assert distance(train(method, model, data(2)), expected) < 1e-9
    assert len(forwards) == 2 * method.passes.forward
    assert differing(train(AWP(base=base(), gamma=0.0), resnet(), data(2)), expected) == []
    assert distance(train(AWP(base=base(), gamma=0.1), resnet(), data(2)), expected) > 1e-4


@pytest.mark.parametrize("mode", ["batch", "eval"])
def test_probes_of_a_base_keep_their_batch_norm_mode(mode: BatchNormMode) -> None:
    """The first loss is made with batch statistics, whatever its probes take."""
    base = FGSM(eps=0.1, probe=Probe(batch_norm=mode))
    expected = train(base, TinyResNet().double(), data(1))
    assert distance(train(AWP(base=base, gamma=1e-13), TinyResNet().double(), data(1)), expected) < 1e-9


def test_micro_batches_may_have_their_gradients_together_at_the_end() -> None:
    """As sharded ones have, whose gradients are reduced once: until then there are none."""
    model, whole = resnet(), resnet()
    method, optimizer = AWP(gamma=0.05, base=FGSM()), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    streams = [Stream(0, start=start, total=6, own_total=6) for start in (0, 4)]
    rows = [slice(0, 4), slice(4, 6)]
    parts = [method.losses(model, X[r], Y[r], generator=s) for r, s in zip(rows, streams, strict=True)]
    for _ in range(2):
        found = [next(part) for part in parts]
        values = [loss.loss if isinstance(loss, Partial) else loss for loss in found]
        backward(values[0] * 4 / 6 + values[1] * 2 / 6)
    optimizer.step()
    assert [next(part, None) for part in parts] == [None, None]
    expected = train(AWP(gamma=0.05, base=FGSM()), whole, [(X, Y)])
    assert distance({k: v.clone() for k, v in model.state_dict().items()}, expected) < 1e-12


def steps(method: Method, model: nn.Module, **more: Any) -> Iterator[dict[str, Tensor]]:
    """The weights at every yield, back-propagated, and after the end."""
    with closing(method.losses(model, X, Y, generator=Stream(0), **more)) as losses:
        for loss in losses:
            yield {k: v.detach().clone() for k, v in model.named_parameters()}
            backward(loss)
    yield {k: v.detach().clone() for k, v in model.named_parameters()}


def test_the_weights_move_by_gamma_along_their_gradient_and_back() -> None:
    model = TinyConv().double()
    first, second, last = steps(AWP(gamma=0.02, base=FGSM()), model)
    for name, w in first.items():
        moved = float((second[name] - w).norm() / w.norm())
        assert moved == pytest.approx(0.02 if w.ndim > 1 else 0.0)
        torch.testing.assert_close(last[name], w, rtol=1e-12, atol=1e-15)


def test_weights_go_back_when_training_stops_in_between() -> None:
    model = resnet()
    method = AWP(gamma=0.5, base=FGSM())
    for close in (True, False):
        before = weights(model)
        losses = iter(method.losses(model, X, Y))
        backward(next(losses))
        next(losses)
        assert distance(before, weights(model)) > 1e-3
        if close:
            losses.close()
        else:
            other = iter(method.losses(model, X, Y))
            next(other)
        assert distance(before, weights(model)) < 1e-15
        if not close:
            losses.close()
            assert distance(before, weights(model)) < 1e-15


def test_an_overflow_moves_no_weight() -> None:
    model = resnet()
    before = weights(model)
    losses = iter(AWP(gamma=0.5, base=FGSM()).losses(model, X, Y))
    next(losses)
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.inf)
    next(losses)
    assert distance(before, weights(model)) == 0


def test_only_the_pass_at_the_perturbed_weights_counts_for_batch_norm() -> None:
    model = TinyConv().double()
    train(AWP(base=FGSM()), model, [(X, Y)])
    assert int(model.get_buffer("bn1.num_batches_tracked")) == 1


def test_without_a_stream_both_runs_draw_the_same() -> None:
    for source in (None, torch.Generator().manual_seed(3)):
        model, seen = resnet(), list[Tensor]()
        model.conv1.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0].detach()))
        for loss in unchecked(AWP(base=FGSMRS(eps=0.1))).losses(model, X, Y, generator=source):
            backward(loss)
        _, trial, descent = seen
        assert torch.equal(trial, descent)


def test_the_moving_average_is_of_weights_that_went_back() -> None:
    """Between the weights before the step and after it; with gamma 3 the perturbed ones would lie far outside."""
    net = TinyMLP()
    before = weights(net)
    settings = cheap(epochs=1, max_steps=1, ema_decay=0.5)
    found = fit(net, AWP(gamma=3.0, base=FGSM()), pictures(), training=settings, progress=False)
    assert found.average is not None
    for name, after in net.state_dict().items():
        share = 1 - 2 / 11  # the first update's
        torch.testing.assert_close(found.average[name], before[name] + share * (after - before[name]))


# Tape


def test_a_tape_gives_each_result_once_more_in_order_and_nested_ones_belong_to_the_outer() -> None:
    tape, made = Tape(), list[str]()

    def find(name: str) -> str:
        made.append(name)
        return name

    def run() -> list[str]:
        with tape.running():
            return [
                remembered(lambda: find("a")),
                remembered(lambda: remembered(lambda: find("inner")) + find("outer")),
                remembered(lambda: find("b")),
            ]

    assert run() == run() == ["a", "innerouter", "b"]
    assert made == ["a", "inner", "outer", "b"]
    assert remembered(lambda: find("c")) == "c"
    assert made[-1] == "c"
