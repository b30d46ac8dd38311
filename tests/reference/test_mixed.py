"""The references of PAT, NAT, EAT, Adv. Train I and Parseval tested by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.networks import TinyConv, TinyMLP
from tests.reference.common import mean_loss
from tests.reference.fgsm import fgsm
from tests.reference.fixtures import BATCHES, EPS, LR, UNIFORM, X, Y, apart, net, same
from tests.reference.lat import fgs_orig
from tests.reference.mixed import adv_train_1, eat, pat, step_ll
from tests.reference.parseval import parseval
from tests.reference.standard import standard

SHARES = [(u[:, 0, 0, 0] + 1) / 2 for u in UNIFORM]


def test_special_cases_are_other_methods() -> None:
    one: dict[str, Any] = {"eps": EPS, "alpha": EPS, "steps": 1, "lr": LR}
    assert same(pat(net(TinyConv), BATCHES, **one), fgs_orig(net(TinyConv), BATCHES, eps=EPS, lr=LR))
    expected = standard(net(TinyMLP), BATCHES, lr=LR)
    still: dict[str, Any] = {"eps": 0.0, "alpha": 0.0, "steps": 1, "lr": LR}
    for halves in ("apart", "together"):
        assert apart(pat(net(TinyMLP), BATCHES, halves=halves, **still), expected) < 1e-14
    assert same(parseval(net(TinyMLP), BATCHES, rows=[{}, {}, {}], beta=0.1, lr=LR), expected)
    assert apart(adv_train_1(net(TinyMLP), BATCHES, fixed=net(TinyMLP), alpha=1.0, lr=LR), expected) < 1e-14


def test_steps_of_one_size_along_the_gradient_are_fgsm() -> None:
    """Radii in a hair's breadth: every share gives nearly the same."""
    certain = [torch.full_like(s, 1.0) for s in SHARES]
    mixed = eat(net(TinyMLP), BATCHES, shares=certain, std=EPS, largest=EPS, gradient=True, lr=LR)
    assert apart(mixed, fgs_orig(net(TinyMLP), BATCHES, eps=EPS, lr=LR)) < 1e-12
    assert apart(mixed, fgsm(net(TinyMLP), BATCHES, eps=EPS, lr=LR)) > 1e-3


def test_step_ll_makes_the_least_likely_class_likelier() -> None:
    reference = net(TinyMLP)
    least = reference.logits(X).argmin(1)
    x_adv = step_ll(reference, X, torch.full((len(X),), EPS).double(), bn="frozen")
    assert mean_loss(reference, x_adv, least).item() < mean_loss(reference, X, least).item()
    assert float((x_adv - X).abs().max()) == pytest.approx(EPS, rel=1e-6)


def test_a_source_that_is_the_network_changes_nothing_at_first() -> None:
    def trained(drawn: int, sources: list[Any]) -> Any:
        return eat(net(TinyMLP), BATCHES[:1], shares=SHARES, sources=sources, drawn=[drawn], lr=LR)

    assert same(trained(1, [net(TinyMLP)]), trained(0, []))


def test_deepfool_images_are_wrong_for_the_fixed_network() -> None:
    """Beside their own labels: the network learns what the fixed one thinks of them least."""
    fixed = net(TinyMLP)
    learnt = adv_train_1(net(TinyConv), [(X, Y)] * 20, fixed=fixed, lr=0.2)
    assert mean_loss(learnt, X, Y, bn="eval").item() < mean_loss(net(TinyConv), X, Y, bn="eval").item()


def test_parseval_leads_singular_values_to_one() -> None:
    reference = net(TinyMLP)
    rows = [{"fc2.weight": list(range(12))}] * 60

    def values(weight: Tensor) -> Tensor:
        found: Tensor = torch.linalg.svdvals(weight.detach())
        return found

    after = parseval(reference, [(X, Y)] * 60, rows=rows, beta=0.2, lr=0.0).weights["fc2.weight"]
    assert float((values(reference.weights["fc2.weight"]) - 1).abs().max()) > 0.5
    assert float((values(after) - 1).abs().max()) < 0.02
