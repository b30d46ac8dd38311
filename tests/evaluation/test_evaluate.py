from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layerwise.attacks import BIM, Clean, FGSMAttack, PGDAttack, StepLL, ThreatModel
from layerwise.errors import ConfigError
from layerwise.evaluation import evaluate
from layerwise.evaluation.conditions import evaluating
from tests.evaluation.problems import trained
from tests.networks import batch

THREAT = ThreatModel("linf", 0.1)
DATA = batch(150, seed=3, dtype=torch.float32)
SUITE = ["clean", "fgsm", "bim-5", "pgd-5-3", "mi-fgsm-5", "step-ll"]


def test_accuracies_are_counted_over_all_images() -> None:
    net, (x, y) = trained(), DATA
    record = evaluate(
        net, DATA, threat=THREAT, attacks=[Clean(), FGSMAttack(), BIM(5), StepLL()], batch_size=64, progress=False
    )
    masks = [net(a(net, x.double(), y, THREAT)).argmax(1) == y for a in (Clean(), FGSMAttack(), BIM(5), StepLL())]
    assert [r.count.correct for r in record.results] == [int(m.sum()) for m in masks]
    assert {r.count.total for r in record.results} == {150}
    assert record.worst.correct == int(torch.stack(masks).all(0).sum())
    assert record["clean"].accuracy > record["fgsm"].accuracy > record["bim-5"].accuracy > 0
    assert record.average_attacked == pytest.approx(sum(record.accuracies[a] for a in ("fgsm", "bim-5", "step-ll")) / 3)


def test_the_worst_case_is_taken_image_by_image() -> None:
    suite = ["fgsm", "bim-5", "step-ll"]
    threat = ThreatModel("linf", 0.13)
    record = evaluate(trained(), batch(300, seed=8), threat=threat, attacks=suite, progress=False)
    net, (x, y) = trained(), batch(300, seed=8, dtype=torch.float32)
    right = [net(a(net, x.double(), y, threat)).argmax(1) == y for a in (FGSMAttack(), BIM(5), StepLL())]
    assert record.worst.correct == int((right[0] & right[1] & right[2]).sum())
    assert record.worst.correct < min(int(r.sum()) for r in right), "no single attack is the worst for every image"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_accuracies_do_not_depend_on_the_batch_size(norm: Any) -> None:
    threat = ThreatModel(norm, 0.1 if norm == "linf" else 1.0)
    records = [
        evaluate(trained(), DATA, threat=threat, attacks=SUITE, batch_size=b, progress=False) for b in (7, 64, 150)
    ]
    assert records[0].accuracies == records[1].accuracies == records[2].accuracies
    assert len(set(records[0].accuracies.values())) > 3


def test_the_same_seed_gives_the_same_numbers_and_touches_no_random_state() -> None:
    torch.manual_seed(4321)
    state = torch.get_rng_state()
    first = evaluate(trained(), DATA, threat=THREAT, attacks=SUITE, progress=False)
    second = evaluate(trained(), DATA, threat=THREAT, attacks=SUITE, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.accuracies == second.accuracies
    assert (first.model, first.data, first.worst) == (second.model, second.data, second.worst)
    other = [
        evaluate(trained(), DATA, threat=THREAT, attacks=["pgd-1"], num_examples=60, seed=s, progress=False)
        for s in range(4)
    ]
    assert len({r.worst.correct for r in other}) > 1
    assert len({r.data.fingerprint for r in other}) == 4


def test_random_starts_depend_on_the_image_alone() -> None:
    net = trained()
    starts = []
    for size in (20, 150):
        with evaluating(net, DATA, batch_size=size) as conditions:
            attack = PGDAttack(2, alpha=0.01)
            starts.append(
                torch.cat([attack(conditions.network, x, y, THREAT, generator=s) for x, y, s in conditions.batches])
            )
    torch.testing.assert_close(starts[0], starts[1], rtol=0, atol=1e-12)


def test_what_is_recorded() -> None:
    record = evaluate(
        trained(),
        DATA,
        threat=THREAT,
        attacks=["clean", "pgd-5", "eot-2:bim-5"],
        num_examples=40,
        seed=3,
        batch_size=16,
        progress=False,
        model_name="mine",
        data_name="pictures",
    )
    assert (record.model.name, record.model.parameters) == ("mine", sum(p.numel() for p in trained().parameters()))
    assert (record.data.name, record.data.size, record.data.seed, record.batch_size) == ("pictures", 150, 3, 16)
    assert record["pgd-5"].settings == {
        "name": "pgd",
        "steps": 5,
        "restarts": 1,
        "alpha": 0.025,
        "random_start": True,
        "stop_when_fooled": True,
    }
    inner = record["eot-2:bim-5"].settings["attack"]
    assert inner == {"name": "bim", "steps": 5, "alpha": 0.025, "stop_when_fooled": True}
    assert record["pgd-5"].seconds > 0
    assert record["clean"].count.interval == pytest.approx((0.9124, 1.0), abs=1e-4)
    assert set(record.versions) == {"python", "torch", "layerwise"}
    changed = trained()
    with torch.no_grad():
        changed.fc1.bias[0] += 1e-6
    other = evaluate(changed, DATA, attacks=["clean"], progress=False)
    assert other.model.fingerprint != record.model.fingerprint


def test_logits_that_are_not_finite_are_wrong() -> None:
    class Overflowing(nn.Module):
        """Not a number for bright images, as the first class would have it."""

        def forward(self, x: Tensor) -> Tensor:
            logits = torch.stack([0 * x.mean((1, 2, 3)) + 1, x.mean((1, 2, 3))], 1)
            return torch.where(x.amax((1, 2, 3))[:, None] > 0.5, torch.nan, logits)

    x, y = torch.full((10, 1, 2, 2), 0.45), torch.zeros(10, dtype=torch.int64)
    record = evaluate(Overflowing(), (x, y), threat=THREAT, attacks=["clean", "fgsm"], progress=False)
    assert record.accuracies == {"clean": 1.0, "fgsm": 0.0}


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        ([], "there is no attack to evaluate under"),
        (["pgd-20", PGDAttack(20)], "attack 'pgd-20' is given 2 times"),
        (["pgd-20", "gpd"], "attack 'gpd' is unknown"),
    ],
)
def test_bad_suites(attacks: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(trained(), DATA, attacks=attacks, progress=False)


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = evaluate(trained(), DATA, attacks="clean", progress=False)
    assert capsys.readouterr() == ("", "")
    shown = evaluate(trained(), DATA, attacks="clean")
    assert shown.accuracies == quiet.accuracies
    assert capsys.readouterr().out == ""


def test_a_stopped_evaluation_tells_what_is_done(caplog: pytest.LogCaptureFixture) -> None:
    def stop(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise KeyboardInterrupt

    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    data = torch.rand(20, 1, 4, 4), torch.arange(20) % 2
    accuracy = evaluate(net, data, attacks=["clean"], progress=False)["clean"].accuracy
    with caplog.at_level("INFO", logger="layerwise"), pytest.raises(KeyboardInterrupt):
        evaluate(net, data, attacks=["clean", stop], progress=False)
    assert caplog.messages[-1] == f"accuracy so far: clean {100 * accuracy:.1f} %"
