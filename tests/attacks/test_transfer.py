from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.attacks import (
    BIM,
    BPDA,
    EOT,
    Clean,
    FGSMAttack,
    InputAttack,
    PGDAttack,
    ThreatModel,
    Transfer,
    parse_attack,
    resolve_sources,
)
from layerwise.core.random import Stream
from layerwise.errors import ConfigError
from layerwise.evaluation import Evaluation, evaluate
from layerwise.evaluation.record import black_box_worst
from tests.evaluation.problems import Linear, trained
from tests.networks import TinyConv, TinyMLP, batch

THREAT = ThreatModel("linf", 0.1)


def other(seed: int, steps: int = 40) -> TinyMLP:
    """Another network that learnt the same."""
    net, (x, y) = TinyMLP(seed).double(), batch(200)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return net


A, B = other(1), other(2)


def fooled(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    out: Tensor = net(x).argmax(1) != y
    return out


def test_the_images_are_the_sources_and_the_worst_counts() -> None:
    target, (x, y) = trained(), batch(80, seed=5)
    source = Stream(0, total=80)
    made = [PGDAttack(5, stop_when_fooled=False)(net, x, y, THREAT, generator=source) for net in (A, B)]
    for net, images in zip((A, B), made, strict=True):
        assert torch.equal(Transfer(PGDAttack(5), (net,))(target, x, y, THREAT, generator=source), images)
    both = Transfer(PGDAttack(5), (A, B), ("a", "b"))(target, x, y, THREAT, generator=source)
    losses = torch.stack([F.cross_entropy(target(v), y, reduction="none") for v in made])
    hits = torch.stack([fooled(target, v, y) for v in made])
    assert hits.any(0).sum() > hits.sum(1).max(), "the problem does not need both sources"
    first = [int(hits[:, i].nonzero()[0]) if hits[:, i].any() else int(losses[:, i].argmax()) for i in range(80)]
    assert set(first) == {0, 1}
    assert torch.equal(both, torch.stack([made[k][i] for i, k in enumerate(first)]))


class OddLoss(nn.Module):
    """Wrong by a little above 1/2 in the first pixel; right below, where the loss is higher still."""

    def forward(self, x: Tensor) -> Tensor:
        high = torch.tensor([0.45, 0.54, 0.01], dtype=x.dtype).log()
        low = torch.tensor([0.35, 0.33, 0.32], dtype=x.dtype).log()
        return torch.where(x.flatten(1)[:, :1] > 0.5, high, low)


def test_an_image_that_fools_is_worse_than_one_of_higher_loss() -> None:
    up = Linear(torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), torch.zeros(3))
    down = Linear(torch.tensor([[0.0, 0.0], [-1.0, -1.0], [0.0, 0.0]]), torch.zeros(3))
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, dtype=torch.int64)
    for sources in ((up, down), (down, up)):
        found = Transfer(FGSMAttack(), sources, ("a", "b"))(OddLoss(), x, y, THREAT)
        torch.testing.assert_close(found, x + 0.1)


def test_what_barely_fools_the_source_is_not_enough() -> None:
    target, (x, y) = trained(), batch(80, seed=5)
    lazy = BIM(20)(A, x, y, THREAT)
    found = Transfer(BIM(20), (A,))(target, x, y, THREAT)
    assert fooled(target, found, y).sum() > fooled(target, lazy, y).sum()
    inside = Transfer(EOT(BPDA(BIM(20), "fc1_"), 1), (nn.ModuleDict({"fc1_": A}),)).resolved(THREAT)
    assert inside.attack == EOT(BPDA(BIM(20, alpha=0.025, stop_when_fooled=False), "fc1_"), 1)


def test_sources_are_left_as_they_are() -> None:
    source, (x, y) = TinyConv().double(), batch(6)
    source.conv1.weight.requires_grad_(False)
    source.train()
    source.conv2.eval()
    modes = [m.training for m in source.modules()]
    before = {k: v.clone() for k, v in source.state_dict().items()}
    Transfer(PGDAttack(2), (source,))(trained(), x, y, THREAT)
    assert [m.training for m in source.modules()] == modes
    assert all(torch.equal(before[k], v) for k, v in source.state_dict().items())
    assert [k for k, p in source.named_parameters() if not p.requires_grad] == ["conv1.weight"]
    assert all(p.grad is None for p in source.parameters())


