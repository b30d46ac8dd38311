from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from layerwise.attacks import LatentAttack, ThreatModel
from layerwise.attacks.base import Batch
from layerwise.core.sites import Sites
from layerwise.core.tracing import Site
from layerwise.evaluation import evaluate
from tests.evaluation.problems import trained
from tests.networks import TinyConv, TinyMLP, batch

SITES = ("fc1", "fc2", "fc3")


def forward(net: TinyMLP, x: Tensor, r: list[Tensor]) -> Tensor:
    h = torch.relu(net.fc1(x.flatten(1)) + r[0])
    h = torch.relu(net.fc2(h) + r[1])
    out: Tensor = net.fc3(h) + r[2]
    return out


def zeros(rows: int) -> list[Tensor]:
    return [torch.zeros(rows, width, dtype=torch.float64) for width in (16, 12, 5)]


def step(net: TinyMLP, x: Tensor, y: Tensor, r: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Logits at z + r, and the gradients there."""
    r = [v.clone().requires_grad_() for v in r]
    logits = forward(net, x, r)
    return logits, list(torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), r))


@pytest.mark.parametrize("relative", [False, True])
def test_every_batch_meets_the_gradients_of_the_one_before(relative: bool) -> None:
    net, (x, y) = trained(), batch(25, seed=4)
    eps = 1e5 if relative else 0.7
    batches: list[Batch] = [(x[i : i + 10], y[i : i + 10], None) for i in range(0, 25, 10)]
    _, g = step(net, *batches[-1][:2], zeros(5))
    g = [torch.cat([v[-1:], v[:-1]]) for v in g]
    expected = []
    for a, b, _ in batches:
        sizes = [eps / 128 * (v.max() - v.min()) if relative else eps for v in g]
        noise = [size * v.sign() for size, v in zip(sizes, g, strict=True)]
        rows = [v.repeat(2, 1)[: len(a)] for v in noise]
        logits, g = step(net, a, b, rows)
        expected.append(logits.argmax(1) == b)
    found = list(LatentAttack(eps=eps, relative=relative).outcomes(net, batches, ThreatModel()))
    assert [f.tolist() for f in found] == [e.tolist() for e in expected]
    accuracy = torch.cat(found).double().mean()
    assert 0 < accuracy < 1, "the attack does something, not everything"


def test_a_single_batch_meets_its_neighbours() -> None:
    net, (x, y) = trained(), batch(10, seed=4)
    _, g = step(net, x, y, zeros(10))
    logits, _ = step(net, x, y, [0.7 * v.roll(1, 0).sign() for v in g])
    (found,) = LatentAttack(eps=0.7).outcomes(net, [(x, y, None)], ThreatModel())
    assert torch.equal(found, logits.argmax(1) == y)


def test_the_radius_is_the_threat_models_by_default_and_the_worst_case_leaves_it_out() -> None:
    threat = ThreatModel("linf", 0.5)
    assert LatentAttack().resolved(threat).eps == 0.5
    net = trained()
    record = evaluate(
        net, batch(60), threat=threat, attacks=["clean", LatentAttack(eps=3.0)], batch_size=20, progress=False
    )
    assert record["latent eps=3"].accuracy < record["clean"].accuracy
    assert record.worst == record["clean"].count
    assert not record["latent eps=3"].in_threat_model
    assert record.average_attacked is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules()), "the sites are removed"


def test_default_sites_are_the_batch_norm_outputs() -> None:
    net, (x, y) = TinyConv().eval(), batch(8, dtype=torch.float32)
    everywhere = list(LatentAttack(eps=0.5).outcomes(net, [(x, y, None)], ThreatModel()))
    norms = list(LatentAttack(eps=0.5, sites=("bn1", "bn2")).outcomes(net, [(x, y, None)], ThreatModel()))
    assert torch.equal(everywhere[0], norms[0])
    assert [str(s) for s in Sites(net, "batch-norm outputs", example=x)] == ["bn1", "bn2"]
    assert Site("bn1") in set(Sites(net, "batch-norm outputs", example=x))
