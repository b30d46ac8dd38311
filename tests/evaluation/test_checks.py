from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from layerwise.evaluation import BIM, BPDA, CHECKS, EOT, FGSM, PGD, Attack, Clean, ThreatModel, evaluate
from layerwise.evaluation.checks import compare, inspect
from tests.evaluation.problems import Quantise, Wrapped, trained
from tests.networks import batch


def names(findings: object) -> list[str]:
    assert isinstance(findings, list | tuple)
    return [f.name for f in findings]


@pytest.mark.parametrize(
    ("accuracies", "found"),
    [
        ({Clean(): 0.9, FGSM(): 0.5, PGD(20): 0.4}, []),
        ({Clean(): 0.9, FGSM(): 0.905, PGD(20): 0.6}, []),
        ({Clean(): 0.9, FGSM(): 0.92, PGD(20): 0.6}, ["fgsm-above-clean"]),
        ({Clean(): 0.9, FGSM(): 0.5, PGD(20): 0.51}, []),
        ({Clean(): 0.9, FGSM(): 0.5, PGD(20): 0.6}, ["pgd-above-fgsm"]),
        ({Clean(): 0.9, FGSM(): 0.5, PGD(20): 0.6, BIM(20): 0.45}, []),
        ({Clean(): 0.9, FGSM(): 0.7, PGD(20): 0.01}, ["fgsm-far-above-pgd"]),
        ({Clean(): 0.6, FGSM(): 0.7, PGD(20): 0.01}, ["fgsm-above-clean", "fgsm-far-above-pgd"]),
        ({Clean(): 0.9, FGSM(): 0.5, PGD(2): 0.6}, []),
        ({Clean(): 0.9, FGSM(step=0.1): 0.8, PGD(20): 0.1}, []),
        ({EOT(FGSM(), 4): 0.5, BPDA(PGD(20), "front"): 0.6}, ["pgd-above-fgsm"]),
        ({PGD(20): 0.5}, []),
    ],
)
def test_contradicting_accuracies(accuracies: dict[Attack, float], found: list[str]) -> None:
    assert names(compare(accuracies)) == found


def test_a_finding_says_what_was_found() -> None:
    (finding,) = compare({FGSM(): 0.5, PGD(20): 0.6})
    assert finding.threshold == 0.02
    assert finding.value == pytest.approx(0.1)
    assert str(finding).startswith("pgd-above-fgsm: 0.1 (more than 0.02): accuracy under iterated steps exceeds")
    assert all(check.explanation and check.name == name for name, check in CHECKS.items())


def test_an_ordinary_network_raises_no_check() -> None:
    x, y = batch(50)
    assert inspect(trained(), x, y) == []
    assert evaluate(trained(), (x, y), threat=ThreatModel("linf", 0.08), progress=False).findings == ()


def test_a_quantiser_has_zero_gradients() -> None:
    record = evaluate(Wrapped(Quantise(), trained()), batch(50), threat=ThreatModel("linf", 0.08), progress=False)
    assert names(record.findings) == ["zero-gradient"]
    assert record.findings[0].value == 1.0


def test_contradictions_reach_the_record() -> None:
    class Reversed(nn.Module):
        """The gradient points the wrong way."""

        def __init__(self) -> None:
            super().__init__()
            self.network = trained()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.network(2 * x.detach() - x)
            return out

    x, y = batch(60)
    y[:20] = (y[:20] + 1) % 5
    record = evaluate(Reversed(), (x, y), threat=ThreatModel("linf", 0.2), attacks=["clean", "fgsm"], progress=False)
    assert names(record.findings) == ["fgsm-above-clean"]
    assert record.findings[0].value == pytest.approx(record["fgsm"].accuracy - record["clean"].accuracy)


def test_a_saturated_network_has_zero_gradients() -> None:
    class Hot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = trained(torch.float32)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = 1e5 * self.network(x)
            return out

    x, y = batch(50, dtype=torch.float32)
    assert names(inspect(Hot(), x, y)) == ["zero-gradient"]


def test_gradients_that_are_not_finite() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = trained()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.network(x) + 0 * x.flatten(1)[:, :1].sqrt()
            return out

    x, y = batch(50)
    x[:5, 0, 0, 0] = 0.0
    record = evaluate(Root(), (x, y), attacks=["clean", "fgsm", "pgd-5"], progress=False)
    assert names(record.findings) == ["nan-gradient"]
    assert record.findings[0].value == pytest.approx(0.1)


def test_probabilities_instead_of_logits() -> None:
    net = nn.Sequential(trained(), nn.Softmax(dim=1))
    x, y = batch(50)
    assert "probabilities" in names(inspect(net, x, y))
    assert names(inspect(nn.Sequential(trained(), nn.LogSoftmax(dim=1)), x, y)) == []
