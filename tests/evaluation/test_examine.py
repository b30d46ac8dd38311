from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from layerwise.attacks import FGSMAttack, PGDAttack, ThreatModel
from layerwise.attacks.base import Averaged
from layerwise.core import norms
from layerwise.core.random import Stream
from layerwise.evaluation import Finding, checks, evaluate
from layerwise.evaluation.examine import Rescaled, _Probe, examine, examined, standing
from tests.evaluation.planted import RandomResize, Rippled, Scaled, defects, images, labels, learn, mlp, recipe
from tests.evaluation.problems import Linear, Wrapped, trained
from tests.networks import batch

LINF, L2 = ThreatModel("linf", 0.2), ThreatModel("l2", 1.0)
THREATS = pytest.mark.parametrize("threat", [LINF, L2], ids=str)


def names(findings: list[Finding] | tuple[Finding, ...]) -> list[str]:
    return [f.name for f in findings]


@pytest.fixture(scope="module")
def honest() -> nn.Module:
    """Trained for a moment on the digits."""
    return learn(mlp(), nn.functional.cross_entropy, labels(), steps=100)


@pytest.fixture(scope="module")
def planted(honest: nn.Module) -> dict[str, nn.Module]:
    return defects(honest)


@THREATS
def test_an_honest_network_raises_no_check(honest: nn.Module, threat: ThreatModel) -> None:
    assert examine(honest, *images(128), threat, Stream(0)) == []
    assert evaluate(honest, images(), threat=threat, progress=False).findings == ()


@THREATS
@pytest.mark.parametrize(
    ("defect", "found"),
    [
        ("scaled", {"zero-gradient", "loss-saturated", "unbounded-attack-fails"}),
        ("distilled", {"zero-gradient", "loss-saturated", "unbounded-attack-fails"}),
        ("quantised", {"zero-gradient", "random-search-beats-gradient", "unbounded-attack-fails"}),
        ("stepped", {"zero-gradient", "random-search-beats-gradient", "unbounded-attack-fails"}),
        ("reversed", {"unrelated-gradient", "random-search-beats-gradient", "unbounded-attack-fails"}),
        ("resized", {"random-gradient"}),
        ("probabilities", {"probabilities"}),
    ],
)
def test_planted_defects_are_found(
    planted: dict[str, nn.Module], defect: str, found: set[str], threat: ThreatModel
) -> None:
    x, y = images(128)
    torch.manual_seed(0)
    assert found <= set(names(examine(planted[defect], x, y, threat, Stream(0))))


@THREATS
@pytest.mark.parametrize("inside", [False, True])
def test_ripples_are_found(honest: nn.Module, inside: bool, threat: ThreatModel) -> None:
    rippled = Rippled(honest, 0.01 if inside else 0.004, 2000, inside=inside)
    assert "smoothed-gradient-beats-gradient" in names(examine(rippled, *images(128), threat, Stream(0)))


@pytest.mark.parametrize("factor", [1e-6, 1e-2])
def test_tiny_logits_are_found(honest: nn.Module, factor: float) -> None:
    assert "flat-logits" in names(examine(Scaled(honest, factor), *images(64), LINF, Stream(0)))


def test_a_finding_near_its_threshold_says_so() -> None:
    (far,), (near,) = (checks.RANDOM_SEARCH.share(hits, 100) for hits in (50, 13))
    assert "50 of 100 images (38.7 to 61.3 % of all such)" in far.explanation
    assert "near the threshold" in near.explanation
    assert "near the threshold" not in far.explanation


def test_an_overfitted_network_is_found() -> None:
    network, threat = recipe("fgsm-digits", "--method.eps=0.3", "--model.name=mlp"), ThreatModel("linf", 0.3)
    record = evaluate(network, images(), threat=threat, progress=False)
    assert record["clean"].accuracy > 0.9
    assert record["fgsm"].accuracy > 0.4
    assert record["pgd-20"].accuracy < 0.15
    assert {"catastrophic-overfitting", "fgsm-far-above-pgd"} <= set(names(record.findings))
    assert names(examine(network, *images(64), threat, Stream(0))) == ["catastrophic-overfitting"]


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
    assert record.findings[0].explanation.startswith("5 of 50 images")


def test_enough_passes_silence_the_check_of_randomness(honest: nn.Module) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.05 * torch.randn_like(x)

    network, (x, y) = Wrapped(Noisy(), honest), images(64)
    torch.manual_seed(0)
    assert names(examine(network, x, y, LINF, Stream(0))) == ["random-gradient"]
    assert "random-gradient" not in names(examine(Averaged(network, 200), x[:4], y[:4], LINF, Stream(0)))