def test_a_source_in_another_precision() -> None:
    target, (x, y) = trained(torch.float32), batch(40, seed=5, dtype=torch.float32)
    found = Transfer(PGDAttack(5), (A,))(target, x, y, THREAT, generator=Stream(0, total=40))
    assert found.dtype == torch.float32
    THREAT.check(x, found, attack="transfer")
    assert fooled(target, found, y).any()


def test_on_the_record() -> None:
    chosen = [Clean(), PGDAttack(5), Transfer(PGDAttack(5), (A,), ("a",)), Transfer(PGDAttack(5), (B,), ("b",))]
    record = evaluate(trained(), batch(60, seed=5), threat=THREAT, attacks=chosen, progress=False, batch_size=25)
    a, b = record["transfer:a:pgd-5"], record["transfer:b:pgd-5"]
    assert a.settings["sources"] == ["a"]
    assert a.in_threat_model
    assert record["clean"].accuracy > a.accuracy > record["pgd-5"].accuracy, "black box is weaker than white box"
    assert a.accuracy != b.accuracy
    assert black_box_worst(record) == min(a, b, key=lambda r: r.accuracy)
    assert black_box_worst(Evaluation.from_json(record.to_json())) == black_box_worst(record)
    plain = evaluate(trained(), batch(20), threat=THREAT, attacks=["clean", "fgsm"], progress=False)
    assert black_box_worst(plain) is None


def test_batches_do_not_matter() -> None:
    attack = Transfer(PGDAttack(5), (A, B), ("a", "b"))
    counts = {
        evaluate(trained(), batch(60, seed=5), threat=THREAT, attacks=[attack], progress=False, batch_size=size)
        .results[0]
        .count
        for size in (60, 7)
    }
    assert len(counts) == 1


def test_names_become_networks() -> None:
    asked: list[str] = []
    networks = {"runs/a": A, "runs/b": B}

    def load(name: str) -> nn.Module:
        asked.append(name)
        return networks[name]

    texts = ["clean", "transfer:runs/a,runs/b:pgd-5", "eot-2:transfer:runs/b:bim-5"]
    clean, two, inside = resolve_sources([parse_attack(t) for t in texts], load)
    assert clean == Clean()
    assert two == Transfer(PGDAttack(5), (A, B), ("runs/a", "runs/b"))
    assert inside == EOT(Transfer(BIM(5), (B,), ("runs/b",)), 2)
    assert asked == ["runs/a", "runs/b"], "each is loaded once"
    assert [str(a) for a in (clean, two, inside)] == texts
    record = evaluate(trained(), batch(20), threat=THREAT, attacks=[two, inside], progress=False)
    assert black_box_worst(record) is not None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Transfer(PGDAttack(), ()), "transfer has no source"),
        (lambda: Transfer(PGDAttack(), (A, B)), "two sources are called 'TinyMLP'; give each once, with names"),
        (lambda: Transfer(PGDAttack(), (A, B), ("a",)), "transfer has 2 sources and 1 names"),
        (lambda: Transfer(PGDAttack(), (A,), ("a:b",)), "'a:b' cannot name a source"),
    ],
)
def test_sources_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_sources_that_do_not_fit() -> None:
    x, y = batch(4)
    attack: InputAttack = Transfer(FGSMAttack(), ("runs/a",))
    with pytest.raises(ConfigError, match="source 'runs/a' is only a name"):
        attack(trained(), x, y, THREAT)
    few = Linear(torch.rand(3, 192, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ConfigError, match="source 'Linear' has 3 logits, the target 5; it was made for other data"):
        Transfer(FGSMAttack(), (few,))(trained(), x, y, THREAT)
    small = Linear(torch.rand(5, 64, dtype=torch.float64), torch.zeros(5, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"source 'Linear': the network does not take images of shape \(3, 8, 8\)"):
        Transfer(FGSMAttack(), (small,))(trained(), x, y, THREAT)
