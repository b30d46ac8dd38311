"""An attack with a radius of its own is the attack of an evaluation with that radius."""

from __future__ import annotations

import pytest
import torch

from layerwise.attacks import At, FGSMAttack, PGDAttack, ThreatModel, parse_attack
from layerwise.errors import ConfigError
from layerwise.evaluation import evaluate
from tests.evaluation.problems import trained
from tests.networks import batch

DATA = batch(150, seed=3, dtype=torch.float32)


@pytest.mark.parametrize(
    ("text", "threat"), [("at:0.15:pgd-3", ThreatModel("linf", 0.15)), ("at:l2,1.5:pgd-3", ThreatModel("l2", 1.5))]
)
def test_it_counts_what_an_evaluation_at_that_radius_counts(text: str, threat: ThreatModel) -> None:
    net = trained(torch.float32)
    around = evaluate(net, DATA, threat=ThreatModel("linf", 0.05), attacks=["clean", "fgsm", text], progress=False)
    own = evaluate(net, DATA, threat=threat, attacks=["pgd-3"], progress=False)
    assert around[text].count == own["pgd-3"].count
    assert around[text].accuracy < around["fgsm"].accuracy
    # A larger radius is outside the evaluation's own worst case.
    assert not around[text].in_threat_model
    assert around.worst.correct == around["fgsm"].count.correct
    assert around[text].settings["norm"] == threat.norm
    assert around[text].settings["attack"]["alpha"] == pytest.approx(threat.eps / 3)


def test_gradients_are_averaged_inside() -> None:
    record = evaluate(trained(torch.float32), DATA, attacks=["at:0.2:fgsm"], eot=2, num_examples=20, progress=False)
    assert [r.attack for r in record.results] == ["at:0.2:eot-2:fgsm"]


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match=r"norm='l7' is not a threat model"):
        parse_attack("at:l7,0.5:fgsm")
    with pytest.raises(ConfigError, match=r"at:RADIUS:ATTACK, for example at:12/255:fgsm"):
        parse_attack("at:12/255")
    with pytest.raises(ConfigError, match=r"at:0.1:fgsm has a radius already"):
        At(At(FGSMAttack(), 0.1), 0.2)


def test_costs_follow_what_is_inside() -> None:
    assert At(PGDAttack(20, 2), 0.1).passes() == PGDAttack(20, 2).passes() == 82
    assert parse_attack("transfer:a,b:fgsm").passes() == 2 * FGSMAttack().passes() + 1
    assert parse_attack("eot-4:pgd-20").passes() == 161
