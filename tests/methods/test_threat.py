"""One threat model an experiment: a radius that is None is the threat model's, wherever it stands in a method."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch

from layerwise.core.threat import THREAT, ThreatModel
from layerwise.errors import ConfigError
from layerwise.experiments import experiment
from layerwise.methods import (
    ANP,
    AWP,
    FGSM,
    FGSMCKPT,
    FGSMRS,
    LAD,
    NAT,
    PGD,
    SLAT,
    TRADES,
    YOPO,
    GradAlign,
    LayerMethod,
    Method,
    Parseval,
    Standard,
)
from layerwise.reading import explanations
from tests.methods.cases import METHODS, data, differing, make, resnet, train
from tests.networks import batch

SMALL = ThreatModel(eps=0.02)


def missing(method: Method) -> list[str]:
    """Where a radius is still the threat model's."""
    owner = [(f, getattr(method, f.name)) for f in fields(method)]  # type: ignore[arg-type]
    inside = [f"{f.name}.{name}" for f, value in owner if isinstance(value, Method) for name in missing(value)]
    return inside + [f.name for f, value in owner if value is None and f.metadata.get(THREAT) == "eps"]


@pytest.mark.parametrize("name", METHODS)
def test_alone_a_method_trains_at_the_usual_radius_and_under_a_threat_model_at_its(name: str) -> None:
    alone = train(make(name), resnet(), data(2))
    usual = make(name).under(ThreatModel())
    assert missing(usual) == []
    assert differing(train(usual, resnet(), data(2)), alone) == []
    smaller = train(make(name).under(SMALL), resnet(), data(2))
    # An untrained network is wrong on everything, and what is wrong at the start FGSM-CKPT trains clean.
    assert (differing(smaller, alone) != []) == (missing(make(name)) != [] and name != "FGSMCKPT")


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_is_explained(name: str) -> None:
    assert {f.name for f in fields(METHODS[name]) if f.init} <= set(explanations(METHODS[name]))  # type: ignore[arg-type]


def test_a_radius_reaches_bases_and_attacks() -> None:
    found = AWP(base=LAD(base=TRADES())).under(SMALL)
    assert found == AWP(base=LAD(base=TRADES(attack=PGD(eps=0.02, norm="linf"))))
    assert Parseval(base=NAT()).under(SMALL).base == NAT(attack=NAT().attack.under(SMALL))
    assert FGSMCKPT().under(SMALL).attack == FGSMRS(eps=0.02)
    assert GradAlign(base=FGSM()).under(SMALL) == GradAlign(eps=0.02, base=FGSM(eps=0.02))


def test_where_nothing_is_left_open_the_method_stays_the_same_object() -> None:
    for method in (Standard(), ANP(), PGD(eps=0.1), SLAT(eta=0.1), AWP(base=PGD(eps=0.1)), YOPO(eps=0.1)):
        assert method.under(SMALL) is method


def test_a_threat_model_gives_slat_the_step_at_the_input() -> None:
    """At hidden sites only where no step is named, as the paper has one number everywhere."""
    assert SLAT().under(SMALL) == SLAT(eta=0.02)
    named = SLAT(eta={"conv1": 0.1}).under(SMALL)
    assert named == SLAT(eta={"input": 0.02, "conv1": 0.1})
    assert SLAT(eta={"conv1": 0.1}).eta_at("input") == 8 / 255
    assert SLAT(eta={"input": 0.3, "conv1": 0.1}).under(SMALL).eta_at("input") == 0.3
    assert SLAT(eta={"conv1": 0.1}, base=FGSM()).under(SMALL).base == FGSM(eps=0.02)


def test_a_norm_goes_with_its_radius() -> None:
    wide = ThreatModel("l2", 0.5)
    assert PGD().under(wide) == PGD(norm="l2", eps=0.5)
    assert PGD(eps=0.1).under(wide).ball == (0.1, "linf")
    x, y = batch(3)
    moved = (PGD().under(wide).perturb(resnet(), x / 2 + 0.25, y)[0] - x / 2 - 0.25).flatten(1).norm(dim=1)
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5))


WRONG: list[tuple[Callable[[], object], str]] = [
    (
        lambda: FGSM().under(ThreatModel("l2", 0.5)),
        "FGSM perturbs in linf, and the threat model is l2, eps 0.5: set its eps, a radius in linf",
    ),
    (
        lambda: LAD(base=TRADES(attack=PGD(norm="l2"))).under(SMALL),
        "PGD perturbs in l2, and the threat model is linf, eps 0.02: set its eps, a radius in l2",
    ),
    (
        lambda: SLAT(eta={"conv1": 0.1}).under(ThreatModel("l2", 0.5)),
        "SLAT perturbs in linf, and the threat model is l2, eps 0.5: set its eps, a radius in linf",
    ),
    (
        lambda: PGD(norm="l2").perturb(resnet(), *batch(2)),
        "the method perturbs in l2, and the threat model is linf, eps 8/255: set its eps, a radius in l2",
    ),
]


@pytest.mark.parametrize(("use", "message"), WRONG)
def test_a_radius_in_another_norm_is_refused(use: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        use()


def test_a_method_that_is_exchanged_on_the_command_line_trains_at_the_radius_that_is_evaluated() -> None:
    chosen, tree = experiment.read("slat-digits", ["--method", "PGD"])
    assert tree["method"]["eps"] is None
    assert chosen.method.under(chosen.threat) == PGD(eps=0.2, norm="linf")


@pytest.mark.parametrize("name", METHODS)
def test_every_layerwise_methods_sites_are_made_anew_under_a_threat_model(name: str) -> None:
    """The copy serves another network than the original."""
    method, [(x, y)] = make(name), data(1)
    train(method, resnet(), [(x, y)])
    other = method.under(SMALL)
    if other is not method and isinstance(other, LayerMethod):
        train(other, resnet(), [(x, y)])
        assert other.attached_sites() != method.attached_sites()