class Shell(nn.Module):
    """Fooled where the mean pixel has risen by 0.015 to 0.04, and flat beyond."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.rest = x.flatten(1).mean(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        rise = x.flatten(1).mean(dim=1) - self.rest[: len(x)]
        margin = torch.where(rise < 0.04, 0.015 - rise, 0.1 + 0 * rise)
        return torch.stack([margin, torch.zeros_like(margin)], dim=1)


def test_a_larger_radius_that_finds_less() -> None:
    x, y = torch.full((16, 3, 16, 16), 0.5, dtype=torch.float64), torch.zeros(16, dtype=torch.int64)
    network, threat = Shell(x), ThreatModel("linf", 0.1)
    ends = [PGDAttack(10)(network, x, y, ThreatModel("linf", eps), generator=Stream(0)) for eps in (0.1, 0.2)]
    right = [int((network(x_adv).argmax(dim=1) == y).sum()) for x_adv in ends]
    assert right[0] == 0
    assert right[1] > 12
    assert "larger-radius-weaker" in names(examine(network, x, y, threat, Stream(0)))


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_nothing_to_attack(eps: float) -> None:
    x, y = batch(20)
    with torch.no_grad():
        wrong = (trained()(x).argmax(dim=1) + 1) % 5
    assert examine(trained(), x, wrong if eps else y, ThreatModel("linf", eps), Stream(0)) == []


def test_examining_draws_nothing_from_the_global_generator_and_repeats() -> None:
    x, y = batch(40)
    network = nn.Sequential(trained(), nn.Softmax(dim=1))
    before = torch.get_rng_state()
    first = examine(network, x, y, LINF, Stream(3))
    assert first == examine(network, x, y, LINF, Stream(3))
    assert names(first) == ["probabilities"]
    assert torch.equal(before, torch.get_rng_state())


def test_small_networks_are_looked_at_on_more_images() -> None:
    assert examined(trained()) == 256
    assert examined(nn.Linear(1000, 1001)) == 64


def test_standing_is_the_log_odds_and_never_saturates() -> None:
    logits, y = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 5
    p = logits.softmax(dim=1).gather(1, y[:, None])[:, 0]
    assert torch.allclose(standing(logits, y), (p / (1 - p)).log())
    assert standing(torch.tensor([[1e5, 0.0], [0.0, 1e5]]), torch.tensor([0, 0])).tolist() == [1e5, -1e5]


def test_rescaled_logits_keep_the_prediction_and_do_not_saturate() -> None:
    weight, bias = 1e6 * torch.randn(3, 4), torch.zeros(3)
    network, x = Linear(weight, bias), torch.rand(8, 4, requires_grad=True)
    rescaled = Rescaled(network)(x)
    assert torch.equal(rescaled.argmax(dim=1), network(x).argmax(dim=1))
    gap = rescaled.topk(2, dim=1).values
    assert torch.allclose(gap[:, 0] - gap[:, 1], torch.ones(8), atol=1e-4)
    loss = nn.functional.cross_entropy(rescaled, rescaled.argmax(dim=1))
    (g,) = torch.autograd.grad(loss, x)
    assert (g.flatten(1).norm(dim=1) > 0).all()


@THREATS
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 1), (192,)])
def test_the_search_needs_no_gradient_and_stays_in_the_ball(threat: ThreatModel, shape: tuple[int, ...]) -> None:
    pixels = int(torch.tensor(shape).prod())
    weight = torch.linspace(-1, 1, pixels + 1)[1:].repeat(2, 1) * torch.tensor([[1.0], [-1.0]])
    seen: list[Tensor] = []

    class Spy(Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x).detach()

    x = torch.full((5, *shape), 0.5)
    network = Spy(weight, torch.tensor([0.0, float(weight[0].sum()) - 1e-3]))
    y = network(x).argmax(dim=1)
    fooled = _Probe(network, x, y, threat, Stream(0)).search(torch.tensor([0, 2, 3]))
    assert fooled.tolist() == [True] * 3
    for points in seen[1:]:
        assert (norms.norm(points - x[: len(points)], threat.norm) <= threat.eps * (1 + 1e-5)).all()


def test_a_single_step_reaches_as_far_as_fgsm(honest: nn.Module) -> None:
    x, y = images(8)
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(honest(leaf), y, reduction="sum"), leaf)
    for threat in (LINF, L2):
        step = _Probe(honest, x, y, threat, None).step(g)
        assert torch.allclose(step, FGSMAttack()(honest, x, y, threat))


def test_random_resizing_is_random() -> None:
    torch.manual_seed(0)
    x = images(2)[0]
    shapes = {tuple(RandomResize()(x).shape) for _ in range(20)}
    values = {float(RandomResize()(x).sum()) for _ in range(20)}
    assert shapes == {(2, 1, 8, 8)}
    assert len(values) > 3
